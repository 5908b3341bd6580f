"""From a method and the recipe's table ``privacy`` to the method of which only sums are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fullfed.config import FederationTable
from fullfed.config_privacy import PrivacyTable
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Report, Update, Value, number
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.codecs.codec import Codec, cannot_be_added, elements
from fullfed.methods.codecs.sketch import TAIL
from fullfed.methods.composition import Composition
from fullfed.methods.schedules import PoissonCohort
from fullfed.methods.server_step import CurvatureStep, Mean, StepRule
from fullfed.methods.step_memory import FIRST_RANK, StepMemory
from fullfed.methods.summed import SummedComposition

if TYPE_CHECKING:
    from fullfed.privacy.mechanism import Mechanism

_FEWEST_TOGETHER = 3


def summed(
    method: Composition,
    table: PrivacyTable,
    federation: FederationTable,
    clients: int,
    auto: bool,
) -> SummedComposition:
    """The method whose server knows sums.

    Args:
        clients: in the federation.
        auto: whether the recipe leaves the server step to the method.

    Raises:
        UserError: the method's reports cannot be added up, or too few would be.
    """
    check_installed()
    _check(method, table)
    shapes, cohort = method.setting.shapes, federation.clients_per_round
    bits = table.bits or _bits(cohort)
    codec, mechanism, step = method.codec.for_sums(bits, shapes), None, method.step
    if table.protects == "client":
        from fullfed.privacy.calibration import client_mechanism

        mechanism = client_mechanism(table, federation, clients)
        about = codec.summable(shapes)
        if about.few_bits and table.bits is None:
            bits, codec = _bits_for_noise(method, mechanism, cohort)
        if auto or isinstance(step, CurvatureStep):
            step = PriorStep()
    schedule = method.schedule
    if table.sampling == "poisson":
        schedule = PoissonCohort(b"", clients, cohort)
    together = mechanism.most_clients if mechanism else cohort
    least = math.ceil(math.log2(2 * together + 4))
    if bits < least:
        raise UserError(
            f"privacy.bits: the sum of {together} clients needs at least {least} bits a "
            "coordinate; raise it, or leave it out."
        )
    own = {f.name: getattr(method, f.name) for f in fields(Composition)}
    return SummedComposition(
        **{**own, "codec": codec, "step": step, "schedule": schedule},
        secure=table.secure_sum,
        few_bits=bits,
        mechanism=mechanism,
        fewest=(2 * cohort // 3 + 1) if table.secure_sum else 1,
    )


def keyed(method: Composition, secret: bytes) -> Composition:
    """The method with what only the server knows: 32 bytes of which noise and cohorts follow."""
    if not isinstance(method, SummedComposition):
        return method
    schedule = method.schedule
    if isinstance(schedule, PoissonCohort):
        schedule = replace(schedule, key=secret)
    return replace(method, secret=secret, schedule=schedule)


def check_installed() -> None:
    """
    Raises:
        UserError: the extra that the table ``privacy`` needs is not installed.
    """
    for needed in ("cryptography", "Crypto", "dp_accounting", "randomgen"):
        if find_spec(needed) is None:
            raise UserError(
                f'privacy: {needed} is not installed; run pip install "fullfed[privacy]".'
            )


def _check(method: Composition, table: PrivacyTable) -> None:
    what = "a secure sum" if table.secure_sum else "a sum with noise"
    if method.blocks or method.submodels is not None:
        raise UserError(
            f"privacy: {what} is of clients that train the same parameters, and this method's "
            "train a block each; take a method whose cohort trains together, such as ferret."
        )
    if type(method) is not Composition:
        raise UserError(
            f"privacy: {what} is of the same numbers in every round, and this method's change with "
            "what reports say; take a method such as ferret."
        )
    if method.codec.stacks:
        raise cannot_be_added()
    if type(method.aggregation) is not WeightedMean:
        raise UserError(
            f"aggregation.name: {what} shows the server no single report, which this rule "
            "compares; take aggregation.name = 'mean'."
        )
    if method.aggregation.weights != "equal":
        raise UserError(
            f"aggregation.weights: in {what} clients count alike, since the server is not to know "
            "their samples; set aggregation.weights = 'equal'."
        )
    together = method.schedule.fewest_together
    if table.secure_sum and together < _FEWEST_TOGETHER:
        raise UserError(
            f"federation.clients_per_round: a sum of {together} shows "
            f"{'that one' if together == 1 else 'each of two the other'}'s numbers; have at least "
            f"{_FEWEST_TOGETHER} clients in a round."
        )
    if table.protects == "client" and method.stateful:
        raise UserError(
            "privacy.protects: clients that keep something between visits show who was in a "
            "round; leave codec.error_feedback and local.optimizer_state out."
        )


def _bits(cohort: int) -> int:
    """The bits of a coordinate that are worth most, in a sum of so many clients.

    Fewer bits leave room for more coordinates, and their rounding is noise that the mean over
    clients makes smaller: relative to what clients have in common it is variance / (n agreement).
    """

    def price(bits: int) -> float:
        unit = TAIL / (((1 << (bits - 1)) - 1) // cohort)
        # Of a standard normal number between two levels: f (1 - f) unit**2, in the mean.
        variance = unit**2 / 6 if unit <= 2 else unit * math.sqrt(2 / math.pi) - 1
        return float(bits) * (1 + variance / (cohort * StepMemory().agreement))

    fewest = math.ceil(math.log2(2 * cohort + 2))
    return min(range(fewest, 25), key=price)


def _bits_for_noise(method: Composition, mechanism: Mechanism, cohort: int) -> tuple[int, Codec]:
    """The fewest in which the grid of a sketch's sum is fine enough, and the codec with them."""
    shapes = method.setting.shapes
    for bits in range(_bits(cohort), 33):
        codec = method.codec.for_sums(bits, shapes)
        if mechanism.fits(_numbers(method, codec), bits, mechanism.most_clients):
            break
    return bits, codec


def _numbers(method: Composition, codec: Codec) -> int:
    """How many a report has."""
    return elements(codec.summable(method.setting.shapes).shapes)


@dataclass(frozen=True)
class PriorStep(StepRule):
    """s = c / (c + r) with the rank r that tasks have before any measurement, where measuring would
    cost privacy; c is how many exact coordinates the noisy sum is worth, which is public."""

    def known(self, last: Update | None, coordinates: float) -> float:
        return coordinates / (coordinates + FIRST_RANK)

    def check_update(self, update: Update) -> None:
        if not 0 < number(update, "server_step") <= 1:
            raise MessageError("the update's server step is not above 0 and at most 1")

    def decide(
        self,
        reports: Sequence[Report],
        energy: float | None,
        last: Update | None,
        coordinates: float,
        mean: Mean,
    ) -> dict[str, Value]:
        return {"server_step": self.known(last, coordinates)}
