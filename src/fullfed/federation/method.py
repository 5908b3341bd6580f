"""What a method must offer to be run by any engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.federation.messages import Plan, Report, Update
from fullfed.headway import Observer, unobserved

if TYPE_CHECKING:
    from fullfed.privacy.masks import Summand
    from fullfed.privacy.summing import Owner

NOTHING: Mapping[str, Tensor] = MappingProxyType({})  # no state


class VisitError(Exception):
    """A client could not make a usable report; one sentence that quotes no data."""


@dataclass(frozen=True)
class Visit:
    """What a client's work came to.

    Attributes:
        report: for the server.
        train_seconds, encode_seconds: of each part.
        state: for the client's next visit that reads the same state; see
            ``Method.client_state``.
        metrics: what a trainer says of the visit; for the client alone.
    """

    report: Report
    train_seconds: float
    encode_seconds: float
    state: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class Submodels(Protocol):
    """What clients that hold no replica are sent, and the model each makes of it."""

    def static_weights(self, model: PreTrainedModel) -> Update:
        """What such a client is sent once: it is of every version."""

    def submodel(self, model: PreTrainedModel, plan: Plan) -> Update:
        """What such a client is sent with its plan; ``model`` is at version ``plan.round``.

        Raises:
            MessageError: there can be no such plan.
        """

    def assemble(
        self,
        like: PreTrainedModel,
        static_weights: Update,
        submodel: Update,
        plan: Plan,
        device: torch.device,
    ) -> PreTrainedModel:
        """The model on which such a client carries out its plan, made of what it was sent alone.

        Args:
            like: any model of the same class and configuration, one without weights too.

        Raises:
            MessageError: what was sent is not of this model or this plan.
        """


class Sums(Protocol):
    """What a method offers of whose reports only sums are known."""

    @property
    def secure(self) -> bool:
        """Whether the server sees no client's report, but the sum alone."""

    @property
    def fewest(self) -> int:
        """How many clients a sum is of at least."""

    def summand(self, report: Report, plan: Plan, key: bytes) -> Summand:
        """What a client adds to the sum.

        Args:
            report: the visit's, which nobody else sees.
            plan: the visit's.
            key: 32 bytes that only the client knows, and that it uses for this visit alone.

        Raises:
            MessageError: the plan asks for what cannot be.
        """

    def allows(self, rounds: int) -> bool:
        """Whether a client's numbers may be in so many sums."""

    def pass_over(self, round: int, last: Update | None) -> Update:
        """The update of a round that has no sum, because too few were drawn for it, or numbers that
        went out already do not go out twice."""

    def size(self, plan: Plan) -> tuple[int, int, int]:
        """Of what a client adds: how many integers, of how many bits, and bytes of scalars."""

    def update(
        self, plan: Plan, total: Summand, clients: Sequence[int], last: Update | None
    ) -> Update:
        """The update that a sum makes.

        Args:
            plan: one of the round's.
            total: of what the clients added.
            clients: those.
            last: the previous round's update.
        """


