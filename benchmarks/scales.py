"""What reconstruction noise costs a pretrained model where it is scaled by curvature.

    python scripts/fetch_smollm2.py
    FULLFED_SHARED=... python benchmarks/scales.py recipes/smollm2-gsm8k.toml

With scales (``fullfed.sketch.Scales``) noise has the energy sum((change / factor)**2) / K and is
spread as factor**2. AdamW changes parameters by as much where the loss is curved as where it is
flat; then noise costs least where factor**2 is one over the root of the curvature, for which
squared gradients stand, by row and column. They are measured on the clients' samples, or, without
any data, on text that the model itself writes. The table has what noise of the same coordinates
costs with scales over without, in loss on other samples of the first client. SmolLM2 takes ten
minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fullfed.data.batches import Batch, training_batches
from fullfed.randomness import Purpose, Stream
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import Assembly, assemble
from fullfed.runs.curvature import Curvature, own_texts, scales_of, squared_gradients
from fullfed.sketch import Scales, perturb_
from fullfed.training.loss import answer_loss, answer_loss_value

_PAIRS = 2  # of opposite noise
_NUMBERS = 200_000.0  # exact coordinates, whose noise is added


def alike(curvature: Curvature, *, rows: bool, columns: bool) -> Curvature:
    """As if a parameter's rows were alike, or its columns."""
    return {
        name: (torch.full_like(r, float(r.mean())) if rows else r,
               torch.full_like(c, float(c.mean())) if columns else c)
        for name, (r, c) in curvature.items()
    }  # fmt: skip


class Probe:
    """The base model and some clients' changes, which noise is as large as.

    Args:
        held_out: batches that noise is measured on.
    """

    def __init__(self, assembly: Assembly, held_out: Sequence[Batch]) -> None:
        self._model, self._held_out = assembly.model, held_out
        self._parameters = [p.detach() for p in assembly.model.parameters()]
        self._change = _change(assembly)

    def cost(self, scales: Scales | None) -> float:
        """What noise costs in loss, the mean of some pairs of opposite ones."""
        unit = [torch.zeros_like(p) for p in self._parameters]
        perturb_(unit, Stream(0, Purpose.PROBE), 1.0, scales=scales)  # of each factor's size
        energy = sum(
            float((c / u).double().square().sum()) for c, u in zip(self._change, unit, strict=True)
        )
        del unit
        sigma, before = math.sqrt(energy / _NUMBERS), [p.clone() for p in self._parameters]
        total = 0.0
        for number in range(2 * _PAIRS):
            stream = Stream(0, Purpose.PROBE, 1 + number // 2)
            perturb_(self._parameters, stream, sigma * (-1) ** number, scales=scales)
            total += self._loss() / (2 * _PAIRS)
            for p, old in zip(self._parameters, before, strict=True):
                p.copy_(old)
        return total - self._loss()

    def _loss(self) -> float:
        return sum(answer_loss_value(self._model, b) for b in self._held_out) / len(self._held_out)


def _change(assembly: Assembly) -> list[Tensor]:
    """What the first client's visit makes of the base model, which is as before then."""
    setting = assembly.method.setting
    local, model = setting.local, assembly.model
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=local.learning_rate, weight_decay=0.0)
    steps = local.batches(len(assembly.data.clients[0].examples))
    for batch in _batches(assembly, 0, local.batch_size, steps):
        optimizer.zero_grad()
        answer_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, local.clip or math.inf)
        optimizer.step()
    model.zero_grad()
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            change = p - old
            p.copy_(old)
            old.copy_(change)
    return before


def _batches(assembly: Assembly, client: int, size: int, count: int) -> list[Batch]:
    examples = assembly.data.clients[client].examples
    return list(training_batches(examples, size, count, Stream(1, Purpose.BATCHES, 0, client)))


def kinds(assembly: Assembly) -> Iterator[tuple[str, Scales | None]]:
    """The table's rows: what scales are made of, and the scales."""
    model = assembly.model
    parameters = dict(model.named_parameters())
    samples = [batch for client in (1, 2) for batch in _batches(assembly, client, 1, 12)]
    own = own_texts(model, assembly.recipe.federation.seed)
    yield "none", None
    for name, batches in (("the clients' samples", samples), ("the model's own text", own)):
        found = squared_gradients(model, parameters, batches)
        for kind, same in (
            ("tensors", {"rows": True, "columns": True}),
            ("rows", {"rows": False, "columns": True}),
            ("columns", {"rows": True, "columns": False}),
            ("rows and columns", {"rows": False, "columns": False}),
        ):
            yield f"{name}, {kind}", scales_of(alike(found, **same)).of(parameters)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe")
    arguments = parser.parse_args()
    assembly = assemble(load_recipe(arguments.recipe, arguments.set))
    size = assembly.method.setting.local.batch_size
    probe = Probe(assembly, _batches(assembly, 0, size, 12)[-2:])
    print("| scales | cost of noise | over none |\n|---|---|---|", flush=True)
    plain = math.nan
    for name, scales in kinds(assembly):
        cost = probe.cost(scales)
        plain = cost if math.isnan(plain) else plain
        print(f"| {name} | {cost:.5f} | {cost / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
