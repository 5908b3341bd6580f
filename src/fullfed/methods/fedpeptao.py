"""FedPepTAO: every layer has a prefix of keys and values, and clients share those of some layers
(Che et al., "Federated learning of large language models with parameter-efficient prompt tuning and
adaptive optimization", arXiv 2310.15080).

    round 0:     clients score layers; those of the highest scores are shared from then on
    client:      its own prefixes where layers are not shared, everybody's where they are; AdamW on
                 all; it sends the shared ones
    server:      momentum and variates (variates.py)

The server's state is in its updates: beside the shared prefixes its variate, momentum and last
delta. A client keeps its own variate, because the server's state holds nothing of single clients,
and tells it with each report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, Report, Update
from fullfed.federation.method import NOTHING, Visit
from fullfed.headway import Observer, unobserved
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.averaging import averaging
from fullfed.methods.checks import STEP, named, prefixed
from fullfed.methods.composition import Composition
from fullfed.methods.layer_scores import scored
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.prefixes import PrefixesAlone
from fullfed.methods.setting import Setting
from fullfed.methods.shared_prefixes import LAYERS, SCORES, VARIATE, SharedPrefixes, shared_of
from fullfed.methods.variates import ServerRule, client_variate
from fullfed.training.first_order import Improvement, TrainingError
from fullfed.training.loss import loss_value
from fullfed.training.watch import OnStep, unwatched

_PRIVATE, _MOMENTS, _VARIATES = "private/", "moments/", "variates/"  # what a client keeps


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
        own = named(_PRIVATE, state)
        if not own.keys().isdisjoint(shared):
            raise TrainingError("the plan asks for a prefix that this client keeps to itself")
        before = {name: parameters[name].detach().clone() for name in shared}
        with torch.no_grad():
            for name, prefix in own.items():
                parameters[name].copy_(prefix)
        keeps = super().stateful  # as local.optimizer_state says
        moments = named(_MOMENTS, state) if keeps else {}
        done = super().improve(model, parameters, batches, plan, moments, exact, on_step)
        variates = self._variates(state, before, parameters, len(done.losses))
        private = {n: p.detach().clone() for n, p in parameters.items() if n not in shared}
        kept = {
            **prefixed(_PRIVATE, private),
            **prefixed(_VARIATES, variates),
            **prefixed(_MOMENTS, done.state if keeps else {}),
        }
        told = {name + VARIATE: variate for name, variate in variates.items()}
        return replace(done, exact={**done.exact, **told}, state=kept)

    def _score(self, model: PreTrainedModel, batch: Batch, on_step: OnStep) -> Improvement:
        batch = batch.to(model.device)
        model.eval()  # type: ignore[no-untyped-call]
        whole = self.setting.local.model_copy(update={"micro_batch_size": None})
        with scored(model, batch) as scores:
            loss = loss_value(model, batch, whole)
        on_step(loss)
        return Improvement([loss], exact={SCORES: torch.stack(scores).float()})

    def _variates(
        self,
        state: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        steps: int,
    ) -> dict[str, Tensor]:
        own, found = named(_VARIATES, state), dict[str, Tensor]()
        for name, start in before.items():
            zero = torch.zeros_like(start)
            mine, common = own.get(name, zero).to(zero), self.common.get(name, zero).to(zero)
            moved, rate = after[name].detach(), self.setting.local.learning_rate
            found[name] = client_variate(mine, common, start, moved, steps, rate)
        return found


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
    rates = options.server_rate, options.momentum, setting.local.learning_rate
    rule = ServerRule(*rates, setting.clients)
    own = averaging(
        setting,
        scope=scope(setting.seed, options),
        local=PrefixTraining(setting),
        codec=SharedPrefixes(setting.seed, setting.local, rule, options.shared),
    )
    return FedPepTAO(setting, own.scope, own.local, own.codec, own.step, own.schedule)