class Method(Protocol):
    """A federated method. Every call is a pure function of its arguments, but for the
    model and the moments, which ``apply`` changes."""

    @property
    def cumulative(self) -> bool:
        """Whether an update takes the base model, not the last version, to its own version.

        Then the newest update is all a client needs, however many it missed.
        """

    @property
    def submodels(self) -> Submodels | None:
        """None where every client holds a replica."""

    @property
    def scales(self) -> bytes:
        """What every client must be told once, beside the recipe; empty where that is nothing."""

    @property
    def sums(self) -> Sums | None:
        """None where the server sees every report."""

    @property
    def protects_records(self) -> bool:
        """Whether clients add noise to all that they make of their records, by their own secrets:
        who has clients' data is to train with what ``owned`` returns."""

    def owned(self, run: str, owner_of: Callable[[int], Owner]) -> Method:
        """The method of clients that have something nobody else has.

        Args:
            run: names the run.
            owner_of: each client's own.
        """

    def replicated(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """The parameters that updates change, by name."""

    def plans(self, round: int, last: Update | None) -> Sequence[Plan]:
        """The cohort of a round, one plan a client, in increasing order of clients.

        ``last`` is the previous round's update; with the recipe it is all the server's state.
        """

    def ahead(self, round: int) -> Sequence[Plan]:
        """The plans of later rounds that are sent in this one, and start from its version: of
        visits that last longer than a round. None for most methods."""

    def client_state(self, plan: Plan) -> str | None:
        """The name of the client's state that a visit reads and replaces, None if it has none.

        Updates of a method whose clients have states name the clients whose reports are in them,
        in the value ``clients``; the states of others' visits are as if those had not been.
        """

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
        """One client's visit. The model is at version ``plan.version`` before and after.

        Args:
            model: a replica; or what ``Submodels.assemble`` made, and ``last`` is None.
            state: the client's, that ``client_state`` names; empty at first.
            exact: float32, by name: what the model's weights in 16 bits are rounded from, where
                the replica keeps that.
            observer: is told how training gets on.

        Raises:
            VisitError: training failed, such as by a loss that is not finite.
        """

    def steps(self, samples: int) -> int:
        """How many steps a visit takes at a client with so many samples."""

    def report_limit(self, plan: Plan) -> int:
        """The most bytes an honest report on ``plan`` can have."""

    def check(self, report: Report, plan: Plan) -> None:
        """Raise MessageError unless the report's names, shapes, dtypes and values fit the plan."""

    def part(self, plan: Plan) -> int | None:
        """Which part of the model a visit trains: reports on the same one are alike."""

    def norm(
        self,
        report: Report,
        plan: Plan,
        model: PreTrainedModel,
        exact: Mapping[str, Tensor] = NOTHING,
    ) -> float:
        """The Euclidean norm of the change that a checked report is about, as far as it tells.

        Args:
            model: at version ``plan.round``.
            exact: as for ``train``.
        """

    def aggregate(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        """One update from checked reports, which come in increasing order of clients."""

    def completed(self, update: Update, model: PreTrainedModel) -> Update:
        """The update of ``aggregate`` with what only the model tells.

        Args:
            model: the server's, at version ``update.round``; is only looked at.
        """

    def alone(self, report: Report, plan: Plan, last: Update | None, share: float) -> Update:
        """What adds to the model of version ``plan.round`` so much of a checked report's change as
        if no other had come: for ``apply`` on that version, of a cumulative method too.

        Args:
            last: the previous round's update.
            share: of what is applied of a change as a rule.
        """

    def mean(self, losses: Sequence[float]) -> float | None:
        """That of clients' losses, as the aggregation rule has it; None where no client tells."""

    def skip(self, round: int, last: Update | None) -> Update | None:
        """The update of a round without reports, which leaves the model as it is; None where
        such a round cannot be passed over."""

    def check_values(self, update: Update) -> None:
        """Raise MessageError unless the update holds the values that ``aggregate`` or ``skip``
        says; its tensors may have been left out."""

    def check_update(self, update: Update) -> None:
        """The same of values and tensors. What passes can be applied."""

    def moments(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What every replica keeps beside the model for the server's optimizer, by name, as it is
        at version 0; empty for most methods."""

    def apply(
        self, model: PreTrainedModel, update: Update, moments: Mapping[str, Tensor] = NOTHING
    ) -> None:
        """Take the model in place from version ``update.round`` (or from the base, for a
        cumulative method) to the next.

        Args:
            moments: as they are at that version; updated in place. Without them the change is
                applied as it is.
        """


def sent(method: Method, plans: Iterable[Plan], round: int) -> list[Plan]:
    """The plans that go out in a round: of ``plans``, whose reports are for it, those that did not
    go out before, and those of later rounds that do now."""
    return [plan for plan in (*plans, *method.ahead(round)) if plan.version == round]
