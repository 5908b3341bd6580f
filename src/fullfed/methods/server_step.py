"""The server step: how much of an aggregate is applied. docs/server-step.md derives the rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Update, Value, number
from fullfed.methods.codecs.codec import Codec
from fullfed.methods.codecs.scaling import ModelScales
from fullfed.methods.step_memory import LARGEST, MEMORY, NEWEST, StepMemory, short
from fullfed.sketch import SHARED, Purpose, Scales, SignBasis, Stream, perturb_
from fullfed.sketch.shards import LocalTensors

_SMALLEST = 1e-3  # step whose noise is measured: what a smaller one costs is lost in rounding
_COMMON_SIGNS = 64  # enough for the mean cosine of ten clients within 0.04

MEASURED = ("energy", "gain", "gain_halfway", "trace")  # by every client

Mean = Callable[[Sequence[float]], float]  # one number of many clients'


@dataclass(frozen=True)
class Trained:
    """A client's visit between training and encoding; the model is as training left it.

    Attributes:
        parameters: what was trained, by name: the model's own. A rule may change them, the visit
            restores them.
        before: their values at the start, by name; none where ``Composition.offload``.
        after: the parameters themselves, or float32 tensors that those in 16 bits are rounded from.
        measure: computes a loss, always of the same samples, at the parameters as they are.
        first_loss: that before training; None where it is not known.
    """

    parameters: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    measure: Callable[[], float]
    first_loss: float | None

    def loss(self) -> float:
        """The loss at ``after``."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if parameter is not self.after[name]:
                    parameter.copy_(self.after[name])
        return self.measure()


class StepRule(ABC):
    def scaled(self, scales: ModelScales) -> StepRule:
        """The rule where a codec has these scales."""
        return self

    def measure(
        self, trained: Trained, plan: Plan, last: Update | None, coordinates: float
    ) -> dict[str, Value]:
        """What a client adds to its report for the rule; may leave the model anywhere.

        Args:
            last: the previous round's update.
            coordinates: how many exact coordinates the report is worth.
        """
        return {}

    @property
    def report_values(self) -> frozenset[str]:
        """The names of the values that ``measure`` adds; a report with others is refused."""
        return frozenset()

    @property
    def update_values(self) -> frozenset[str]:
        """The same of ``decide`` and updates."""
        return frozenset(["server_step"])

    def check(self, report: Report) -> None:  # noqa: B027 (nothing to check)
        """Raise MessageError unless the report holds what ``measure`` adds."""

    @abstractmethod
    def known(self, last: Update | None, coordinates: float) -> float:
        """The step as it is known before a round's reports are; as for ``measure``."""

    @abstractmethod
    def check_update(self, update: Update) -> None:
        """Raise MessageError unless the update's values can be what ``decide`` says."""

    @abstractmethod
    def decide(
        self,
        reports: Sequence[Report],
        energy: float | None,
        last: Update | None,
        coordinates: float,
        mean: Mean,
    ) -> dict[str, Value]:
        """The values an update carries for the rule: ``server_step`` and its memory.

        Args:
            reports: without their tensors.
            energy: the codec's estimate of ||mean delta||**2, where it has one.
            last, coordinates: as for ``measure``.
            mean: the aggregation rule's, of numbers that reports carry.
        """


@dataclass(frozen=True)
class ConstantStep(StepRule):
    """The same step in every round."""

    step: float

    def known(self, last: Update | None, coordinates: float) -> float:
        return self.step

    def check_update(self, update: Update) -> None:
        if number(update, "server_step") != self.step:
            raise MessageError(f"the update's server step is not the recipe's {self.step:g}")

    def decide(
        self,
        reports: Sequence[Report],
        energy: float | None,
        last: Update | None,
        coordinates: float,
        mean: Mean,
    ) -> dict[str, Value]:
        return {"server_step": self.step}


