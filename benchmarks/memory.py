"""Peak memory of one client's visit, beside what the formulas of docs/memory.md say.

    python benchmarks/memory.py                          15m to 270m in bfloat16, on a CPU
    python benchmarks/memory.py --shapes llama-7b        on a GPU

Each row is a process of its own: random weights in bfloat16, one visit of a few steps of AdamW
(SGD for Ferret) on random tokens; of a cyclic method the visit to the middle block.

- peak: on a GPU what torch had allocated at most; on a CPU the largest resident set during the
  visit, less that of the process before it had a model. (glibc is told to return whatever is
  freed, so that the resident set is what is allocated.)
- activations: bytes that the graph of one batch holds, weights apart.
- formula: what the weights, gradients and states should take, in bytes; activations added.
- time: seconds a token, training alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import collate
from fullfed.federation.messages import Plan
from fullfed.methods import fedavg, fedcybgd, fedkseed, ferret
from fullfed.methods.composition import Composition
from fullfed.methods.setting import LocalWork, Setting
from fullfed.training.first_order import FirstOrder
from fullfed.training.frozen import training_only
from fullfed.training.layers import layer_names
from fullfed.training.loss import answer_loss
from fullfed.training.memory import PLAIN, Memory
from shapes import SHAPES as KNOWN
from shapes import Shape, random_clients

SHAPES = {**KNOWN, "110m": Shape(768, 2048, 12, 12), "270m": Shape(1024, 2816, 16, 16)}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Large pieces come from the system one by one, and go back to it when they are freed.
_GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Sizes:
    """Elements: d of the model, d_b of the middle block, the largest tensor of each; layers B."""

    d: int
    block: int
    widest: int
    largest: int
    layers: int


@dataclass(frozen=True)
class Row:
    """A method with its memory options, and the bytes that its formula says, activations apart."""

    build: Callable[[Setting], Composition]
    formula: Callable[[Sizes], float]
    memory: Memory = PLAIN
    optimizer: str = "adamw"
    dropped: Callable[[int], list[int]] | None = None


def _cyclic(setting: Setting, **options: Any) -> Composition:
    return fedcybgd.build(setting, fedcybgd.FedCyBGDOptions(**options))


def _half(layers: int) -> list[int]:
    """Half of the other layers, neither the first nor the last."""
    free = [b for b in range(1, layers - 1) if b != layers // 2]
    return free[: (layers - 1) // 2]


_LEAN = Memory(optimizer_in_backward=True)
_IN_INT8, _IN_INT4 = replace(_LEAN, frozen="int8"), replace(_LEAN, frozen="int4")
_HEAD = (
    "| method | peak | activations | formula | peak / formula | FedAvg's / peak | a token |\n"
    "|---|---|---|---|---|---|---|"
)
_LARGE = 14  # a block's bytes an element: copy, float32 master and two moments, and the copy before


def _frozen(s: Sizes, bits: float, dropped: int = 0) -> float:
    """What is packed and what trains; or afterwards the whole model again, with the trained part's
    copy, its float32 master, the report and the residual."""
    packed = bits / 8 * (s.d - (1 + dropped) * s.block) + 2 * s.block
    during = packed + _LARGE * s.block + 6 * s.largest + 2 * s.widest
    return max(during, 2 * s.d + 12 * s.block)


ROWS = {
    "fedavg": Row(
        lambda s: fedavg.build(s, fedavg.FedAvgOptions(precision="bfloat16")),
        lambda s: 20 * s.d + 8 * s.widest,
    ),
    "ferret (sgd)": Row(
        lambda s: ferret.build(s, ferret.FerretOptions(coordinates=4096, server_step=1.0)),
        lambda s: 12 * s.d,
        optimizer="sgd",
    ),
    "fedkseed": Row(
        lambda s: fedkseed.build(s, fedkseed.FedKSeedOptions()),
        lambda s: 2 * s.d + 2 * s.widest,
    ),
    "fedcybgd": Row(_cyclic, lambda s: 2 * s.d + (_LARGE + 4) * s.block),
    "+ optimizer in backward": Row(
        _cyclic, lambda s: 2 * s.d + _LARGE * s.block + 6 * s.largest, _LEAN
    ),
    "+ checkpointed layers": Row(
        _cyclic,
        lambda s: 2 * s.d + _LARGE * s.block + 6 * s.largest,
        replace(_LEAN, checkpoint_activations=True),
    ),
    "+ frozen in int8": Row(_cyclic, lambda s: _frozen(s, 8), _IN_INT8),
    "+ frozen in int4": Row(_cyclic, lambda s: _frozen(s, 4.25), _IN_INT4),
    "+ surrogate of 0.5 in int8": Row(
        lambda s: _cyclic(s, surrogate=0.5),
        lambda s: _frozen(s, 8, len(_half(s.layers))),
        _IN_INT8,
        dropped=_half,
    ),
    "block x sketch": Row(
        lambda s: fedcybgd.build_cyclic_ferret(
            s, fedcybgd.CyclicFerretOptions(coordinates=4096, server_step=1.0)
        ),
        lambda s: 2 * s.d + _LARGE * s.block + 6 * s.largest,
        _LEAN,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["15m", "110m", "270m"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments)))
        return
    for shape in arguments.shapes:
        print(f"\n### {shape}\n\n{_HEAD}", flush=True)
        whole = None
        for row in arguments.rows:
            found = in_own_process(shape, row, arguments)
            whole = found.get("peak") if row == "fedavg" else whole
            print(line(row, found, whole), flush=True)


def in_own_process(shape: str, row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = ["--length", "--batch", "--steps"]
    values = [arguments.length, arguments.batch, arguments.steps]
    extra = [str(item) for pair in zip(options, values, strict=True) for item in pair]
    command = [sys.executable, __file__, "--one", shape, row, *extra]
    done = subprocess.run(
        command, env={**os.environ, **_GLIBC}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {
            "failure": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "killed"
        }
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(shape_name: str, row_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One visit in this process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _visit("tiny", row_name, replace_steps(arguments, 1), device)  # code and threads are there now
    empty = _now(device)
    return _visit(shape_name, row_name, arguments, device, empty)


def replace_steps(arguments: argparse.Namespace, steps: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(arguments), "steps": steps})


def _visit(
    shape_name: str, row_name: str, arguments: argparse.Namespace, device: str, empty: int = 0
) -> dict[str, Any]:
    shape, row = SHAPES[shape_name], ROWS[row_name]
    model = shape.model(device).to(torch.bfloat16).eval()
    work = LocalWork(arguments.batch, steps=arguments.steps)
    parameters = dict(model.named_parameters())
    setting = Setting(
        seed=0, clients=10**6, cohort_size=1, merge_weights="samples",
        optimizer=FirstOrder(
            row.optimizer, 1e-4, clip=None, memory=row.memory  # type: ignore[arg-type]
        ),
        work=work,
        shapes={name: p.shape for name, p in parameters.items()},
        layers=layer_names(model),
    )  # fmt: skip
    method = row.build(setting)
    middle = shape.layers // 2
    plan = Plan(0, 0, {**method.plans(0, None)[0].values})
    if method.parts:
        plan = Plan(0, 0, {"block": middle})
    if row.dropped:
        plan = Plan(0, 0, {"block": middle, "dropped": row.dropped(shape.layers)})
    examples = random_clients(
        1, arguments.batch * arguments.steps, arguments.length, shape.vocabulary
    )[0]
    trained = (
        [parameters[n] for n in setting.layers[middle]]
        if method.parts
        else list(parameters.values())
    )
    sizes = Sizes(
        sum(p.numel() for p in parameters.values()),
        sum(parameters[n].numel() for n in setting.layers[middle]),
        max(p.numel() for p in parameters.values()),
        max(parameters[n].numel() for n in setting.layers[middle]),
        shape.layers,
    )
    _forget_peak(device)
    visit = method.train(model, plan, examples, None)
    peak = _peak(device) - empty
    activations = 0
    if row_name != "fedkseed":
        with method._held(model, plan, trained):
            activations = _activations(
                model, trained, setting.optimizer, examples[: arguments.batch]
            )
    tokens = arguments.batch * arguments.steps * arguments.length
    return {
        "peak": peak,
        "activations": activations,
        "formula": row.formula(sizes) + activations,
        "seconds_a_token": visit.train_seconds / tokens,
    }


def _activations(
    model: PreTrainedModel, trained: list[Tensor], optimizer: FirstOrder, examples: list[Any]
) -> int:
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        training_only(model, trained),
        optimizer._checkpointing(model),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        answer_loss(model, collate(examples).to(model.device))
    return sum(held.values())


def _now(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _resident("VmRSS")


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        _CLEAR.write_text("5")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def line(name: str, found: dict[str, Any], whole: int | None) -> str:
    if "failure" in found:
        return f"| {name} | {found['failure']} | | | | | |"
    times = f"{whole / found['peak']:.2f}" if whole else ""
    return (
        f"| {name} | {_mb(found['peak'])} | {_mb(found['activations'])} "
        f"| {_mb(found['formula'])} | {found['peak'] / found['formula']:.2f} | {times} "
        f"| {1000 * found['seconds_a_token']:.1f} ms |"
    )


def _mb(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
