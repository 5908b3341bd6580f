"""What zeroth-order training costs beside the forward passes it cannot do without.

    python benchmarks/zeroth_order.py [--threads 2 | --busy] [--json]

A step of FedKSeed (two losses off the weights, and the step itself) over two plain forward passes
on the same batch; and rebuilding a model from K seeds in one pass over memory, over a pass per
seed: ours, and plain PyTorch's. What is compared is timed in turn, in one run; random weights and
tokens, which do not change the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from fullfed.data.batches import IGNORED, Batch
from fullfed.sketch import Purpose, Stream, accumulate_, perturb_
from fullfed.sketch.directions import Distribution
from fullfed.training.zeroth_order import Neighbourhood, RandomDirection
from shapes import SHAPES

Clock = Callable[[], float]
Row = dict[str, str | int | float]
DISTRIBUTIONS: tuple[Distribution, ...] = ("rademacher", "gaussian")
MODELS = ("tiny", "4m", "15m")  # stories260k, base-4m and stories15M, but for grouped queries
BATCHES = ((4, 256), (1, 256), (4, 64))  # rows, tokens in a row


def batch_of(rows: int, tokens: int, vocabulary: int) -> Batch:
    """A sixth of the tokens are the answer."""
    ids = torch.randint(vocabulary, (rows, tokens))
    labels = ids.clone()
    labels[:, : tokens - tokens // 6] = IGNORED
    return Batch(ids, torch.ones_like(ids), labels, rows * (tokens // 6))


def seconds(clock: Clock, *acts: Callable[[], object], repeats: int) -> list[list[float]]:
    """Of each act, its times; taken in turn, so that a busy machine disturbs all alike."""

    def once(act: Callable[[], object]) -> float:
        began = clock()
        act()
        return clock() - began

    for act in acts:
        act()
    times = [[once(act) for act in acts] for _ in range(repeats)]
    return [list(column) for column in zip(*times, strict=True)]


def step_rows(name: str, clock: Clock, repeats: int) -> Iterator[Row]:
    model = SHAPES[name].model("cpu").eval()
    nearby = Neighbourhood(model, dict(model.named_parameters()))
    weights = [p.detach() for p in model.parameters()]
    for shape in BATCHES:
        batch = batch_of(*shape, model.config.vocab_size)
        for distribution in DISTRIBUTIONS:
            direction = RandomDirection(Stream(1, Purpose.DIRECTION, owner=3), distribution)

            def step(batch: Batch = batch, direction: RandomDirection = direction) -> None:
                _, slope = nearby.derivative(batch, direction, 5e-4)
                perturb_(weights, direction.stream, -1e-9 * slope, direction.distribution)

            def forwards(batch: Batch = batch) -> None:
                nearby.here(batch)
                nearby.here(batch)

            plain, ours = seconds(clock, forwards, step, repeats=repeats)
            ratios = [b / a for a, b in zip(plain, ours, strict=True)]
            yield {
                "model": name,
                "d": nearby.elements,
                "batch": f"{shape[0]} x {shape[1]}",
                "distribution": distribution,
                "two forwards, ms": 1e3 * min(plain),
                "step, ms": 1e3 * min(ours),
                "ratio of best": min(ours) / min(plain),
                "median ratio": statistics.median(ratios),
            }


def rebuild_rows(d: int, few: int, many: int, clock: Clock) -> Iterator[Row]:
    weights, noise = [torch.zeros(d)], torch.empty(d)
    streams = [Stream(1, Purpose.DIRECTION, owner=n) for n in range(many)]
    scalars = [1e-3] * many

    def plain() -> None:
        noise.normal_()
        weights[0].add_(noise, alpha=1e-3)

    for distribution in DISTRIBUTIONS:

        def each(distribution: Distribution = distribution) -> None:
            for stream in streams[:few]:
                perturb_(weights, stream, 1e-3, distribution)

        def at_once(count: int, distribution: Distribution = distribution) -> None:
            accumulate_(weights, streams[:count], scalars[:count], distribution)

        passes, short, normals = (
            min(column) for column in seconds(clock, each, lambda: at_once(few), plain, repeats=3)
        )
        began = clock()
        at_once(many)
        long = clock() - began
        yield {
            "d": d,
            "distribution": distribution,
            f"perturb_ x {few}, ms a seed": 1e3 * passes / few,
            "normal_ and add_, ms a seed": 1e3 * normals,
            f"one pass for {few}, ms a seed": 1e3 * short / few,
            f"one pass for {many}, ms a seed": 1e3 * long / many,
            "times faster than perturb_": passes / few / (long / many),
            "times faster than normal_ and add_": normals / (long / many),
        }


def show(row: Row) -> str:
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=4096, help="for the long rebuild")
    parser.add_argument(
        "--busy", action="store_true", help="count processor seconds of one thread instead"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = 1 if options.busy else options.threads
    clock = time.process_time if options.busy else time.perf_counter
    torch.set_num_threads(threads)
    rows = []
    for row in rows_of(clock, options.repeats, options.seeds):
        rows.append(row)
        if not options.json:
            print(show(row), flush=True)
    if options.json:
        print(
            json.dumps(
                {"threads": threads, "busy": options.busy, "torch": torch.__version__, "rows": rows}
            )
        )


def rows_of(clock: Clock, repeats: int, seeds: int) -> Iterator[Row]:
    for name in MODELS:
        yield from step_rows(name, clock, repeats)
    yield from rebuild_rows(1 << 24, 64, seeds, clock)


if __name__ == "__main__":
    main()
