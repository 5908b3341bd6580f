"""The top-k codec: the k largest numbers of a change, and where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import StrictInt
from torch import Tensor

from fullfed.config_values import NOT_BOTH, parse_bytes
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.federation.replica import norm
from fullfed.methods.codecs.codec import (
    Change,
    Codec,
    Contribution,
    Encoded,
    Shapes,
    Weighted,
    elements,
)
from fullfed.methods.codecs.largest import largest_of_chunks, select_largest
from fullfed.methods.codecs.positions import (
    decode_positions,
    encode_positions,
    pack_bits,
    rice_bits,
    unpack_bits,
)
from fullfed.sketch import LARGEST_SCALE

# Most bytes of a report that are neither positions nor values, whatever its numbers: 25 of its
# fields and 60 of the tensors' kinds (docs/messages.md).
REPORT_HEADER = 85
_EXACT = 32  # bits of a value sent as float32
_ITERATIONS = 20  # of Lloyd's algorithm; levels move little after a few


class SparseVector(NamedTuple):
    """Some numbers of a vector of d.

    Attributes:
        positions: int64, increasing, from 0 to d - 1.
        values: float32, as many.
    """

    positions: NDArray[np.int64]
    values: NDArray[np.float32]

    def largest(self, count: int) -> SparseVector:
        """Those of largest absolute value; of equal ones the first."""
        chosen, _ = select_largest([torch.from_numpy(self.values)], count)
        return SparseVector(self.positions[chosen], self.values[chosen])

    def worth_sending(self, bits: int) -> SparseVector:
        """The largest half, quarter, ... of them, if levels then say more of the whole vector: its
        squared error is its energy less what is returned by ``_energy_kept``."""
        best, half = self, self.largest(len(self.values) // 2)
        while len(half.values) and half._energy_kept(bits) > best._energy_kept(bits):
            best, half = half, half.largest(len(half.values) // 2)
        return best

    def _energy_kept(self, bits: int) -> float:
        """The energy of the values less that of what their levels leave."""
        sizes = np.abs(self.values).astype(np.float64)
        levels, nearest = fit_levels(np.abs(self.values), _level_count(bits))
        return float(sizes @ sizes - np.square(sizes - levels[nearest]).sum())


@dataclass(frozen=True)
class TopK(Codec):
    """Sends the k numbers of largest absolute value among all that a visit changed; zeros never.

    Values are sent in few bits: a sign, and which of 2**(bits - 1) levels the absolute value is
    nearest to. The levels are those of least squared error for the report's own values (Lloyd
    1982): the mean of all where the sign is the only bit. Positions cost about log2(d / k) + 1.5
    bits each (positions.py).

    An update holds the clients' reports with their weights: together these are shorter than
    their mean, in which almost every position is one client's alone. A rule that compares clients
    number by number gets zeros for what a client did not send, and its update is in float32.

    With error feedback (Stich et al. 2018, arXiv 1809.07599, algorithm 1) what a client does not
    send is not lost. A decay below 1 forgets it slowly (SparseLoCo: Sarfi et al. 2025, arXiv
    2508.15706, has 0.95).

    Attributes:
        upload (bytes): of a client's report, such as "32KiB", from which k follows.
        count (numbers): k, that a client sends; in place of upload. With chunk, of each chunk.
        chunk (numbers): how many in a row, of the whole model, are a chunk: the largest of each are
            sent, in place of the largest of all.
        bits (bits): of each value: 1 to 8, of which one is its sign, or 32, which is float32.
        error_feedback: whether clients keep what was not sent and add it to their next change (of
            the same block).
        decay: what was kept is multiplied by this first.
    """

    upload: str | StrictInt | None = None
    count: int | None = None
    bits: int = 1
    error_feedback: bool = False
    decay: float = 1.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if (self.upload is None) == (self.count is None):
            both = f", {NOT_BOTH}" if self.upload is not None else ""
            raise ValueError(f"give upload or count{both}")
        if self.upload is not None:
            parse_bytes(self.upload)
        if self.count is not None and self.count < 1:
            raise ValueError("count is at least 1")
        if not 1 <= self.bits <= 8 and self.bits != _EXACT:
            raise ValueError("bits is 1 to 8, or 32")
        if self.chunk is not None and (self.count is None or not self.count <= self.chunk):
            raise ValueError("chunk goes with a count, which is at most as many")
        if not 0 < self.decay <= 1:
            raise ValueError("decay is a share, above 0 and at most 1")
        if self.decay < 1 and not self.error_feedback:
            raise ValueError("decay goes with error_feedback = true; without it nothing is kept")

    @property
    def stacks(self) -> bool:
        return True

    @property
    def stateful(self) -> bool:
        return self.error_feedback

    def check_parts(self, parts: Sequence[Shapes]) -> None:
        least = min(elements(part) for part in parts)
        if self.count is not None and self.count > least and self.chunk is None:
            raise UserError(
                f"codec.count: {self.count} numbers of {least} parameters; ask for at "
                "most one per parameter."
            )
        if self._budget is not None and self._most(least) < 1:
            raise UserError(
                f"codec.upload: {self.upload} leaves no room for a number beside the "
                f"{REPORT_HEADER} bytes of a report's header; raise it."
            )

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        wanted = {
            name: p.detach().to(torch.float32, copy=True).sub_(change.before[name].float())
            for name, p in change.after.items()
        }
        for name, residual in change.state.items():
            wanted[name].add_(residual.to(wanted[name].device), alpha=self.decay)
        size = elements(shapes)
        entries = self._largest([t.view(-1) for t in wanted.values()], size)
        if not np.isfinite(entries.values).all():
            raise UserError(
                "the change to send is not finite; lower local.learning_rate or check the data."
            )
        if self.bits != _EXACT and self.chunk is None:
            entries = entries.worth_sending(self.bits)
        sent = encode_entries(entries, size, self.bits)
        while self._budget and (nbytes := sum(t.nbytes for t in sent.values())) > self._budget:
            count = len(entries.positions)
            # Fewer positions cost more each: a little less than in proportion, not to do it often.
            entries = entries.largest(min(count - 1, 511 * count * self._budget // (512 * nbytes)))
            sent = encode_entries(entries, size, self.bits)
        if self.stateful:
            for name, place, values in _by_tensor(decode_entries(sent, size), shapes):
                residual = wanted[name].view(-1)
                residual[place] -= values.to(residual.device)
        return Encoded(tensors=sent, state=wanted if self.stateful else {})

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        if self._budget is not None:
            return self._budget
        size = elements(shapes)
        count = self._most(size)
        # All positions together have at most d / 2**r ones beside each one's zero and r bits.
        bits = count * (self.bits + 1 + rice_bits(count, size))
        bits += size >> rice_bits(count, size)
        return bits // 8 + 3 + 4 * _level_count(self.bits)

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        entries = decode_entries(report.tensors, elements(shapes))
        levels = report.tensors.get("levels", ())
        if len(levels) != _level_count(self.bits):
            raise MessageError(f"the report's values are not of {self.bits} bits")
        if len(entries.positions) > self._most(elements(shapes)):
            raise MessageError(f"the report holds {len(entries.positions)} numbers, too many")

    def check_update(self, update: Update, shapes: Shapes) -> None:
        weights = update.tensors.get("weights", torch.zeros(()))
        reports = _reports(update)
        if weights.ndim != 1 or weights.dtype != torch.float32:
            raise MessageError("the update does not hold a weight for each report")
        places = range(min(weights.numel(), len(reports) + 1))  # a stranger's may be very many
        if reports.keys() != {str(place) for place in places}:
            raise MessageError("the update does not hold as many reports as weights")
        for tensors in reports.values():
            decode_entries(tensors, elements(shapes))

    def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
        dense = {name: torch.zeros(shape) for name, shape in shapes.items()}
        for name, place, values in _by_tensor(
            decode_entries(report.tensors, elements(shapes)), shapes
        ):
            dense[name].view(-1)[place] = values
        return Contribution(dense)

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        return norm([torch.from_numpy(decode_entries(report.tensors, elements(shapes)).values)])

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        size = elements(shapes)
        flat = [aggregate.tensors[n].view(-1) for n in shapes]
        entries = SparseVector(*select_largest(flat, size))
        sent = encode_entries(entries, size, _EXACT)
        named = {f"0/{name}": tensor for name, tensor in sent.items()}
        return Encoded(tensors={**named, "weights": torch.ones(1)})

    def stack(self, reports: Weighted, plan: Plan, shapes: Shapes, last: Update | None) -> Encoded:
        tensors = {"weights": torch.tensor([weight for weight, _ in reports])}
        for place, (_, report) in enumerate(reports):
            tensors |= {f"{place}/{name}": tensor for name, tensor in report.tensors.items()}
        return Encoded(tensors=tensors)

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        step, reports = number(update, "server_step"), _reports(update)
        for place, weight in enumerate(update.tensors["weights"].tolist()):
            entries = decode_entries(reports[str(place)], elements(shapes))
            for name, spots, values in _by_tensor(entries, shapes):
                parameter = parameters[name]
                flat = parameter.contiguous().view(-1)
                spots, values = spots.to(flat.device), values.to(flat.device)
                flat[spots] = (flat[spots].float() + values * (step * weight)).to(flat.dtype)
                if not parameter.is_contiguous():
                    parameter.copy_(flat.view(parameter.shape))

    @property
    def _budget(self) -> int | None:
        """Bytes for a report's tensors."""
        if self.upload is None:
            return None
        return parse_bytes(self.upload) - REPORT_HEADER

    def _largest(self, tensors: Sequence[Tensor], size: int) -> SparseVector:
        if self.chunk is None:
            return SparseVector(*select_largest(tensors, self._most(size)))
        assert self.count is not None
        return SparseVector(*largest_of_chunks(tensors, self.count, self.chunk))

    def _most(self, size: int) -> int:
        """The most numbers, of ``size``, that a report can hold."""
        if self.count is not None:
            return self.count * (-(-size // self.chunk) if self.chunk else 1)
        assert self._budget is not None
        room = 8 * (self._budget - 4 * _level_count(self.bits))
        low, high = 0, size
        while low < high:  # a position costs 1 + r bits at least
            middle = (low + high + 1) // 2
            fits = middle * (self.bits + 1 + rice_bits(middle, size)) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def _reports(update: Update) -> dict[str, dict[str, Tensor]]:
    """The tensors of each of the reports that an update holds, by its place."""
    reports: dict[str, dict[str, Tensor]] = {}
    for name, tensor in update.tensors.items():
        if name != "weights":
            place, _, own = name.partition("/")
            reports.setdefault(place, {})[own] = tensor
    return reports


def encode_entries(entries: SparseVector, size: int, bits: int) -> dict[str, Tensor]:
    """The tensors of a report.

    Args:
        size: d.
        bits: of each value.
    """
    high, low = encode_positions(entries.positions, size)
    sent = {"positions": torch.from_numpy(high), "remainders": torch.from_numpy(low)}
    if bits == _EXACT:
        return {**sent, "values": torch.from_numpy(entries.values)}
    levels, nearest = fit_levels(np.abs(entries.values), _level_count(bits))
    codes = nearest | ((entries.values < 0).astype(np.int64) << (bits - 1))
    packed = torch.from_numpy(pack_bits(codes, bits))
    return {**sent, "codes": packed, "levels": torch.from_numpy(levels)}


def decode_entries(tensors: Mapping[str, Tensor], size: int) -> SparseVector:
    """
    Args:
        tensors: of a report.
        size: d.

    Raises:
        MessageError: they are not what ``encode_entries`` makes.
    """
    exact = "values" in tensors
    kinds = {"positions": torch.uint8, "remainders": torch.uint8}
    kinds |= {"values": torch.float32} if exact else {"codes": torch.uint8, "levels": torch.float32}
    found = {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
    if found != {name: (dtype, 1) for name, dtype in kinds.items()}:
        raise MessageError("the report does not hold positions and values and nothing else")
    sent = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    positions = decode_positions(sent["positions"], sent["remainders"], size)
    values = sent["values"] if exact else _values(sent["codes"], sent["levels"], len(positions))
    if len(values) != len(positions) or not (np.abs(values) <= LARGEST_SCALE).all():
        raise MessageError(f"the report's values are not one a position within {LARGEST_SCALE:g}")
    return SparseVector(positions, values)


def _values(
    codes: NDArray[np.uint8], levels: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    bits = len(levels).bit_length()
    fits = 1 <= bits <= 8 and len(levels) == _level_count(bits)
    if not fits or len(codes) != -(-count * bits // 8):
        raise MessageError("the report's codes and levels do not fit its positions")
    unpacked = unpack_bits(codes, count, bits)
    found = levels[unpacked & (len(levels) - 1)]
    return np.asarray(np.where(unpacked >> (bits - 1) == 1, -found, found))


def fit_levels(
    sizes: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """``count`` levels of least squared error (Lloyd 1982), and which is nearest to each size."""
    if len(sizes) == 0:
        return np.zeros(count, np.float32), np.zeros(0, np.int64)
    ordered = np.sort(sizes).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    edges = np.linspace(0, len(ordered), count + 1).astype(np.int64)
    levels = np.full(count, ordered[-1])
    for _ in range(_ITERATIONS):
        lengths = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(lengths, 1)
        levels = np.sort(np.where(lengths > 0, means, levels))
        inner = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], inner, [len(ordered)]])
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, sizes)
    return levels.astype(np.float32), nearest.astype(np.int64)


def _level_count(bits: int) -> int:
    return 0 if bits == _EXACT else 1 << (bits - 1)


def _by_tensor(entries: SparseVector, shapes: Shapes) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The entries in each tensor: its name, places in the flat tensor, and values."""
    start = 0
    for name, shape in shapes.items():
        end = start + shape.numel()
        own = slice(*np.searchsorted(entries.positions, [start, end]))
        places = torch.from_numpy(entries.positions[own] - start)
        yield name, places, torch.from_numpy(entries.values[own])
        start = end
