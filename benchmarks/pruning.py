"""Whether weights can be pruned from the frozen blocks of FedCyBGD's submodels, and DSnoT helps.

    FULLFED_SHARED=... python benchmarks/pruning.py recipes/fedcybgd.toml
    FULLFED_SHARED=... python benchmarks/pruning.py recipes/fedcybgd.toml --visits 48

Wanda (Sun et al. 2024, arXiv 2306.11695) keeps in each row of a matrix the weights of the largest
|w_rj| ||x_j||, x_j an input's values over the calibration texts. DSnoT (Zhang et al. 2024, arXiv
2310.08915) goes on without training: with the expected error of a row's output, e_r = sum over the
pruned of w_rj E[x_j], it brings back the pruned weight of the largest sign(e_r) w_rj E[x_j] /
Var[x_j] and prunes the kept one of the smallest |w_rj| ||x_j|| among those with
sign(e_r) w_rj E[x_j] < 0, up to 50 times, while |e_r| is above 0.1.

Without --visits: the loss of the recipe's base model on the test samples, its layers pruned by
weights alone, by Wanda, by Wanda and DSnoT, and by DSnoT on attention alone, which is the released
code's default; calibrated on texts that the model itself writes, or on clients' samples. With it:
the loss after so many visits of the recipe's method, where each visit trains on a model whose other
blocks are pruned, or in 4 bits, or half of them left out, as ``method.surrogate`` does.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fullfed.data.batches import Batch, training_batches
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.messages import Plan, number
from fullfed.methods.schedules import Surrogate
from fullfed.randomness import Purpose, Stream
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import Assembly, assemble
from fullfed.runs.curvature import own_texts
from fullfed.training.layers import find_layers, pass_on
from fullfed.training.loss import answer_logits
from fullfed.training.quantised import Quantised

CYCLES, THRESHOLD = 50, 0.1  # the released code's defaults


@dataclass(frozen=True)
class Inputs:
    """What comes into a linear layer, over all tokens of the calibration texts.

    Attributes:
        mean, variance, norm: float32, shape (columns,); norm is the root of the sum of squares.
    """

    mean: Tensor
    variance: Tensor
    norm: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Inputs:
        """Of rows of inputs, shape (tokens, columns)."""
        return cls(x.mean(0), x.var(0, unbiased=False), x.norm(dim=0))


def least(scores: Tensor, share: float) -> Tensor:
    """Which numbers of each row are the smallest, a share of them: True where they are."""
    count = int(share * scores.shape[1])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], True)


def wanda(weight: Tensor, inputs: Inputs, share: float) -> Tensor:
    """Which weights are pruned, shape (rows, columns)."""
    return least(weight.abs() * inputs.norm, share)


def dsnot(weight: Tensor, inputs: Inputs, pruned: Tensor, cycles: int = CYCLES) -> Tensor:
    """Which weights are pruned when a mask has been refined; as many in each row.

    A row also stops where a swap would not make its expected error smaller. (The released code
    stops where the error would change its sign.)
    """
    pruned, part = pruned.clone(), weight * inputs.mean
    score, infinite = weight.abs() * inputs.norm, torch.tensor(torch.inf)
    error = (part * pruned).sum(1, keepdim=True)
    for _ in range(cycles):
        signed = error.sign() * part
        gain = torch.where(pruned, signed / inputs.variance.clamp(min=1e-12), -infinite)
        grown = gain.argmax(1, keepdim=True)
        able = ~pruned & (signed < 0)
        cut = torch.where(able, score, infinite).argmin(1, keepdim=True)
        after = error - part.gather(1, grown) + part.gather(1, cut)
        swaps = (error.abs() > THRESHOLD) & able.any(1, keepdim=True) & pruned.any(1, keepdim=True)
        swaps &= after.abs() < error.abs()
        if not swaps.any():
            break
        pruned.scatter_(1, grown, pruned.gather(1, grown) & ~swaps)
        pruned.scatter_(1, cut, pruned.gather(1, cut) | swaps)
        error = torch.where(swaps, after, error)
    return pruned


Pruner = Callable[[str, Tensor, Inputs, float], Tensor]
PRUNERS: dict[str, Pruner] = {
    "magnitude": lambda name, w, x, share: least(w.abs(), share),
    "wanda": lambda name, w, x, share: wanda(w, x, share),
    "wanda, dsnot": lambda name, w, x, share: dsnot(w, x, wanda(w, x, share)),
    "wanda, dsnot on attention": lambda name, w, x, share: (
        wanda(w, x, share) if "mlp" in name else dsnot(w, x, wanda(w, x, share))
    ),
}


@torch.no_grad()
def prune(
    model: PreTrainedModel,
    texts: Sequence[Batch],
    share: float,
    pruner: Pruner,
    spared: int | None = None,
) -> None:
    """Prune the linear layers of a model's layers in place, one layer after another, each by what
    comes into it where those before are pruned already.

    Args:
        spared: the number of a layer that stays whole.
    """
    for number_of, layer in enumerate(find_layers(model)[1]):
        if number_of == spared:
            continue
        linear = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        for name, inputs in listened(model, linear, texts).items():
            weight = linear[name].weight
            weight[pruner(name, weight.float(), inputs, share)] = 0.0


def listened(
    model: PreTrainedModel, modules: dict[str, nn.Linear], texts: Sequence[Batch]
) -> dict[str, Inputs]:
    """What comes into some modules, by the modules' names."""
    heard: dict[str, list[Tensor]] = {name: [] for name in modules}
    with ExitStack() as hooks:
        for name, module in modules.items():

            def hear(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                heard[name].append(inputs[0].flatten(0, -2).float())

            hooks.callback(module.register_forward_pre_hook(hear).remove)
        for batch in texts:
            answer_logits(model, batch.to(model.device))
    return {name: Inputs.of(torch.cat(rows)) for name, rows in heard.items()}


def calibrations(assembly: Assembly) -> Iterator[tuple[str, list[Batch]]]:
    """Texts to prune by, and whose they are."""
    seed = assembly.recipe.federation.seed
    yield "the model's own texts", own_texts(assembly.model, seed)
    samples = [
        batch
        for client in range(4)
        for batch in training_batches(
            assembly.data.clients[client].examples, 1, 4, Stream(seed, Purpose.PROBE, 0, client)
        )
    ]
    yield "clients' samples", samples


def loss_of(assembly: Assembly, model: PreTrainedModel) -> float:
    """On the test samples."""
    return evaluate_loss(model, assembly.data.test, assembly.recipe.evaluated_together)


def tables(assembly: Assembly, shares: Sequence[float]) -> None:
    """Print losses of pruned base models."""
    print(f"whole: {loss_of(assembly, assembly.model):.4f}\n", flush=True)
    print("| calibrated on | pruned | " + " | ".join(PRUNERS) + " |")
    print("|---|---|" + "---|" * len(PRUNERS), flush=True)
    for whose, texts in calibrations(assembly):
        for share in shares:
            losses = []
            for pruner in PRUNERS.values():
                model = copy.deepcopy(assembly.model)
                prune(model, texts, share, pruner)
                losses.append(f"{loss_of(assembly, model):.4f}")
            print(f"| {whose} | {share:g} | {' | '.join(losses)} |", flush=True)


Surrogating = Callable[[PreTrainedModel, Plan], None]


def surrogates(
    assembly: Assembly, texts: Sequence[Batch], shares: Sequence[float]
) -> Iterator[tuple[str, Surrogating]]:
    """What a visit trains on in the place of the whole model: changes a copy of it."""
    seed, count = assembly.recipe.federation.seed, len(assembly.method.blocks)
    half = Surrogate(seed, count, 0.5)

    def leave_out(model: PreTrainedModel, plan: Plan) -> None:
        for n in half.dropped(plan.round, plan.client, int(number(plan, "block"))):
            find_layers(model)[1][int(str(n))].forward = pass_on

    def round_off(model: PreTrainedModel, plan: Plan) -> None:
        for n, layer in enumerate(find_layers(model)[1]):
            for module in layer.modules() if n != number(plan, "block") else ():
                if isinstance(module, nn.Linear):
                    module.weight.data = Quantised.of(module.weight, 4).dequantised()

    def pruning(share: float, name: str) -> Surrogating:
        def change(model: PreTrainedModel, plan: Plan) -> None:
            prune(model, texts, share, PRUNERS[name], spared=int(number(plan, "block")))

        return change

    yield "the whole model", lambda model, plan: None
    yield "half of the other blocks", leave_out
    yield "the other blocks in 4 bits", round_off
    for share in shares:
        for name in ("wanda", "wanda, dsnot"):
            yield f"{share:g} pruned, {name}", pruning(share, name)


def visits(assembly: Assembly, count: int, change: Surrogating) -> float:
    """The loss after so many visits, each to a changed copy of the newest model."""
    model, method = copy.deepcopy(assembly.model), assembly.method
    for round in range(count):
        for plan in method.plans(round, None):
            alone = copy.deepcopy(model)
            change(alone, plan)
            visit = method.train(alone, plan, assembly.data.clients[plan.client].examples, None)
            with torch.no_grad():
                method.apply(model, method.alone(visit.report, plan, None, 1.0))
    return loss_of(assembly, model)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--visits", type=int, default=0)
    parser.add_argument("--only", default="", help="rows with this in their name, of visits")
    arguments = parser.parse_args()
    assembly = assemble(load_recipe(arguments.recipe, arguments.set))
    if not arguments.visits:
        tables(assembly, arguments.shares)
        return
    texts = own_texts(assembly.model, assembly.recipe.federation.seed)
    print(f"| trained on | loss after {arguments.visits} visits |\n|---|---|", flush=True)
    for name, change in surrogates(assembly, texts, arguments.shares):
        if arguments.only not in name:
            continue
        print(f"| {name} | {visits(assembly, arguments.visits, change):.4f} |", flush=True)


if __name__ == "__main__":
    main()
