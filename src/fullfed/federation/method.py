"""What a method must offer to be run by any engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.federation.messages import Plan, Report, Update

NOTHING: Mapping[str, Tensor] = MappingProxyType({})  # no state


class VisitError(Exception):
    """A client could not make a usable report; one sentence that quotes no data."""


@dataclass(frozen=True)
class Visit:
    """What a client's work came to.

    Attributes:
        report: for the server.
        train_seconds, encode_seconds: of each part.
        kept: for the client's next visit that reads the same state; see ``Method.keeps``.
    """

    report: Report
    train_seconds: float
    encode_seconds: float
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """A federated method. Every call is a pure function of its arguments, but for the
    model, which ``apply`` changes."""

    @property
    def cumulative(self) -> bool:
        """Whether an update takes the base model, not the last version, to its own version.

        Then the newest update is all a client needs, however many it missed.
        """

    def replicated(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """The parameters that updates change, by name."""

    def plans(self, round: int, last: Update | None) -> Sequence[Plan]:
        """The cohort of a round, one plan a client, in increasing order of clients.

        ``last`` is the previous round's update; with the recipe it is all the server's state.
        """

    def keeps(self, plan: Plan) -> str | None:
        """The name of the client's state that a visit reads and replaces, None if it has none.

        Updates of a method that keeps states name the clients whose reports are in them, in the
        value ``merged``; the states of others' visits are as if those had not been.
        """

    def train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        kept: Mapping[str, Tensor] = NOTHING,
    ) -> Visit:
        """One client's visit. The model is at version ``plan.round`` before and after.

        Args:
            model: a replica; or what ``assembled`` made, and ``last`` is None.
            kept: the client's state that ``keeps`` names; empty at first.

        Raises:
            VisitError: training failed, such as by a loss that is not finite.
        """

    def handout(self, model: PreTrainedModel, plan: Plan) -> Update | None:
        """What a client that holds no replica is sent with its plan, in the place of the updates
        it missed; None where clients hold replicas. ``model`` is at version ``plan.round``.

        Raises:
            MessageError: there can be no such plan.
        """

    def equipment(self, model: PreTrainedModel) -> Update:
        """What a client that holds no replica is given once: it is of every version."""

    def assembled(
        self,
        like: PreTrainedModel,
        equipment: Update,
        handout: Update,
        plan: Plan,
        device: torch.device,
    ) -> PreTrainedModel:
        """The model on which such a client carries out its plan, made of what it was sent alone.

        Args:
            like: any model of the same class and configuration, one without weights too.

        Raises:
            MessageError: what was sent is not of this model or this plan.
        """

    def report_limit(self, plan: Plan) -> int:
        """The most bytes an honest report on ``plan`` can have."""

    def check(self, report: Report, plan: Plan) -> None:
        """Raise MessageError unless the report's names, shapes, dtypes and values fit the plan."""

    def merge(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        """One update from checked reports, which come in increasing order of clients."""

    def skip(self, round: int, last: Update | None) -> Update | None:
        """The update of a round without reports, which leaves the model as it is; None where
        such a round cannot be passed over."""

    def apply(self, model: PreTrainedModel, update: Update) -> None:
        """Take the model in place from version ``update.round`` (or from the base, for a
        cumulative method) to the next."""
