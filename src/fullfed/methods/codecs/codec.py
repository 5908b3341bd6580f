"""What every codec offers, and what passes through one on its way from client to replica.

    client:    encode(change) -> a report's tensors
    server:    decode(report) -> a contribution; the aggregation rule makes one of many;
               encode_update(aggregate) -> an update's tensors
    everyone:  apply(update)

A codec knows no model. Each call is told the names and shapes of what the visit trained: all of
the scope's parameters, or one block of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, Value
from fullfed.federation.replica import norm
from fullfed.federation.tensors import Computed

if TYPE_CHECKING:
    from fullfed.methods.codecs.products import Products
    from fullfed.methods.codecs.scaling import ModelScales

SIGNS, SCALES = "signs", "scales"  # of a contribution that is votes

Shapes = Mapping[str, torch.Size]
Weighted = Sequence[tuple[float, Report]]


@dataclass(frozen=True)
class Change:
    """What a visit made of the parameters it trained.

    Attributes:
        before: their values at the start, by name, in the model's order; none where
            ``Composition.offload``.
        after: the parameters as training left them, or float32 copies that are more exact.
        steps: of zeroth-order training, as ``Improvement`` has them.
        state: what the codec kept of the client's last visit to the same parameters.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    steps: tuple[tuple[int, float], ...] = ()
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """What a codec puts into a message.

    Attributes:
        values, tensors: of the message.
        state: what the client keeps for its next visit to the same parameters; never sent.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Contribution:
    """A report as numbers that an aggregation rule combines with those of other reports; or what
    the rule made of them.

    Attributes:
        tensors: float32 or float64, by name; the same names and shapes in all reports of a part.
        noise: the expected squared error that coding added to ``tensors``.
        sums: numbers that are counted together, whatever weight a report has.
        left_out: the clients of whose reports the rule let nothing in.
    """

    tensors: Mapping[str, Tensor]
    noise: float = 0.0
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()

    def times(self, factor: float) -> Contribution:
        """The same of numbers so much larger; ``sums`` stay as they are."""
        if factor == 1.0:
            return self
        tensors = Computed(self.tensors, lambda name: self.tensors[name] * factor)
        return Contribution(tensors, self.noise * factor**2, self.sums)


@dataclass(frozen=True)
class Summable:
    """What a codec's reports are where only their sum is known: numbers whose mean over clients is
    the mean change.

    Attributes:
        shapes: of the numbers that ``decode`` makes, by name, in its order.
        first: the largest that a number is expected to be, before any round tells.
        tail: how much larger the largest may be than a round's root mean square.
        few_bits: whether the numbers are alike, so that few bits say each. Otherwise it takes 32.
    """

    shapes: Shapes
    first: float
    tail: float
    few_bits: bool = False


class Codec(ABC):
    """A way to send changes. What is not abstract has the defaults of the plainest codec, which
    decodes reports into numbers that are averaged."""

    @property
    def cumulative(self) -> bool:
        """Whether an update holds the total change since the base model.

        Such an update applies to the base and replaces all earlier ones.
        """
        return False

    @property
    def comparable(self) -> bool:
        """Whether clients' decoded numbers can be compared one by one, which rules that do not only
        weigh need: numbers of one meaning, that most clients have."""
        return True

    @property
    def sends_weights(self) -> bool:
        """Whether what is decoded are the weights after training, not what changed."""
        return False

    def as_changes(self) -> Codec:
        """The same codec with reports that say what changed; itself where they do."""
        return self

    @property
    def stacks(self) -> bool:
        """Whether a weighted mean is sent as the reports themselves with their weights (``stack``):
        where reports have no common meaning and cannot be decoded into numbers to average, or where
        together they are shorter than their mean."""
        return False

    @property
    def votes(self) -> bool:
        """Whether what is decoded are votes on the signs of numbers that mean the same for all
        clients: SIGNS, int8, and SCALES, float32, one for each block of them
        (``sketch/votes.py``)."""
        return False

    def voting(self) -> Codec:
        """The same codec with reports that are votes; itself where they cannot be."""
        return self

    @property
    def stateful(self) -> bool:
        """Whether clients keep something between visits."""
        return False

    def for_sums(self, bits: int, shapes: Shapes) -> Codec:
        """The codec that takes this one's place where only sums of reports are known.

        Args:
            bits: that each number is given, where ``Summable.few_bits``.

        Raises:
            UserError: its reports cannot be added up.
        """
        raise cannot_be_added()

    def summable(self, shapes: Shapes) -> Summable:
        """What its reports are in sums; only of what ``for_sums`` gave."""
        raise NotImplementedError(f"{type(self).__name__} does not define summable")

    @property
    def directions(self) -> Literal["client", "shared"] | None:
        """Whose random directions a report's numbers are coordinates on; None where a report says
        the change itself."""
        return None

    @property
    def asks_scales(self) -> Literal["auto", "curvature", "none"]:
        """Whether noise is to be small where the loss is steep (``scaling.ModelScales``): always
        ("curvature"), where the local optimizer changes flat and steep parameters alike, or never.
        """
        return "none"

    @property
    def scales(self) -> ModelScales | None:
        """Those that it has."""
        return None

    def scaled(self, scales: ModelScales) -> Codec:
        """The same codec with these scales; only where they are asked for."""
        raise NotImplementedError(f"{type(self).__name__} does not define scaled")

    def coordinates(self, shapes: Shapes) -> float:
        """How many exact coordinates a report is worth; only where there are directions."""
        raise NotImplementedError(f"{type(self).__name__} does not define coordinates")

    @property
    def plan_values(self) -> frozenset[str]:
        """The names of the values that ``plan`` says; a plan with others is refused."""
        return frozenset()

    @property
    def report_values(self) -> frozenset[str]:
        """The same of ``encode`` and reports."""
        return frozenset()

    def update_values(self, update: Update) -> frozenset[str]:
        """The same of ``encode_update`` or ``stack``, and updates."""
        return frozenset()

    def check_parts(self, parts: Sequence[Shapes]) -> None:  # noqa: B027 (nothing to check)
        """
        Raises:
            UserError: changes of these parts cannot be encoded.
        """

    def plan(self, round: int, last: Update | None, shapes: Shapes) -> Encoded:
        """What every client of the round needs to know beyond the recipe.

        Args:
            last: the previous round's update; None in round 0 and where a model has several parts.
        """
        return Encoded()

    @abstractmethod
    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        """A client's change."""

    @abstractmethod
    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        """The most bytes that the tensors of an honest report have."""

    def update_bytes(self, plan: Plan, shapes: Shapes, reports: int) -> int:
        """About how many bytes the tensors of an update have that is made of so many reports.

        The default is as many as one report's, or, where reports are stacked, as all of them.
        """
        return (reports if self.stacks else 1) * self.report_bytes(plan, shapes)

    @abstractmethod
    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        """
        Raises:
            MessageError: the report's tensors do not fit the plan.
        """

    def check_plan(self, plan: Plan, shapes: Shapes) -> None:
        """
        Raises:
            MessageError: the plan's values or tensors are not what ``plan`` makes.
        """
        check_tensors(plan, {})

    def check_update(self, update: Update, shapes: Shapes) -> None:  # noqa: B027 (see Raises)
        """
        Raises:
            MessageError: the update's tensors are not what ``encode_update`` or ``stack`` makes.
                A codec without a check of its own lets all pass.
        """

    def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
        """A checked report as numbers; all codecs but those that only stack."""
        raise NotImplementedError(f"{type(self).__name__} does not define decode")

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        """The Euclidean norm of the change in a checked report; an estimate where the report does
        not say the change itself.

        Args:
            parameters: the server's at the start of the round, by name: those of ``shapes``.
        """
        return norm(self.decode(report, plan, shapes).tensors.values())

    def products(
        self, reports: Sequence[Report], plans: Sequence[Plan], shapes: Shapes
    ) -> Products | None:
        """How the changes in checked reports lie to each other, where they are stacked; None where
        that cannot be told, or but by chance.

        Args:
            plans: of each report.
        """
        return None

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        """What the rule made of contributions, for everybody; as ``decode``.

        Args:
            plan: one of the round's; they are alike but for the client.
            last: as for ``plan``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define encode_update")

    def stack(self, reports: Weighted, plan: Plan, shapes: Shapes, last: Update | None) -> Encoded:
        """The reports' weighted sum; only if ``stacks``. Weights sum to 1, or to less where reports
        are discounted."""
        raise NotImplementedError(f"{type(self).__name__} does not define stack")

    @abstractmethod
    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        """Change a replica's parameters in place by what was encoded or stacked.

        Args:
            parameters: what an update of this part changes, by name.
            update: its value ``server_step`` is how much of the change is applied.
            shapes: what a visit trained, by name.
        """


def cannot_be_added() -> UserError:
    """Why some codecs have no place where only sums of reports are known."""
    return UserError(
        "privacy: reports on each client's own directions, on seeds drawn by importance, of "
        "largest entries or of factors cannot be added up; take a sketch with seeds = 'shared', "
        "codec.name = 'dense', or leave the table out."
    )


def check_tensors(
    message: Plan | Report | Update,
    expected: Mapping[str, tuple[torch.Size | tuple[int, ...], torch.dtype]],
) -> None:
    """
    Args:
        expected: shape and dtype of each tensor, by name.

    Raises:
        MessageError: the message's tensors are others.
    """
    if message.tensors.keys() != expected.keys():
        names = ", ".join(sorted(expected)[:4]) + (", ..." if len(expected) > 4 else "")
        due = f"exactly the tensors {names}" if expected else "no tensors"
        raise MessageError(f"the {message.kind} does not hold {due}")
    for name, (shape, dtype) in expected.items():
        sent = message.tensors[name]
        if sent.shape != tuple(shape) or sent.dtype != dtype:
            raise MessageError(
                f"the {message.kind}'s {name!r} is {tuple(sent.shape)} of {sent.dtype}, "
                f"not {tuple(shape)} of {dtype}"
            )


def elements(shapes: Shapes) -> int:
    """How many numbers there are in all."""
    return sum(shape.numel() for shape in shapes.values())
