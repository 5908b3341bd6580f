"""Fed-SB: Singhal et al., "Fed-SB: A silver bullet for extreme communication efficiency and
performance in (private) federated LoRA fine-tuning" (arXiv 2502.15436), on LoRA-SB: Ponkshe et al.
(arXiv 2411.19557).

    W + B R A,    R_{r+1} = sum_i n_i R_r^(i) / sum_i n_i

B and A are one for all and stay, so the mean of R makes the mean of the clients' products, exactly,
and a client sends rank**2 numbers a matrix. B, A and the first R are the best approximation of that
rank to the first update of full fine-tuning; the first round is spent on its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan, Report, Update
from fullfed.methods.adapters import A, B, LoraOptions, W, adapted
from fullfed.methods.codecs import Change, Payload
from fullfed.methods.composition import Composition
from fullfed.methods.dense import Dense
from fullfed.methods.local import ByGradients, Improvement
from fullfed.methods.lora_xs import Core, R
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.setting import Setting
from fullfed.methods.steps import ConstantStep
from fullfed.training.first_order import FirstOrder

_FIRST = "first"  # in plans and updates: whether the round is the one that makes B and A


@dataclass(frozen=True)
class FedSBOptions:
    """
    Attributes:
        rank: r; R has the shape (r, r).
        targets: the linear layers that get an adapter, by the last parts of their names.
        start: whether B and A come from the clients' first gradient, or are random and R is 0.
        warmup: the first update has the local learning rate divided by this.
    """

    rank: int = 16
    targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    start: Literal["gradient", "random"] = "gradient"
    warmup: int = 100

    def __post_init__(self) -> None:
        LoraOptions(self.rank, targets=self.targets)  # complains of both
        if self.warmup < 1:
            raise ValueError("warmup is at least 1")


@dataclass(frozen=True)
class GradientFirst(ByGradients):
    """In the round that makes B and A a visit measures gradients and trains nothing."""

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
    ) -> Improvement:
        if plan.values.get(_FIRST) is not True:
            return super().improve(model, parameters, batches, plan)
        still = FirstOrder("sgd", learning_rate=0.0, memory=self.optimizer.memory)
        with matrix_gradients(model) as sums:
            losses = still.improve(model, list(parameters.values()), batches)
        return Improvement(losses, exact={name: g / len(losses) for name, g in sums.items()})


@contextmanager
def matrix_gradients(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Inside, backward passes add up the gradients of the targets' matrices W.

    Each is the product of what comes back to a layer and what went into it, so W itself needs no
    gradient and may be held in few bits.

    Yields:
        float32, shape (out, in), by W's name.
    """
    sums: dict[str, Tensor] = {}

    def listener(name: str) -> Callable[..., None]:
        def listen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach().flatten(0, -2).float()

            def add(gradient: Tensor) -> None:
                product = gradient.flatten(0, -2).float().T @ x
                sums[name] = sums[name].add_(product) if name in sums else product

            if output.requires_grad:
                output.register_hook(add)  # type: ignore[no-untyped-call]

        return listen

    with ExitStack() as stack:
        for target in adapted(name for name, _ in model.named_parameters()):
            layer = model.get_submodule(target)
            stack.callback(layer.register_forward_hook(listener(target + W)).remove)
        yield sums


@dataclass(frozen=True)
class FactorsFirst:
    """Averages R as ``Dense`` does; before that, once, makes all three factors.

    In the first round reports hold gradients of the matrices, and the update holds B, R and A. In
    all others both hold R.

    Attributes:
        shapes: of every R, by name.
        replicated: of every A, B and R, by name.
        optimizer: whose first step is approximated.
        options: the method's.
    """

    shapes: Mapping[str, torch.Size]
    replicated: Mapping[str, torch.Size]
    optimizer: FirstOrder
    options: FedSBOptions

    @property
    def cumulative(self) -> bool:
        return False

    def plan(self, round: int, last: Update | None) -> Payload:
        return Payload({_FIRST: round == 0 and self.options.start == "gradient"})

    def encode(self, change: Change, plan: Plan) -> Payload:
        reports = self._reports(plan)
        after = {name: change.after[name] for name in reports.shapes}
        return reports.encode(replace(change, after=after), plan)

    def report_bytes(self, plan: Plan) -> int:
        return self._reports(plan).report_bytes(plan)

    def check(self, report: Report, plan: Plan) -> None:
        self._reports(plan).check(report, plan)

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        merged = self._reports(plan).merge(reports, plan, last)
        if plan.values[_FIRST] is not True:
            return merged
        tensors: dict[str, Tensor] = {}
        rank = self.options.rank
        for name, gradient in merged.tensors.items():
            # The server alone does this, so its bits are nobody else's to reproduce.
            u, s, v = torch.linalg.svd(self._first_update(gradient), full_matrices=False)
            target = name.removesuffix(W)
            tensors[target + B] = u[:, :rank].contiguous()
            tensors[target + R] = torch.diag(s[:rank])
            tensors[target + A] = v[:rank].contiguous()
        return Payload({_FIRST: True}, tensors)

    def energy(self, merged: Payload) -> float | None:
        return None

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        names = self.replicated if update.values.get(_FIRST) is True else self.shapes
        changed = {name: parameters[name] for name in names}
        Dense(self.shapes, "float32").apply(changed, update)

    def _reports(self, plan: Plan | Payload) -> Dense:
        if plan.values.get(_FIRST) is not True:
            return Dense(self.shapes, "float32")
        matrices = {
            target + W: torch.Size((self.replicated[target + B][0], self.replicated[target + A][1]))
            for target in adapted(self.replicated)
        }
        return Dense(matrices, "float32")

    def _first_update(self, gradient: Tensor) -> Tensor:
        """What the optimizer's first step adds to a matrix; AdamW takes the gradient's sign."""
        direction = gradient.sign() if self.optimizer.optimizer == "adamw" else gradient
        return direction * (-self.optimizer.learning_rate / self.options.warmup)


def scope(seed: int, options: FedSBOptions) -> Core:
    """With alpha = rank the product of the factors is used as it is."""
    lora = LoraOptions(options.rank, float(options.rank), options.targets)
    return Core(seed, lora, fixed=options.start == "random")


def build(setting: Setting, options: FedSBOptions) -> Composition:
    return Composition(
        setting=setting,
        scope=scope(setting.seed, options),
        local=GradientFirst(setting.optimizer),
        codec=FactorsFirst(setting.shapes, setting.replicated, setting.optimizer, options),
        step=ConstantStep(1.0),
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
    )
