"""BlockLLM: a small set of tensors is trained, and another one when the loss no longer falls
(Ramesh et al., "BlockLLM: Memory-efficient adaptation of LLMs by selecting and optimizing the
right coordinate blocks", arXiv 2406.17296).

    S = the tensors of the largest ||g_l|| / f_l, while they fit into (1 - s) of the parameters
    client:    w_S' = w_S after Adam on S alone, its moments on S alone
    everyone:  w_S <- the mean of w_S'
    when the mean loss is no less than its mean over m rounds: another S, and new moments

The set is the same for all clients and follows from the last update (selection.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import SKIPPED, Plan, Report, Update, check_values
from fullfed.federation.method import NOTHING, Visit, VisitError
from fullfed.headway import Observer, unobserved
from fullfed.methods.checks import MessageChecks
from fullfed.methods.codecs.codec import Shapes, check_tensors
from fullfed.methods.composition import Composition
from fullfed.methods.own_training import gradient_work
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import Everything
from fullfed.methods.selection import (
    MEASURE,
    NORMS,
    OF_PLANS,
    OF_UPDATES,
    SELECTED,
    SELECTION,
    Selection,
    SelectionRule,
    packed,
    told_norms,
)
from fullfed.methods.server_step import check_server_step, server_step
from fullfed.methods.setting import Setting
from fullfed.randomness import Purpose, Stream
from fullfed.training.layers import training_only
from fullfed.training.loss import answer_loss
from fullfed.training.precision import autocast, matrix_units


@dataclass(frozen=True)
class BlockLLMOptions:
    """
    Attributes:
        sparsity (share): s, of the parameters, that is not trained at a time.
        patience (rounds): m; another set is chosen after a round whose loss is no less than the
            mean of the last m rounds'.
        server_step: how much of the change is applied; "auto" is all of it, or with a sketch what
            the measured curvature allows.
    """

    sparsity: float = 0.9
    patience: int = 10
    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError("sparsity is a share, at least 0 and below 1")
        if self.patience < 2:
            raise ValueError("patience is at least 2")
        check_server_step(self.server_step)


@dataclass(frozen=True)
class SetChecks(MessageChecks):
    """Refuses messages that are not about a set of tensors.

    Attributes:
        rule: how sets are chosen.
    """

    rule: SelectionRule

    def plan(self, plan: Plan) -> None:
        check_values(plan, [*self.codec.plan_values, *OF_PLANS])
        self.rule.check_set(plan)
        if type(plan.values[MEASURE]) is not bool:
            raise MessageError("the plan does not say whether norms are measured")
        self.codec.check_plan(plan, chosen_of(plan, self.whole))

    def report(self, report: Report) -> None:
        check_values(report, self.codec.report_values | self.step.report_values | {NORMS})

    def update_values(self, update: Update) -> None:
        own = {name: update.values[name] for name in OF_UPDATES if name in update.values}
        check_values(replace(update, values=own), OF_UPDATES)
        super().update_values(without_set(update))
        self.rule.check_update(update)

    def update(self, update: Update) -> None:
        self.update_values(update)
        if SKIPPED in update.values:
            check_tensors(update, {})
            return
        self.codec.check_update(without_set(update), chosen_of(update, self.whole))


@dataclass(frozen=True)
class BlockLLM(Composition):
    """A method whose visits train a set of tensors that the plan names.

    Attributes:
        rule: how sets are chosen.
    """

    rule: SelectionRule = field(kw_only=True)

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: the choices do not go together, or norms would tell what privacy hides.
        """
        super().__post_init__()
        if self.protects_records:
            raise UserError(
                "privacy.protects: clients of blockllm tell norms of gradients without noise; take "
                "another method, such as fedavg or ferret, or protects = 'client'."
            )

    @property
    def parts(self) -> tuple[Shapes, ...]:
        """Sets are of about the same size; the first."""
        first = self.rule.first.plan_values(measure=True)
        return (self.shapes_of(Plan(0, 0, first)),)

    @cached_property
    def _checks(self) -> SetChecks:
        whole, keeps = self.setting.shapes, self.stateful
        return SetChecks(self.codec, self.step, whole, (), False, keeps, self.rule)

    def plans(self, round: int, last: Update | None) -> list[Plan]:
        selection = self._selection(last)
        values = selection.plan_values(self.rule.measures(selection))
        shapes = self.shapes_of(Plan(round, 0, values))
        common = self.codec.plan(round, None, shapes)
        return [
            Plan(round, client, {**common.values, **values}, common.tensors)
            for client in self.schedule.visits(round)
        ]

    def _selection(self, last: Update | None) -> Selection:
        """That of the round after an update."""
        return self.rule.first if last is None else self.rule.next(Selection.of(last))

    def shapes_of(self, plan: Plan) -> Shapes:
        return chosen_of(plan, self.setting.shapes)

    def client_state(self, plan: Plan) -> str | None:
        """What is kept is of the set's tensors, and a new set begins anew."""
        self._checks.plan(plan)
        return f"set-{plan.values[SELECTION]!r}" if self.stateful else None

    def train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        state: Mapping[str, Tensor] = NOTHING,
        exact: Mapping[str, Tensor] = NOTHING,
        observer: Observer = unobserved,
    ) -> Visit:
        visit = super().train(model, plan, examples, last, state, exact, observer)
        norms = self._norms(model, plan, examples) if plan.values[MEASURE] else []
        if not all(math.isfinite(norm) for norm in norms):
            raise VisitError("a gradient is not finite; lower local.learning_rate")
        values = {**visit.report.values, NORMS: packed(norms)}
        return replace(visit, report=replace(visit.report, values=values))

    def _norms(
        self, model: PreTrainedModel, plan: Plan, examples: Sequence[TokenizedExample]
    ) -> list[float]:
        """Of the gradients that the visit began with, one a tensor of the model."""
        local = self.setting.local
        stream = Stream(self.setting.seed, Purpose.BATCHES, plan.round, plan.client)
        batch = next(iter(self.local.batches(examples, local.batch_size, 1, stream, plan)))
        part = batch.split(local.micro_batch_size)[0]
        parameters = self.scope.trained(model)
        with matrix_units(local.precision):
            found = gradient_norms(model, parameters, part, local.precision)
        return [found[name] for name in self.setting.shapes]

    def check(self, report: Report, plan: Plan) -> None:
        super().check(report, plan)
        self.rule.check_norms(report, bool(plan.values[MEASURE]))

    def report_limit(self, plan: Plan) -> int:
        return super().report_limit(plan) + self.norms_bytes

    @property
    def norms_bytes(self) -> int:
        """Of a report that tells norms, what these are."""
        return 4 * self.rule.count

    def aggregate(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        heard: list[tuple[float, tuple[float, ...]]] = []

        def listened() -> Iterator[Report]:
            for report in reports:
                heard.append((report.loss, told_norms(report)))
                yield report

        update, mean = super().aggregate(plans, listened(), last), self.aggregation.scalar
        norms = [mean(column) for column in zip(*(own for _, own in heard), strict=True)]
        known = self._selection(last).after(mean([x for x, _ in heard]), norms, self.rule.patience)
        return replace(update, values={**update.values, **known.values()})

    def alone(self, report: Report, plan: Plan, last: Update | None, share: float) -> Update:
        update = super().alone(report, plan, last, share)
        return replace(update, values={**update.values, SELECTED: plan.values[SELECTED]})

    def apply(
        self, model: PreTrainedModel, update: Update, moments: Mapping[str, Tensor] = NOTHING
    ) -> None:
        if update.skipped:
            return
        shapes, parameters = chosen_of(update, self.setting.shapes), self.scope.replicated(model)
        own = {name: parameters[name] for name in shapes}
        self.codec.apply(own, without_set(update), shapes)

    def _codecs_last(self, last: Update | None) -> Update | None:
        return None  # the last one may be about another set


def chosen_of(message: Plan | Update, shapes: Shapes) -> Shapes:
    """The set of tensors that a checked message is about."""
    names, chosen = list(shapes), message.values[SELECTED]
    assert isinstance(chosen, list)
    return {names[n]: shapes[names[n]] for n in chosen if isinstance(n, int)}


def without_set(update: Update) -> Update:
    """An update as it would be if the set were all there is."""
    values = {n: v for n, v in update.values.items() if n not in OF_UPDATES}
    return replace(update, values=values)


def gradient_norms(
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    batch: Batch,
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
) -> dict[str, float]:
    """The Euclidean norm of each parameter's gradient of a batch's loss, by name.

    Each gradient goes as soon as the backward pass has come to it.
    """
    norms: dict[str, Tensor] = {}
    trained = list(parameters.values())
    with training_only(model, trained), ExitStack() as hooks:
        for name, parameter in parameters.items():

            def measure(p: Tensor, name: str = name) -> None:
                assert p.grad is not None
                norms[name] = torch.linalg.vector_norm(p.grad, dtype=torch.float32)
                p.grad = None

            hook = parameter.register_post_accumulate_grad_hook(measure)  # type: ignore[no-untyped-call]
            hooks.callback(hook.remove)
        device = trained[0].device
        with autocast(precision, device):
            loss = answer_loss(model, batch.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
    return {name: float(norms[name]) if name in norms else 0.0 for name in parameters}


def build(setting: Setting, options: BlockLLMOptions) -> Composition:
    """BlockLLM for a federation.

    Raises:
        UserError: the recipe asks for what does not go with sets of tensors.
    """
    _check(setting)
    sizes = tuple(shape.numel() for shape in setting.shapes.values())
    budget = math.floor((1 - options.sparsity) * sum(sizes) + 1e-9)
    cohort = setting.cohort_size
    return BlockLLM(
        setting=setting,
        scope=Everything(),
        local=gradient_work(setting),
        codec=setting.codec,
        step=server_step(options.server_step, setting.seed, setting.codec, cohort),
        schedule=SampledCohort(setting.seed, setting.clients, cohort),
        rule=SelectionRule(setting.seed, sizes, budget, options.patience),
    )


def _check(setting: Setting) -> None:
    faults = {
        "memory.frozen: blockllm measures gradients of everything, of exact weights": (
            setting.memory.frozen != "exact"
        ),
        "memory.cache_inputs: a set of tensors may begin in the first layer, and then nothing "
        "comes before it that could be kept": setting.memory.cache_inputs > 0,
    }
    for fault, found in faults.items():
        if found:
            raise UserError(f"{fault}; leave the key out.")
