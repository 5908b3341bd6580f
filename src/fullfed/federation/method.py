"""What a method must offer to be run by any engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.federation.messages import Plan, Report, Update


class VisitError(Exception):
    """A client could not make a usable report; one sentence that quotes no data."""


@dataclass(frozen=True)
class Visit:
    """What a client's work came to: its report, and the seconds of each part."""

    report: Report
    train_seconds: float
    encode_seconds: float


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

    def train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
    ) -> Visit:
        """One client's visit. The model is at version ``plan.round`` before and after.

        Raises:
            VisitError: training failed, such as by a loss that is not finite.
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
