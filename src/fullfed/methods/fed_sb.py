"""Fed-SB: clients train only a small matrix R between fixed factors B and A (Singhal et al.,
"Fed-SB: A silver bullet for extreme communication efficiency and performance in (private)
federated LoRA fine-tuning", arXiv 2502.15436; LoRA-SB: Ponkshe et al., arXiv 2411.19557).

    W + B R A,    R_{r+1} = sum_i n_i R_r^(i) / sum_i n_i

B and A are one for all and stay, so the mean of R makes the mean of the clients' products, exactly,
and a client sends rank**2 numbers a matrix (LoRA-XS: Bałazy et al., arXiv 2405.17604). B, A and
the first R are the best approximation of that rank to the first update of full fine-tuning; the
first round is spent on its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import Batch
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update
from fullfed.federation.method import NOTHING
from fullfed.federation.replica import norm
from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.codec import (
    Change,
    Codec,
    Contribution,
    Encoded,
    Shapes,
    cannot_be_added,
)
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.scopes import A, Adapters, B, LoraOptions, W, adapted, initial_a
from fullfed.methods.setting import Setting
from fullfed.training.first_order import Improvement, train
from fullfed.training.watch import OnStep, unwatched

_INNER = B.removesuffix(".weight")
R = f"{_INNER}.core"  # what follows a target's name in the name of its R
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


class Inner(nn.Module):
    """B R in the place of PEFT's B. They are multiplied first, so that an exported adapter, whose
    B is the product, computes the same bits."""

    def __init__(self, b: Tensor, core: Tensor) -> None:
        super().__init__()
        self.weight, self.core = nn.Parameter(b), nn.Parameter(core)

    def product(self) -> Tensor:
        return self.weight @ self.core

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.product())


@dataclass(frozen=True)
class Core(Adapters):
    """R of every target trains.

    Attributes:
        fixed: whether B and A stay as they were drawn; else an update may bring others.
    """

    fixed: bool

    def attach(self, model: PreTrainedModel) -> None:
        """Insert adapters that change nothing yet: B and A are random, R is 0.

        B's columns and A's rows have length 1 and are orthogonal, in expectation; made exactly so,
        they would differ from machine to machine.

        Raises:
            UserError: as in ``Adapters``, or the rank is more than a matrix can have.
        """
        super().attach(model)
        own, rank = dict(model.named_parameters()), self.options.rank
        for number, target in enumerate(adapted(own)):
            a, b = own[target + A], own[target + B]
            most = min(len(b), a.shape[1])
            if rank > most:
                raise UserError(
                    f"method.rank: {rank} is more than the {most} rows or columns of {target}; "
                    "lower it, or leave that layer out of method.targets."
                )
            # Of variance 1 / in and 1 / out. The second draw of a target is its B.
            drawn = initial_a(self.seed, 1, number, b.T.shape).T.to(b.device).contiguous()
            with torch.no_grad():
                a.mul_(math.sqrt(3))
            inner = Inner(drawn * math.sqrt(3), torch.zeros(rank, rank, device=b.device))
            model.set_submodule(target + _INNER, inner)

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if name.endswith(R)}

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        changed = R if self.fixed else (A, B, R)
        return {name: p for name, p in model.named_parameters() if name.endswith(changed)}

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        """Make it an ordinary adapter of PEFT's, with B R for its B, then as ``Adapters``."""
        for name, module in list(model.named_modules()):
            if isinstance(module, Inner):
                rows, rank = module.weight.shape
                plain = nn.Linear(rank, rows, bias=False, device="meta")
                plain.weight = nn.Parameter(module.product().detach())
                model.set_submodule(name, plain)
        super().detach(model, folder)


@dataclass(frozen=True)
class GradientFirst(FirstOrder):
    """In the round that makes B and A a visit measures gradients and trains nothing."""

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        if plan.values.get(_FIRST) is not True:
            return super().improve(model, parameters, batches, plan, state, exact, on_step)
        local, memory = self.setting.local, self.setting.memory
        still = LocalTable(
            optimizer="sgd",
            clip=None,
            precision=local.precision,
            micro_batch_size=local.micro_batch_size,
        ).model_copy(update={"learning_rate": 0.0})
        with matrix_gradients(model) as sums:
            losses = train(model, parameters, batches, still, memory, on_step=on_step).losses
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


