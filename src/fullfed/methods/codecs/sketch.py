"""The sketch codec: a change becomes K coordinates on random directions that everybody can make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fullfed.config_values import parse_bytes
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, Report, Update, number, numbers
from fullfed.methods.codecs.codec import (
    SCALES,
    SIGNS,
    Change,
    Codec,
    Contribution,
    Encoded,
    Shapes,
    Summable,
    Weighted,
    check_tensors,
    elements,
)
from fullfed.methods.codecs.numbers import Numbers
from fullfed.methods.codecs.products import Products, products_of_sketches
from fullfed.methods.codecs.scaling import ModelScales
from fullfed.methods.codecs.sketch_options import REPORT_HEADER, SketchOptions, amount
from fullfed.methods.codecs.split import (
    ALLOCATION,
    ENERGIES,
    allocation_of,
    blocks_of,
    check_energies,
    check_split,
    energies_of,
    remembered,
)
from fullfed.sketch import (
    SHARED,
    Coded,
    NormalBasis,
    Scales,
    SignBasis,
    allocate,
    codes_of,
    decoded,
    energy_of,
    signs_of,
)

# Most bytes of a report to a sum that are not numbers: 25 of its fields, 27 of the tensors' kinds,
# 96 of what is measured.
SUM_HEADER = 148

TAIL = 4.0  # standard deviations: beyond them are 6 in 100,000
_FIRST_NORM = 256.0  # of a first visit's change; in 32 bits one of 0.001 has digits enough


@dataclass(frozen=True)
class Sketch(Codec):
    """Sends K coordinates of the change; everyone reconstructs (Shu et al. 2024, arXiv 2409.06277,
    eqs. 2, 6 and 7).

    With shared directions coordinates add up, so the update is their mean: K numbers, coded as
    those of a client, however many clients. With directions of each client's own the noise
    averages out over the cohort, and the update holds every client's K numbers.

    The paper's basis has K_l directions for block l of the model. The error of the whole is least
    with K_l proportional to sqrt(d_l) ||delta_l|| (the paper's rule is not its own minimum; see
    docs/methods/ferret.md). Norms are estimated from earlier updates, which costs no traffic.

    Attributes:
        seed: the recipe's.
        options: see there.
        table: the recipe's table that has them, for errors.
        votes: whether reports are votes (``Codec.votes``).
        scales: of the parameters; None where noise is alike everywhere.
    """

    seed: int
    options: SketchOptions
    table: Literal["codec", "method"] = "codec"
    votes: bool = False
    scales: ModelScales | None = None

    def voting(self) -> Sketch:
        return replace(self, votes=self._shared and self.options.bits == 1)

    @property
    def comparable(self) -> bool:
        return self._shared

    @property
    def stacks(self) -> bool:
        return not self._shared

    @property
    def _shared(self) -> bool:
        return self.options.seeds == "shared"

    def for_sums(self, bits: int, shapes: Shapes) -> Codec:
        if not self._shared:
            return super().for_sums(bits, shapes)
        if self.options.basis != "sign":
            raise UserError(
                f"{self.table}.basis: numbers of the normal basis are of other sizes in each "
                "layer, and cannot be added up in few bits; take basis = 'sign'."
            )
        count, _ = self._amount(shapes)
        if self.options.upload is not None:
            room = 8 * (parse_bytes(self.options.upload) - SUM_HEADER)
            count = self._some(min(room // bits, elements(shapes)), SUM_HEADER)
        # A report holds numbers that are rounded for the sum, not coded.
        summed = replace(self.options, coordinates=count, upload=None, bits=32)
        return replace(self, options=summed)

    def summable(self, shapes: Shapes) -> Summable:
        """Coordinates are sums of many numbers with random signs, and so nearly normal."""
        count, _ = self._amount(shapes)
        first = TAIL * _FIRST_NORM / math.sqrt(count)
        return Summable({"coordinates": torch.Size([count])}, first, TAIL, few_bits=True)

    @property
    def directions(self) -> Literal["client", "shared"]:
        return self.options.seeds

    def coordinates(self, shapes: Shapes) -> float:
        """A mean of shared coordinates is coded once more than a client's own; a vote is not."""
        count, numbers = self._amount(shapes)
        return count * numbers.fidelity ** (2 if self._shared and not self.votes else 1)

    @property
    def asks_scales(self) -> Literal["auto", "curvature", "none"]:
        return "none" if self.options.basis == "normal" else self.options.scales

    def scaled(self, scales: ModelScales) -> Sketch:
        return replace(self, scales=scales)

    def check_parts(self, parts: Sequence[Shapes]) -> None:
        least = min(elements(part) for part in parts)
        if self.options.coordinates is not None and self.options.coordinates > least:
            what = "a model" if len(parts) == 1 else "a block"
            raise UserError(
                f"{self.table}.coordinates: {self.options.coordinates} coordinates for {what} of "
                f"{least} parameters; ask for at most one per parameter."
            )
        for part in parts:
            count, _ = self._amount(part)
            if self.options.basis == "normal" and count < len(blocks_of(part)):
                raise UserError(
                    f"{self.table}.coordinates: {count} coordinates for {len(blocks_of(part))} "
                    "blocks; the normal basis needs at least one a block, the sign basis does not."
                )
        if self.options.basis == "normal" and len(parts) > 1:
            raise UserError(
                f"{self.table}.basis: the normal basis splits coordinates by the last update of "
                "the whole model, so it cannot send one block at a time; take 'sign'."
            )

    def plan(self, round: int, last: Update | None, shapes: Shapes) -> Encoded:
        if self.options.basis == "sign":
            return Encoded()
        sizes = [size for _, size in blocks_of(shapes)]
        # Before anything is known, every element is as likely to change as any other.
        energies = sizes if last is None else numbers(last, ENERGIES)
        weights = [math.sqrt(d * e) for d, e in zip(sizes, energies, strict=True)]
        count, _ = self._amount(shapes)
        return Encoded({ALLOCATION: list(allocate(count, weights, sizes))})

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        owner = SHARED if self._shared else plan.client
        after = [p.detach() for p in change.after.values()]
        before = [change.before[name] for name in change.after]
        basis = self._basis(plan.round, owner, plan, shapes)
        if isinstance(basis, SignBasis):
            coordinates = basis.project(after, before=before, scales=self._scales(change.after))
        else:
            coordinates = basis.project(after, before=before)
        _, numbers = self._amount(shapes)
        return Encoded(tensors=numbers.encode(coordinates, plan.round, plan.client))

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        count, numbers = self._amount(shapes)
        return numbers.nbytes(count)

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        count, numbers = self._amount(shapes)
        numbers.check(report, count)

    @property
    def plan_values(self) -> frozenset[str]:
        return frozenset([ALLOCATION] if self.options.basis == "normal" else [])

    def update_values(self, update: Update) -> frozenset[str]:
        split = [ALLOCATION, ENERGIES] if self.options.basis == "normal" else []
        return frozenset([*split, *(["energy"] if self._shared else [])])

    def check_plan(self, plan: Plan, shapes: Shapes) -> None:
        check_tensors(plan, {})
        if self.options.basis == "normal":
            check_split(plan, self._amount(shapes)[0], shapes)

    def check_update(self, update: Update, shapes: Shapes) -> None:
        count, numbers = self._amount(shapes)
        if self.options.basis == "normal":
            check_split(update, count, shapes)
            check_energies(update, shapes)
        if self._shared:
            numbers.check(update, count)
        else:
            numbers.check_stacked(update, count)

    def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
        count, numbers = self._amount(shapes)
        coded = numbers.decode(report.tensors, count, report.round, report.client)
        if self.votes and isinstance(coded, Coded):
            signs = signs_of(coded)
            noise = (1 - numbers.fidelity) * energy_of(coded.scales, len(signs))
            return Contribution({SIGNS: signs, SCALES: coded.scales}, noise)
        y = decoded(coded).double()
        return Contribution({"coordinates": y}, noise=(1 - numbers.fidelity) * float(y @ y))

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        tensors = self.decode(report, plan, shapes).tensors
        if self.votes:
            return math.sqrt(energy_of(tensors[SCALES], len(tensors[SIGNS])))
        y = tensors["coordinates"]
        sign = self.options.basis == "sign"
        energies = [float(y @ y)] if sign else energies_of(y, plan, shapes)
        return math.sqrt(math.fsum(energies))

    def products(
        self, reports: Sequence[Report], plans: Sequence[Plan], shapes: Shapes
    ) -> Products | None:
        """Of changes divided by their scales; None with the normal basis."""
        count, numbers = self._amount(shapes)
        if self.options.basis != "sign":
            return None
        each = (
            self.decode(report, plan, shapes).tensors["coordinates"].float()
            for report, plan in zip(reports, plans, strict=True)
        )
        bases = [SignBasis(self.seed, r.round, owner=r.client, coordinates=count) for r in reports]
        return products_of_sketches(bases, each, elements(shapes), numbers.fidelity)

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        if self.votes:
            signs, scales = aggregate.tensors[SIGNS], aggregate.tensors[SCALES]
            energy = max(energy_of(scales, len(signs)) - aggregate.noise, 0.0)
            return Encoded({"energy": energy}, {"codes": codes_of(signs), "scales": scales})
        y = aggregate.tensors["coordinates"]
        values, energy = allocation_of(plan), float(y @ y)
        if self.options.basis == "normal":
            energies = energies_of(y, plan, shapes)
            values |= remembered(energies, last)
            energy = math.fsum(energies)
        values["energy"] = max(energy - aggregate.noise, 0.0)
        _, numbers = self._amount(shapes)
        return Encoded(values, numbers.encode(y.float(), plan.round, SHARED))

    def stack(self, reports: Weighted, plan: Plan, shapes: Shapes, last: Update | None) -> Encoded:
        tensors = {
            name: torch.stack([report.tensors[name] for _, report in reports])
            for name in reports[0][1].tensors
        }
        tensors["clients"] = torch.tensor([report.client for _, report in reports])
        tensors["weights"] = torch.tensor([weight for weight, _ in reports])
        values = allocation_of(plan)
        if self.options.basis == "normal":
            each = [
                energies_of(report.tensors["coordinates"].double(), plan, shapes)
                for _, report in reports
            ]
            wide = torch.float64
            shares = torch.tensor([weight for weight, _ in reports], dtype=wide)
            means = shares @ torch.tensor(each, dtype=wide)
            values |= remembered(means.tolist(), last)
        return Encoded(values, tensors)

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        weights = [p.detach() for p in parameters.values()]
        step, device = number(update, "server_step"), weights[0].device
        for owner, share, coordinates in self._received(update, shapes, device):
            basis = self._basis(update.round, owner, update, shapes)
            if isinstance(basis, SignBasis):
                scales = self._scales(parameters)
                basis.reconstruct_(weights, coordinates, scale=step * share, scales=scales)
            else:
                basis.reconstruct_(weights, coordinates, scale=step * share)

    def _received(
        self, update: Update, shapes: Shapes, device: torch.device
    ) -> Iterator[tuple[int, float, Tensor | Coded]]:
        """Owner, weight and coordinates of each set in an update, on the device; valid until the
        next is made."""
        (count, numbers), tensors = self._amount(shapes), dict(update.tensors)
        room = numbers.room(count, device)
        if self._shared:
            yield SHARED, 1.0, numbers.decode(tensors, count, update.round, SHARED, device, room)
            return
        clients, shares = tensors.pop("clients").tolist(), tensors.pop("weights").tolist()
        for row, (client, share) in enumerate(zip(clients, shares, strict=True)):
            own = {name: stacked[row] for name, stacked in tensors.items()}
            yield client, share, numbers.decode(own, count, update.round, client, device, room)

    def _amount(self, shapes: Shapes) -> tuple[int, Numbers]:
        """K for parameters of these shapes, and how the coordinates are sent."""
        count, numbers = amount(self.seed, self.options, elements(shapes))
        return self._some(count, REPORT_HEADER), replace(numbers, votes=self.votes)

    def _scales(self, names: Iterable[str]) -> Scales | None:
        return None if self.scales is None else self.scales.of(names)

    def _some(self, count: int, header: int) -> int:
        """So many coordinates, if there are any beside a report's header.

        Raises:
            UserError: there are none.
        """
        if count < 1:
            raise UserError(
                f"{self.table}.upload: {self.options.upload} leaves no room for a coordinate "
                f"beside the {header} bytes of a report's header; raise it."
            )
        return count

    def _basis(
        self, round: int, owner: int, message: Plan | Update, shapes: Shapes
    ) -> SignBasis | NormalBasis:
        if self.options.basis == "sign":
            count, _ = self._amount(shapes)
            return SignBasis(self.seed, round, owner=owner, coordinates=count)
        return NormalBasis(
            self.seed,
            round,
            owner=owner,
            blocks=tuple(block for block, _ in blocks_of(shapes)),
            coordinates=tuple(int(k) for k in numbers(message, ALLOCATION)),
        )
