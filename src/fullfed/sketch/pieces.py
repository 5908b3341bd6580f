"""Seeing a list of tensors as one long row of elements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fullfed.randomness import Purpose, Stream
from fullfed.sketch.backends import Backend, Piece
from fullfed.sketch.strided import SERIAL, assign, elements, slices
from fullfed.sketch.weights import ElementWeight, Factor

Rounding = Literal["nearest", "stochastic"]  # of bfloat16 weights
STAGED = 1 << 17  # elements copied at once, on the CPU, where a kernel cannot work in place
LAUNCHED = 1 << 22  # on other devices, where each copy is a launch


class Noise(NamedTuple):
    """The stream that rounds bfloat16 weights, and where in it the first element stands."""

    stream: Stream
    first: int = 0


def rounding_noise(rounding: Rounding, stream: Stream, first: int = 0) -> Noise | None:
    """Rounding of the same seed, round and owner as ``stream``; None to nearest."""
    if rounding == "nearest":
        return None
    return Noise(Stream(stream.seed, Purpose.ROUNDING, stream.round, stream.owner), first)


def readable(
    tensors: Sequence[Tensor], before: Sequence[Tensor] | None, weights: Sequence[Factor]
) -> Iterator[list[Piece]]:
    """All elements in order, as many at once as possible.

    What is contiguous and has one weight is handed over in place. Of the rest
    fl(weight * fl(tensor - before)) is copied a stretch at a time.
    """
    return _batches(_to_read(tensors, before, weights))


def _to_read(
    tensors: Sequence[Tensor], before: Sequence[Tensor] | None, weights: Sequence[Factor]
) -> Iterator[tuple[Piece, bool]]:
    offset = 0
    for number, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        new = tensor.detach()
        old = None if before is None else before[number].detach()
        whole = new.is_contiguous() and (old is None or old.is_contiguous())
        if whole and isinstance(weight, float):
            flat = None if old is None else old.view(-1)
            yield Piece(new.view(-1), offset, weight, flat), True
        else:
            for part in slices(0, new.numel(), _staged(new.device)):
                wide = torch.empty(part.stop - part.start, dtype=torch.float32, device=new.device)
                load(wide, new, old, weight, part.start)
                yield Piece(wide, offset + part.start), False
        offset += new.numel()


def load(target: Tensor, new: Tensor, old: Tensor | None, weight: Factor, start: int) -> None:
    """target = fl(weight * fl(new - old)) of elements start, start + 1, ..., float32."""
    for here, part in _at_once(target, start):
        here.copy_(elements(new, part.start, part.stop))
        if old is not None:
            here -= elements(old, part.start, part.stop).float()
        if weight != 1.0:
            here *= weight if isinstance(weight, float) else weight.part(part.start, part.stop)


def writable(
    tensors: Sequence[Tensor],
    factors: Sequence[Factor],
    kernels: Backend,
    noise: Noise | None = None,
    offset: int = 0,
) -> Iterator[list[Piece]]:
    """All elements in order, as many at once as possible; what is added to them is kept.

    The first is number ``offset``. What is contiguous, has one factor and is rounded to nearest
    is handed over in place. The rest is copied, and written back, a stretch at a time.
    """
    return _batches(_to_write(tensors, factors, kernels, noise, offset))


def _to_write(
    tensors: Sequence[Tensor],
    factors: Sequence[Factor],
    kernels: Backend,
    noise: Noise | None,
    offset: int,
) -> Iterator[tuple[Piece, bool]]:
    place = 0
    for tensor, factor in zip(tensors, factors, strict=True):
        old = tensor.detach()
        rounded = noise if old.dtype == torch.bfloat16 else None
        if isinstance(factor, float) and rounded is None and old.is_contiguous():
            yield Piece(old.view(-1), offset + place, factor), True
        else:
            for part in slices(0, old.numel(), _staged(old.device)):
                wide = torch.empty(part.stop - part.start, dtype=torch.float32, device=old.device)
                if isinstance(factor, float):
                    load(wide, old, None, 1.0, part.start)
                    yield Piece(wide, offset + place + part.start, factor), False
                else:
                    wide.fill_(-0.0)  # -0 + x is x, whatever its sign
                    yield Piece(wide, offset + place + part.start), False
                    _add_to(wide, old, factor, part.start)
                _store(old, part.start, wide, kernels, rounded, place)
        place += old.numel()


def _add_to(change: Tensor, old: Tensor, factor: ElementWeight, start: int) -> None:
    """change = fl(old + fl(factor * change)) of elements start, start + 1, ..."""
    for here, part in _at_once(change, start):
        here *= factor.part(part.start, part.stop)
        here += elements(old, part.start, part.stop).float()


def _store(
    target: Tensor, start: int, wide: Tensor, kernels: Backend, noise: Noise | None, place: int
) -> None:
    """Elements start, start + 1, ... become ``wide``, rounded; element 0 is number ``place``."""
    rounded = wide
    if noise is not None:
        rounded = elements(target, start, start + wide.numel())  # in place if contiguous
        kernels.round_to(rounded, wide, noise.stream, noise.first + place + start)
    if noise is None or not target.is_contiguous():
        for here, part in _at_once(rounded, start):
            assign(target, part.start, here)


def _batches(pieces: Iterable[tuple[Piece, bool]]) -> Iterator[list[Piece]]:
    """Consecutive pieces that are in place together, others alone; none empty."""
    run: list[Piece] = []
    for piece, in_place in pieces:
        if in_place:
            if piece.flat.numel():
                run.append(piece)
            continue
        if run:
            yield run
            run = []
        yield [piece]
    if run:
        yield run


def _staged(device: torch.device) -> int:
    return STAGED if device.type == "cpu" else LAUNCHED


def _at_once(row: Tensor, start: int) -> Iterator[tuple[Tensor, slice]]:
    """Parts of a row and their numbers, counted from ``start``, as torch should work on them.

    On the CPU so small that torch does not wake threads of its own, which spin on into ours.
    """
    step = SERIAL if row.device.type == "cpu" else row.numel()
    for part in slices(0, row.numel(), step):
        yield row[part], slice(start + part.start, start + part.stop)


def zeros(rows: int, columns: int, device: torch.device) -> Tensor:
    """float32 zeros, on the CPU without torch's threads."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros((rows, columns), dtype=np.float32))
    return torch.zeros(rows, columns, dtype=torch.float32, device=device)