@dataclass(frozen=True, kw_only=True)
class FactorsFirst(Dense):
    """Averages R as ``Dense`` does; before that, once, makes all three factors.

    In the first round reports hold gradients of the matrices, and the update holds B, R and A. In
    all others both hold R.

    Attributes:
        replicated: the shapes of every A, B and R, by name.
        local: the recipe's table, whose optimizer's first step is approximated.
        options: the method's.
    """

    replicated: Shapes
    local: LocalTable
    options: FedSBOptions

    def plan(self, round: int, last: Update | None, shapes: Shapes) -> Encoded:
        return Encoded({_FIRST: round == 0 and self.options.start == "gradient"})

    def for_sums(self, bits: int, shapes: Shapes) -> Codec:
        """The first round's gradients, and what is made of them, are of other shapes."""
        raise cannot_be_added()

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        sent = self._sent(plan, shapes)
        after = {name: change.after[name] for name in sent}
        return super().encode(replace(change, after=after), plan, sent)

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return super().report_bytes(plan, self._sent(plan, shapes))

    def update_bytes(self, plan: Plan, shapes: Shapes, reports: int) -> int:
        sent = self.replicated if plan.values[_FIRST] is True else shapes
        return Dense.report_bytes(self, plan, sent)

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        super().check(report, plan, self._sent(plan, shapes))

    @property
    def plan_values(self) -> frozenset[str]:
        return frozenset([_FIRST])

    def update_values(self, update: Update) -> frozenset[str]:
        return frozenset([_FIRST] if _FIRST in update.values else [])

    def check_plan(self, plan: Plan, shapes: Shapes) -> None:
        super().check_plan(plan, shapes)
        if plan.values[_FIRST] is not (plan.round == 0 and self.options.start == "gradient"):
            raise MessageError("the plan does not say whether its round makes the factors")

    def check_update(self, update: Update, shapes: Shapes) -> None:
        first = update.round == 0 and self.options.start == "gradient"
        if update.values.get(_FIRST, False) is not first:
            raise MessageError("the update does not say whether it brings new factors")
        super().check_update(update, self.replicated if first else shapes)

    def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
        return super().decode(report, plan, self._sent(plan, shapes))

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        if plan.values[_FIRST] is not True:
            return super().norm(report, plan, shapes, parameters)
        return norm(self._first_update(gradient) for gradient in report.tensors.values())

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        if plan.values[_FIRST] is not True:
            return super().encode_update(aggregate, plan, shapes, last)
        tensors: dict[str, Tensor] = {}
        rank = self.options.rank
        for name, gradient in aggregate.tensors.items():
            # The server alone does this, so its bits are nobody else's to reproduce.
            u, s, v = torch.linalg.svd(self._first_update(gradient), full_matrices=False)
            target = name.removesuffix(W)
            tensors[target + B] = u[:, :rank].contiguous()
            tensors[target + R] = torch.diag(s[:rank])
            tensors[target + A] = v[:rank].contiguous()
        return Encoded({_FIRST: True}, tensors)

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        names = self.replicated if update.values.get(_FIRST) is True else shapes
        changed = {name: parameters[name] for name in names}
        super().apply(changed, update, shapes)

    def _sent(self, plan: Plan, shapes: Shapes) -> Shapes:
        """What a report holds."""
        if plan.values.get(_FIRST) is not True:
            return shapes
        return {
            target + W: torch.Size((self.replicated[target + B][0], self.replicated[target + A][1]))
            for target in adapted(self.replicated)
        }

    def _first_update(self, gradient: Tensor) -> Tensor:
        """What the optimizer's first step adds to a matrix; an adaptive one takes its sign."""
        direction = gradient if self.local.optimizer.lower() == "sgd" else gradient.sign()
        return direction * (-self.local.learning_rate / self.options.warmup)


def scope(seed: int, options: FedSBOptions) -> Core:
    """With alpha = rank the product of the factors is used as it is."""
    lora = LoraOptions(options.rank, float(options.rank), options.targets)
    return Core(seed, lora, fixed=options.start == "random")


def build(setting: Setting, options: FedSBOptions) -> Composition:
    return averaging(
        setting,
        scope=scope(setting.seed, options),
        local=GradientFirst(setting),
        codec=FactorsFirst(replicated=setting.replicated, local=setting.local, options=options),
    )
