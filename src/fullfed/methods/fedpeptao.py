"""FedPepTAO: every layer has a prefix of keys and values, and clients share those of some layers (Che
et al., "Federated learning of large language models with parameter-efficient prompt tuning and
adaptive optimization", arXiv 2310.15080).

    round 0:     clients score layers; those of the highest scores are shared from then on
    client:      its own prefixes where layers are not shared, everybody's where they are; AdamW on
                 all; it sends the shared ones
    server:      momentum and variates (variates.py)

The server's state is in its updates: beside the shared prefixes its variate, momentum and last delta.
A client keeps its own variate, because the server's state holds nothing of single clients, and tells
it with each report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.federation.method import NOTHING, Visit
from fullfed.federation.replica import norm
from fullfed.headway import Observer, unobserved
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.averaging import averaging
from fullfed.methods.checks import STEP, named, prefixed
from fullfed.methods.codecs.codec import Change, Codec, Encoded, Shapes, Weighted, check_tensors
from fullfed.methods.composition import Composition
from fullfed.methods.layer_scores import chosen_layers, scored
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.prefixes import PrefixesAlone, initial_prefix
from fullfed.methods.setting import Setting
from fullfed.methods.variates import ServerRule, ServerState, Visited, client_variate
from fullfed.training.first_order import Improvement
from fullfed.training.loss import loss_value
from fullfed.training.watch import OnStep, unwatched

LAYERS = "layers"  # in plans and updates: the numbers of the shared ones; none before they are chosen
SCORES = "scores"
VARIATE, MOMENTUM, DELTA = "/variate", "/momentum", "/delta"  # after a prefix's name
_PRIVATE, _MOMENTS, _OWN = "private/", "moments/", "variate/"  # what a client keeps


@dataclass(frozen=True)
class FedPepTAOOptions:
    """
    Attributes:
        prefix_tokens (tokens): n, keys and values before each layer's own.
        shared (share): of the layers, whose prefixes clients share; at least one is.
        server_rate: of the server's momentum step; it falls by 1 % a round. 0 is averaging alone.
        momentum: how much of the server's last step goes on.
    """

    prefix_tokens: int = 5
    shared: float = 0.5
    server_rate: float = 0.05
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.prefix_tokens < 1:
            raise ValueError("prefix_tokens is at least 1")
        if not 0 < self.shared <= 1:
            raise ValueError("shared is a share, above 0 and at most 1")
        if not 0 <= self.server_rate <= 1:
            raise ValueError("server_rate is at least 0 and at most 1")
        if not 0 <= self.momentum < 1:
            raise ValueError("momentum is a share, at least 0 and below 1")


@dataclass(frozen=True)
class PrefixTraining(FirstOrder):
    """Scores layers before they are chosen; then trains all prefixes, of which the client's own are
    those of its last visit.

    Attributes:
        common: the server's variates, by the prefix's name; none are zeros.
    """

    common: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def stateful(self) -> bool:
        return True

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
        shared = shared_of(plan, self.setting.shapes)
        if not shared:
            return self._score(model, next(iter(batches)), on_step)
        before = {name: parameters[name].detach().clone() for name in shared}
        with torch.no_grad():
            for name, kept in named(_PRIVATE, state).items():
                parameters[name].copy_(kept)
        keeps = super().stateful
        moments = named(_MOMENTS, state) if keeps else {}
        done = super().improve(model, parameters, batches, plan, moments, exact, on_step)
        variates = self._variates(state, before, parameters, len(done.losses))
        private = {n: p.detach().clone() for n, p in parameters.items() if n not in shared}
        kept = {**prefixed(_PRIVATE, private), **prefixed(_OWN, variates)}
        if keeps:
            kept |= prefixed(_MOMENTS, done.state)
        told = {name + VARIATE: variate for name, variate in variates.items()}
        return replace(done, exact={**done.exact, **told}, state=kept)

    def _score(self, model: PreTrainedModel, batch: Batch, on_step: OnStep) -> Improvement:
        batch = batch.to(model.device)
        model.eval()  # type: ignore[no-untyped-call]
        whole = self.setting.local.model_copy(update={"micro_batch_size": None})
        with scored(model, batch) as scores:
            loss = loss_value(model, batch, whole)
        on_step(loss)
        return Improvement([loss], exact={SCORES: torch.stack(scores)})

    def _variates(
        self,
        state: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        steps: int,
    ) -> dict[str, Tensor]:
        own, rate = named(_OWN, state), self.setting.local.learning_rate
        found: dict[str, Tensor] = {}
        for name, start in before.items():
            zero = torch.zeros_like(start)
            kept = (variates.get(name, zero).to(zero) for variates in (own, self.common))
            found[name] = client_variate(*kept, start, after[name].detach(), steps, rate)
        return found


@dataclass(frozen=True)
class SharedPrefixes(Codec):
    """A report is the shared prefixes as a client left them, and its variates; the update is where
    the server's step came to, and what it remembers.

    Attributes:
        setting: the federation; says how many steps a client took.
        options: the method's.
    """

    setting: Setting
    options: FedPepTAOOptions

    @property
    def stacks(self) -> bool:
        return True

    @property
    def plan_values(self) -> frozenset[str]:
        return frozenset([LAYERS])

    def update_values(self, update: Update) -> frozenset[str]:
        return frozenset([LAYERS])

    def for_sums(self, bits: int, shapes: Shapes) -> Codec:
        raise UserError(
            "privacy: FedPepTAO's server looks at each client's scores and variates, which cannot "
            "be added up; take another method, such as fedavg, or leave the table out."
        )

    def plan(self, round: int, last: Update | None, shapes: Shapes) -> Encoded:
        return Encoded({LAYERS: [] if last is None else last.values[LAYERS]})

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        sent = self._sent(plan, shapes)
        return Encoded(tensors={n: change.after[n].detach().to(t[1], copy=True) for n, t in sent})

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return sum(shape.numel() * dtype.itemsize for _, (shape, dtype) in self._sent(plan, shapes))

    def update_bytes(self, plan: Plan, shapes: Shapes, reports: int) -> int:
        names = list(shapes)[: self._count(shapes)]
        return sum(4 * 4 * shapes[name].numel() for name in names)

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        check_tensors(report, dict(self._sent(plan, shapes)))

    def check_plan(self, plan: Plan, shapes: Shapes) -> None:
        super().check_plan(plan, shapes)
        if plan.round == 0 and plan.values[LAYERS] != []:
            raise MessageError("the plan names layers before any are chosen")
        if plan.round > 0:
            self._check_layers(plan, shapes)

    def check_update(self, update: Update, shapes: Shapes) -> None:
        self._check_layers(update, shapes)
        kinds = ("", VARIATE, MOMENTUM, DELTA)
        shared = shared_of(update, shapes)
        check_tensors(
            update, {n + kind: (shapes[n], torch.float32) for n in shared for kind in kinds}
        )

    def _check_layers(self, message: Plan | Update, shapes: Shapes) -> None:
        found, count = message.values[LAYERS], self._count(shapes)
        layers = [n for n in found if type(n) is int] if isinstance(found, list) else []
        possible = layers == sorted(set(layers) & set(range(len(shapes)))) == found
        if not possible or len(layers) != count:
            raise MessageError(f"the {message.kind} does not name {count} layers in their order")

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        """0 of a report that only scores layers."""
        return norm(
            report.tensors[name].to(parameters[name]).double() - parameters[name].detach().double()
            for name in shared_of(plan, shapes)
        )

    def stack(self, reports: Weighted, plan: Plan, shapes: Shapes, last: Update | None) -> Encoded:
        """The server alone does this, so its bits are nobody else's to reproduce."""
        if last is None:
            columns = sum(share * report.tensors[SCORES] for share, report in reports)
            assert isinstance(columns, Tensor)  # there are reports
            layers = chosen_layers(columns.tolist(), self._count(shapes))
            names = [list(shapes)[n] for n in layers]
            started = (initial_prefix(self.setting.seed, n, shapes[m]) for n, m in zip(layers, names, strict=True))
            states = {m: ServerState.start(p) for m, p in zip(names, started, strict=True)}
            return Encoded({LAYERS: [*layers]}, _told(states))
        local = self.setting.local
        rule = ServerRule(
            self.options.server_rate,
            self.options.momentum,
            local.learning_rate,
            self.setting.clients,
        )
        states = {}
        for name in shared_of(plan, shapes):
            visits = [
                Visited(
                    share,
                    local.batches(report.samples),
                    *(report.tensors[name + kind].double().cpu() for kind in ("", VARIATE)),
                )
                for share, report in reports
            ]
            kinds = ("", VARIATE, MOMENTUM, DELTA)
            state = ServerState(*(last.tensors[name + kind].double().cpu() for kind in kinds))
            states[name] = rule.after(state, visits, plan.round)
        return Encoded({LAYERS: plan.values[LAYERS]}, _told(states))

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        step = number(update, STEP)
        for name in shared_of(update, shapes):
            prefix = parameters[name]
            new = update.tensors[name].to(prefix.device)
            prefix.copy_(new if step == 1.0 else prefix + (new - prefix) * step)

    def _count(self, shapes: Shapes) -> int:
        return max(1, round(self.options.shared * len(shapes)))

    def _sent(
        self, plan: Plan, shapes: Shapes
    ) -> list[tuple[str, tuple[torch.Size, torch.dtype]]]:
        """The tensors of a report."""
        shared = shared_of(plan, shapes)
        if not shared:
            return [(SCORES, (torch.Size([len(shapes)]), torch.float64))]
        return [(n + kind, (shapes[n], torch.float32)) for n in shared for kind in ("", VARIATE)]


