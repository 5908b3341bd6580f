"""FedPepTAO's messages: scores of layers, then the prefixes of the layers that clients share.

report:    a score for each layer; later of each shared one the client's prefix and variate
update:    which layers are shared; of each the prefix, and what else the server's state is made
           of: variate, momentum and delta (variates.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.config import LocalTable
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.federation.replica import norm
from fullfed.methods.checks import STEP
from fullfed.methods.codecs.codec import Change, Codec, Encoded, Shapes, Weighted, check_tensors
from fullfed.methods.layer_scores import chosen_layers
from fullfed.methods.prefixes import initial_prefix
from fullfed.methods.variates import ServerRule, ServerState, VisitResult

LAYERS = "layers"  # in plans and updates: the shared ones' numbers; none in the first plans
SCORES = "scores"
VARIATE, MOMENTUM, DELTA = "/variate", "/momentum", "/delta"  # after a prefix's name
_TOLD, _STATE = ("", VARIATE), ("", VARIATE, MOMENTUM, DELTA)  # of a prefix, in reports and updates


@dataclass(frozen=True)
class SharedPrefixes(Codec):
    """
    Attributes:
        seed: the recipe's; the first prefixes follow from it.
        local: the recipe's table; says how many steps a client took.
        rule: the server's.
        share: of the layers, that are shared.
    """

    seed: int
    local: LocalTable
    rule: ServerRule
    share: float

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
            "privacy: clients' scores of layers, prefixes and variates are of different sizes and "
            "cannot be added up; take another method, such as fedavg, or leave the table out."
        )

    def plan(self, round: int, last: Update | None, shapes: Shapes) -> Encoded:
        if last is None:  # in round 0, and where a run is only estimated: then any so many
            return Encoded({LAYERS: [*range(self.count(shapes) if round else 0)]})
        return Encoded({LAYERS: last.values[LAYERS]})

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        due = self._due(plan, shapes)
        return Encoded(tensors={n: change.after[n].detach().clone() for n in due})

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        due = self._due(plan, shapes).values()
        return sum(shape.numel() * dtype.itemsize for shape, dtype in due)

    def update_bytes(self, plan: Plan, shapes: Shapes, reports: int) -> int:
        prefix = next(iter(shapes.values())).numel()
        return 4 * len(_STATE) * self.count(shapes) * prefix

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        check_tensors(report, self._due(plan, shapes))

    def check_plan(self, plan: Plan, shapes: Shapes) -> None:
        super().check_plan(plan, shapes)
        if plan.round > 0:
            self._check_layers(plan, shapes)
        elif plan.values[LAYERS] != []:
            raise MessageError("the plan names layers before any are chosen")

    def check_update(self, update: Update, shapes: Shapes) -> None:
        self._check_layers(update, shapes)
        shared = shared_of(update, shapes)
        check_tensors(update, {n + kind: _due(shapes[n]) for n in shared for kind in _STATE})

    def _check_layers(self, message: Plan | Update, shapes: Shapes) -> None:
        shared, count = shared_of(message, shapes), self.count(shapes)
        if len(shared) != count or shared != [name for name in shapes if name in shared]:
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
            return self._first(reports, shapes)
        tensors: dict[str, Tensor] = {}
        for name in shared_of(plan, shapes):
            visits = [
                VisitResult(
                    share, self.local.batches(report.samples), *_doubles(report, name, _TOLD)
                )
                for share, report in reports
            ]
            state = ServerState(*_doubles(last, name, _STATE))
            tensors |= _told(name, self.rule.after(state, visits, plan.round))
        return Encoded({LAYERS: plan.values[LAYERS]}, tensors)

    def _first(self, reports: Weighted, shapes: Shapes) -> Encoded:
        """Which layers are shared, and the server's state before the first training."""
        weighted = torch.stack([p * report.tensors[SCORES].double() for p, report in reports])
        layers = chosen_layers(weighted.sum(dim=0).tolist(), self.count(shapes))
        tensors: dict[str, Tensor] = {}
        for layer, (name, shape) in enumerate(shapes.items()):
            if layer in layers:
                start = ServerState.start(initial_prefix(self.seed, layer, shape))
                tensors |= _told(name, start)
        return Encoded({LAYERS: [*layers]}, tensors)

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        step = number(update, STEP)
        for name in shared_of(update, shapes):
            prefix = parameters[name]
            new = update.tensors[name].to(prefix.device)
            prefix.copy_(new if step == 1.0 else prefix + (new - prefix) * step)

    def count(self, shapes: Shapes) -> int:
        """How many layers are shared."""
        return max(1, round(self.share * len(shapes)))

    def _due(self, plan: Plan, shapes: Shapes) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """The tensors of a report."""
        shared = shared_of(plan, shapes)
        if not shared:
            return {SCORES: _due(torch.Size([len(shapes)]))}
        return {n + kind: _due(shapes[n]) for n in shared for kind in _TOLD}


def shared_of(message: Plan | Update, shapes: Shapes) -> list[str]:
    """The names of the shared prefixes, as the message has them; none before they are chosen.

    Args:
        shapes: of all prefixes, by name, in the model's order.

    Raises:
        MessageError: the message names other layers than there are.
    """
    found, names = message.values.get(LAYERS), list(shapes)
    if not isinstance(found, list) or not all(
        type(n) is int and 0 <= n < len(names) for n in found
    ):
        raise MessageError(f"the {message.kind} does not name layers of {len(names)}")
    return [names[n] for n in found if isinstance(n, int)]


def _due(shape: torch.Size) -> tuple[torch.Size, torch.dtype]:
    return shape, torch.float32


def _doubles(message: Report | Update, name: str, kinds: tuple[str, ...]) -> list[Tensor]:
    """A prefix's tensors in a message, float64."""
    return [message.tensors[name + kind].double().cpu() for kind in kinds]


def _told(name: str, state: ServerState) -> dict[str, Tensor]:
    """What an update holds of a prefix's state."""
    own = state.weights, state.variate, state.momentum, state.delta
    return {name + kind: tensor.float() for kind, tensor in zip(_STATE, own, strict=True)}
