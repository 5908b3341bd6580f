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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch, training_batches
from fullfed.evaluation.generation import evaluating
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import Assembly, assemble
from fullfed.sketch import Scales, perturb_
from fullfed.training.loss import answer_loss, answer_loss_value

_STEPS = 8  # exponents of scales to a factor of 2
_LEAST = 0.1  # of a tensor's mean: no row's or column's curvature counts as less
_PAIRS = 2  # of opposite noise
_NUMBERS = 200_000.0  # exact coordinates, whose noise is added
_TEXTS, _LENGTH = 8, 128  # of the model's own

Curvature = list[tuple[Tensor, Tensor]]  # of each tensor, its rows' and its columns', float64


def squared_gradients(model: PreTrainedModel, losses: Iterator[Tensor]) -> Curvature:
    """Their means over rows and over columns, of the losses' gradients."""
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for loss in losses:
        for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient.double().square()
    return [(t.flatten(1).mean(1), t.flatten(1).mean(0)) if t.ndim > 1 else (t, t.mean()[None])
            for t in sums]  # fmt: skip


def own_text(model: PreTrainedModel, seed: int) -> Tensor:
    """Token ids, shape (_TEXTS, _LENGTH), drawn from the model itself, from its first token on."""
    ids = torch.full((_TEXTS, 1), model.config.bos_token_id or 0, device=model.device)
    chances = torch.tensor(uniforms(Stream(seed, Purpose.PROBE), _TEXTS * _LENGTH))
    chances, cache = chances.view(_LENGTH, _TEXTS).to(model.device), None
    with evaluating(model):
        for drawn in chances[1:]:
            out = model(ids[:, -1:], past_key_values=cache, use_cache=True)
            cache, shares = out.past_key_values, out.logits[:, -1].double().softmax(-1).cumsum(-1)
            found = (shares < drawn[:, None]).sum(-1).clamp(max=shares.shape[-1] - 1)
            ids = torch.cat([ids, found[:, None]], dim=1)
    return ids


def scales_of(curvature: Curvature, *, rows: bool = True, columns: bool = True) -> Scales:
    """Of factors curvature**(-1/4); without rows or columns, as if these were alike."""
    exponents: tuple[list[Tensor], list[Tensor]] = ([], [])
    whole = max(float(r.mean()) for r, _ in curvature)
    for by_row, by_column in curvature:
        mean = by_row.mean()
        own = _exponents(by_row, mean) if rows or len(by_column) == 1 else torch.zeros_like(by_row)
        exponents[0].append(own)
        across = _exponents(by_column, mean) if columns else torch.zeros_like(by_column)
        exponents[1].append(across)
        (own if len(by_column) == 1 else across).add_(_exponents(mean, torch.tensor(whole)))
    as_whole = [
        tuple(e.round().clamp(-127, 127).to(torch.int8) for e in each) for each in exponents
    ]
    return Scales(*as_whole)


def _exponents(values: Tensor, mean: Tensor) -> Tensor:
    """Of factors (value / mean)**(-1/4)."""
    return -_STEPS / 4 * (values / mean).clamp(min=_LEAST if values.ndim else 1e-12).log2()


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
    for batch in _batches(assembly, 0, local.batch_size, local.steps):
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


def kinds(assembly: Assembly) -> Iterator[tuple[str, Callable[[], Scales | None]]]:
    """The table's rows: what scales are made of, and a function that makes them."""
    model = assembly.model
    samples = [_batches(assembly, client, 1, 12) for client in (1, 2)]
    data = squared_gradients(model, (answer_loss(model, b) for one in samples for b in one))
    text = own_text(model, assembly.recipe.federation.seed)
    own = squared_gradients(model, (model(ids[None], labels=ids[None]).loss for ids in text))
    yield "none", lambda: None
    for name, found in (("the clients' samples", data), ("the model's own text", own)):
        yield f"{name}, tensors", lambda f=found: scales_of(f, rows=False, columns=False)  # type: ignore[misc]
        yield f"{name}, rows", lambda f=found: scales_of(f, columns=False)  # type: ignore[misc]
        yield f"{name}, columns", lambda f=found: scales_of(f, rows=False)  # type: ignore[misc]
        yield f"{name}, rows and columns", lambda f=found: scales_of(f)  # type: ignore[misc]


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
    for name, make in kinds(assembly):
        cost = probe.cost(make())
        plain = cost if math.isnan(plain) else plain
        print(f"| {name} | {cost:.5f} | {cost / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