@dataclass(frozen=True)
class FedPepTAO(Composition):
    """Its clients learn the server's variates from the last update."""

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
        assert isinstance(self.local, PrefixTraining)  # as ``build`` makes it
        tensors = {} if last is None else last.tensors
        common = {n.removesuffix(VARIATE): t for n, t in tensors.items() if n.endswith(VARIATE)}
        told = replace(self, local=replace(self.local, common=common))
        return Composition.train(told, model, plan, examples, last, state, exact, observer)

    def alone(self, report: Report, plan: Plan, last: Update | None, share: float) -> Update:
        shared = shared_of(plan, self.setting.shapes)
        tensors = {name: report.tensors[name] for name in shared}
        return Update(plan.round, {LAYERS: plan.values[LAYERS], STEP: share}, tensors)


def shared_of(message: Plan | Update, shapes: Shapes) -> list[str]:
    """The names of the shared prefixes, in the model's order; none before they are chosen.

    Args:
        shapes: of all prefixes, by name, in the model's order.

    Raises:
        MessageError: the message names other layers than there are.
    """
    found, names = message.values.get(LAYERS), list(shapes)
    layers = found if isinstance(found, list) else [None]
    if not all(type(n) is int and 0 <= n < len(names) for n in layers):
        raise MessageError(f"the {message.kind} does not name layers of {len(names)}")
    return [names[n] for n in layers if isinstance(n, int)]


def _told(states: Mapping[str, ServerState]) -> dict[str, Tensor]:
    """What an update holds of the server's states."""
    tensors: dict[str, Tensor] = {}
    for name, state in states.items():
        tensors |= {
            name: state.weights.float(),
            name + VARIATE: state.variate.float(),
            name + MOMENTUM: state.momentum.float(),
            name + DELTA: state.delta.float(),
        }
    return tensors


def scope(seed: int, options: FedPepTAOOptions) -> PrefixesAlone:
    return PrefixesAlone(seed, options.prefix_tokens)


def build(setting: Setting, options: FedPepTAOOptions) -> Composition:
    """FedPepTAO for a federation.

    Raises:
        UserError: the recipe asks for a rule of aggregation.
    """
    if type(setting.aggregation) is not WeightedMean:
        raise UserError(
            "aggregation.name: FedPepTAO's server takes a step of its own for the clients' mean, "
            "which no rule takes the place of; leave the table out."
        )
    own = averaging(
        setting,
        scope=scope(setting.seed, options),
        local=PrefixTraining(setting),
        codec=SharedPrefixes(setting, options),
    )
    return FedPepTAO(setting, own.scope, own.local, own.codec, own.step, own.schedule)