@dataclass(frozen=True)
class CurvatureStep(StepRule):
    """s = K / (K + r): the larger the task's effective rank r, the smaller the stable step.

    r = tr(H) E / (c G) holds what the noise of K coordinates costs in loss against what a
    step gains for everybody. G is what the best step along a client's change gains for that
    client; clients' changes agree by c, the cosine of two of them, and that share of it is
    everybody's. E is the energy behind the noise: that of the mean of n changes where directions
    are shared, a single change's divided by n where they are each client's own. Clients measure
    on their first batch

    - the loss before training less that after, and less that half-way: G is the highest point of
      the parabola, for a change that overshoots alone need not in the mean of many;
    - tr(H), by adding noise of the size that is about to be added:
      (L(w + sigma z) + L(w - sigma z) - 2 L(w)) / sigma**2, z random signs;
    - the energy of their change.

    Where the codec has scales, all are of the model in scaled units: changes are divided by the
    factors, and z is multiplied by them.

    Attributes:
        seed: the recipe's.
        cohort_size: the clients that are to train the same parameters in a round. Clients measure
            with it; n are those that reported.
        shared: whether clients share directions. Their coordinates tell c then; otherwise
            clients add the signs of a few coordinates on shared directions: two changes at an
            angle theta have different ones with probability theta / pi (Goemans and Williamson
            1995; Charikar 2002), and weigh alike however large they are.
        scales: the codec's.
    """

    seed: int
    cohort_size: int
    shared: bool
    scales: ModelScales | None = None

    def scaled(self, scales: ModelScales) -> CurvatureStep:
        return replace(self, scales=scales)

    def measure(
        self, trained: Trained, plan: Plan, last: Update | None, coordinates: float
    ) -> dict[str, Value]:
        after, before = list(trained.after.values()), list(trained.before.values())
        scales = None if self.scales is None else self.scales.of(trained.after)
        energy = _energy(after, before, scales)
        signs = {} if self.shared else {"signs": self._common_signs(after, before, plan, scales)}
        last_loss = trained.loss()
        with torch.no_grad():
            for start, end in zip(before, after, strict=True):
                end.lerp_(start, 0.5)
        loss_halfway, first_loss = trained.loss(), trained.first_loss
        if first_loss is None:
            _copy(before, after)
            first_loss = trained.loss()
        values: dict[str, Value] = {
            "energy": short(energy),
            "gain": short(first_loss - last_loss),
            **signs,
            "gain_halfway": short(first_loss - loss_halfway),
        }
        state = StepMemory.of(last)
        noise = energy * self._noise_share(state.agreement, self.cohort_size) / coordinates
        sigma = max(_step(state, coordinates), _SMALLEST) * math.sqrt(noise)
        stream = Stream(self.seed, Purpose.PROBE, plan.round, plan.client)
        cost = 0.0
        for signed in (sigma, -sigma):
            _copy(before, after)
            perturb_(after, stream, signed, scales=scales)
            cost += trained.loss() - first_loss
        _copy(before, after)
        values["trace"] = short(cost / sigma**2) if sigma > 0 else 0.0
        return values

    @property
    def report_values(self) -> frozenset[str]:
        signs = [] if self.shared else ["signs"]
        return frozenset([*MEASURED, *signs])

    def known(self, last: Update | None, coordinates: float) -> float:
        return _step(StepMemory.of(last), coordinates)

    def check_update(self, update: Update) -> None:
        number(update, "rank")
        state = StepMemory.of(update)
        if not len(state.costs) == len(state.gains) <= NEWEST:
            raise MessageError("the update does not hold the newest rounds of the step's rule")
        if not state.is_possible:
            raise MessageError("the update holds costs and gains that the step's rule cannot add")
        if not 0 < number(update, "server_step") <= 1:
            raise MessageError("the update's server step is not above 0 and at most 1")

    @property
    def update_values(self) -> frozenset[str]:
        return frozenset(["server_step", "rank", *(f.name for f in fields(StepMemory))])

    def check(self, report: Report) -> None:
        for name in MEASURED:
            if abs(number(report, name)) > LARGEST:
                raise MessageError(f"the report's value {name!r} is larger than {LARGEST:g}")
        if number(report, "energy") < 0:
            raise MessageError("the report's value 'energy' is negative")
        if not self.shared:
            signs = report.values.get("signs")
            if not isinstance(signs, bytes) or len(signs) != _COMMON_SIGNS // 8:
                raise MessageError(f"the report lacks the {_COMMON_SIGNS} signs of its change")

    def decide(
        self,
        reports: Sequence[Report],
        energy: float | None,
        last: Update | None,
        coordinates: float,
        mean: Mean,
    ) -> dict[str, Value]:
        measured = {
            name: mean([number(report, name) for report in reports])
            for name in ("energy", "trace", "gain", "gain_halfway")
        }
        own = measured["energy"]
        known = StepMemory.of(last)
        cosine = _cosine_by_signs(reports) if energy is None else _cosine(energy, own, len(reports))
        agreement = known.agreeing(min(max(cosine, -1.0), 1.0))
        state = known.adding(
            cost=measured["trace"] * own * self._noise_share(agreement, len(reports)),
            # What the mean gains for those it was made by is not gained on unseen samples.
            gain=max(agreement, self._resolution(len(reports), coordinates))
            * _best_gain(measured["gain"], measured["gain_halfway"]),
            agreement=agreement,
        )
        step = _step(state, coordinates)
        return {"server_step": step, "rank": state.rank, **state.values()}

    def _noise_share(self, agreement: float, clients: int) -> float:
        """E as a share of one client's energy, in the mean of so many clients' changes."""
        alone, together = 1 / clients, max(agreement, 0.0)
        return together + (1 - together) * alone if self.shared else alone

    def _resolution(self, clients: int, coordinates: float) -> float:
        """The standard error of the agreement of clients that have nothing in common.

        What cannot be told from it is not taken for less: the model of a cohort that disagrees
        by chance would stay as it is.
        """
        if clients == 1:
            return 0.0
        pairs = clients * (clients - 1) / 2
        error = (
            math.sqrt(2 / coordinates) / (clients - 1)
            if self.shared
            else math.pi / 2 / math.sqrt(_COMMON_SIGNS * pairs)
        )
        return error * math.sqrt((1 - MEMORY) / (1 + MEMORY))

    def _common_signs(
        self,
        after: Sequence[Tensor],
        before: Sequence[Tensor],
        plan: Plan,
        scales: Scales | None = None,
    ) -> bytes:
        """A bit a sign."""
        basis = SignBasis(self.seed, plan.round, owner=SHARED, coordinates=_COMMON_SIGNS)
        y = basis.project([p.detach() for p in after], before=before, scales=scales)
        return np.packbits((y >= 0).cpu().numpy()).tobytes()


def _energy(after: Sequence[Tensor], before: Sequence[Tensor], scales: Scales | None) -> float:
    """The squared norm of what changed, in scaled units where there are scales."""
    here, start = LocalTensors.of(after), LocalTensors.of(before).tensors
    own = here.scales(scales)
    energy = _squares(here.tensors, start) if own is None else own.energy(here.tensors, start)
    return here.total(energy)


def _squares(after: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    return sum(
        float((a.float() - b.float()).square().sum()) for a, b in zip(after, before, strict=True)
    )


def _cosine(mean: float, own: float, clients: int) -> float:
    """Of two changes, from the energies of their mean and of each."""
    if clients == 1 or own == 0:
        return 1.0
    return (clients * mean / own - 1) / (clients - 1)


def _cosine_by_signs(reports: Sequence[Report]) -> float:
    """Of two changes, from the share of pairs of clients' signs that are equal."""
    clients = len(reports)
    if clients == 1:
        return 1.0
    rows = b"".join(bytes(r.values["signs"]) for r in reports)  # type: ignore[arg-type]
    each = np.frombuffer(rows, dtype=np.uint8).reshape(clients, -1)
    positive = np.unpackbits(each, axis=1).sum(axis=0, dtype=np.int64)
    negative = clients - positive
    equal = (positive * (positive - 1) + negative * (negative - 1)).mean()
    return -math.cos(math.pi * float(equal) / (clients * (clients - 1)))


def _step(state: StepMemory, coordinates: float) -> float:
    return coordinates / (coordinates + state.rank)


def _best_gain(whole: float, halfway: float) -> float:
    """What the best step along a change, whole or less, gains: the parabola through its losses.

    Args:
        whole, halfway: what the whole step and half of it gain.
    """
    slope = 4 * halfway - whole
    curvature = 2 * (slope - whole)
    if curvature <= slope:
        return max(whole, 0.0)
    return slope**2 / (2 * curvature) if slope > 0 else 0.0


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for from_, to in zip(source, target, strict=True):
            to.copy_(from_)


def server_step(
    option: float | Literal["auto"], seed: int, codec: Codec, cohort_size: int
) -> StepRule:
    """The rule that a recipe asks for: a number; or "auto", which is everything for codecs that
    say the change itself, and what the measured curvature allows for coordinates on random
    directions.

    Args:
        cohort_size: clients that train the same parameters in a round.
    """
    if option != "auto":
        return ConstantStep(float(option))
    if codec.directions is None:
        return ConstantStep(1.0)
    return CurvatureStep(seed, cohort_size, codec.directions == "shared")


def check_server_step(option: float | Literal["auto"]) -> None:
    """
    Raises:
        ValueError: the option is neither.
    """
    if option != "auto" and not 0 < option < math.inf:
        raise ValueError("server_step is a positive number or 'auto'")
