"""A list of tensors of any shapes and strides, seen as one row of elements, as backends take it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fullfed.sketch.backends import Segment
from fullfed.sketch.scales import Scales
from fullfed.sketch.shards import LocalTensors

SERIAL = 1 << 15  # torch uses threads of its own for element-wise work on more elements than this
STAGED = 1 << 17  # elements copied at once, on the CPU, where a kernel cannot work in place
LAUNCHED = 1 << 22  # the same on other devices, where each copy is a launch

_NAN = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}

Box = tuple[int | slice, ...]


def readable(
    here: LocalTensors,
    before: Sequence[Tensor] | None,
    scales: Scales | None = None,
    *,
    scaled: bool = False,
) -> Iterator[list[Segment]]:
    """All elements that are here in order, as many at once as possible.

    ``before`` and scales are of the same part of the tensors. Contiguous tensors are handed over in
    place. Of others, and of those with scales if kernels are not ``scaled``, fl(tensor - before),
    times the inverse factor, is copied, a stretch at a time.
    """
    return _batches(_to_read(here, before, scales, scaled))


def _to_read(
    here: LocalTensors,
    before: Sequence[Tensor] | None,
    scales: Scales | None,
    scaled: bool,
) -> Iterator[tuple[Segment, bool]]:
    for number, (new, offset) in enumerate(zip(here.tensors, here.offsets, strict=True)):
        old = None if before is None else before[number].detach()
        if _in_place(new, scales, number, scaled) and (old is None or _in_place(old)):
            flat = None if old is None else old.view(-1)
            factors = scales.vectors(number, new.device, inverse=True) if scales else None
            yield Segment(new.view(-1), offset, 1.0, flat, factors), True
        else:
            for low, high in _stretches(new):
                wide = torch.empty(high - low, dtype=torch.float32, device=new.device)
                load(wide, new, old, low)
                if scales is not None:
                    _multiply(wide, scales, number, low, inverse=True)
                yield Segment(wide, offset + low), False


def writable(
    here: LocalTensors,
    factor: float,
    scales: Scales | None = None,
    *,
    scaled: bool = False,
) -> Iterator[list[Segment]]:
    """All elements that are here in order, as many at once as possible; what is added to them is
    kept.

    Scales are of the same part of the tensors. Contiguous tensors are handed over in place, others
    copied and written back, a stretch at a time. Of tensors with scales, if kernels are not
    ``scaled``, stretches of nothing are handed over, and what was added to these is multiplied by
    the factors and added to the tensors.
    """
    return _batches(_to_write(here, factor, scales, scaled))


def _to_write(
    here: LocalTensors, factor: float, scales: Scales | None, scaled: bool
) -> Iterator[tuple[Segment, bool]]:
    for number, (old, place) in enumerate(zip(here.tensors, here.offsets, strict=True)):
        if _in_place(old, scales, number, scaled):
            factors = scales.vectors(number, old.device, inverse=False) if scales else None
            yield Segment(old.view(-1), place, factor, None, factors), True
        else:
            for low, high in _stretches(old):
                wide = torch.empty(high - low, dtype=torch.float32, device=old.device)
                load(wide, old, None, low) if scales is None else _clear(wide)
                yield Segment(wide, place + low, factor), False
                if scales is not None:
                    _multiply(wide, scales, number, low, inverse=False)
                    _add(wide, old, low)
                for first, last in parts(wide):
                    assign(old, low + first, wide[first:last])


def _clear(row: Tensor) -> None:
    """Nothing: -0 changes no number that is added to it, not even +0."""
    for low, high in parts(row):
        row[low:high] = -0.0


def _add(row: Tensor, tensor: Tensor, start: int) -> None:
    """row += elements start, start + 1, ... of the tensor."""
    for low, high in parts(row):
        row[low:high] += elements(tensor, start + low, start + high).float()


def _multiply(row: Tensor, scales: Scales, number: int, start: int, *, inverse: bool) -> None:
    """Elements start, start + 1, ... of a tensor times their factors or inverse factors."""
    for low, high in parts(row):
        place = low
        for box in boxes(scales.shape(number), start + low, start + high):
            factors = scales.factors(number, box, row.device, inverse=inverse)
            row[place : place + factors.numel()].view(factors.shape).mul_(factors)
            place += factors.numel()


def _batches(segments: Iterable[tuple[Segment, bool]]) -> Iterator[list[Segment]]:
    """Consecutive segments that are in place together, others alone; none empty."""
    run: list[Segment] = []
    for segment, in_place in segments:
        if in_place:
            if segment.flat.numel():
                run.append(segment)
            continue
        if run:
            yield run
            run = []
        yield [segment]
    if run:
        yield run


def _in_place(
    tensor: Tensor, scales: Scales | None = None, number: int = 0, scaled: bool = False
) -> bool:
    """Whether kernels can work on the tensor's own memory; it is tensor ``number`` of the scales.

    Args:
        scaled: whether the kernels can multiply by factors.
    """
    if scales is not None and not (scaled and scales.fit(number)):
        return False
    return tensor.is_contiguous() and tensor.data_ptr() % tensor.itemsize == 0


def _stretches(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """The first and past the last of as many elements as are copied at once."""
    count, step = tensor.numel(), STAGED if tensor.device.type == "cpu" else LAUNCHED
    for low in range(0, count, step):
        yield low, min(low + step, count)


def load(target: Tensor, new: Tensor, old: Tensor | None, start: int) -> None:
    """target = fl(new - old) of elements start, start + 1, ..., float32."""
    for low, high in parts(target):
        here = target[low:high]
        here.copy_(elements(new, start + low, start + high))
        if old is not None:
            here -= elements(old, start + low, start + high).float()


def parts(row: Tensor) -> Iterator[tuple[int, int]]:
    """The first and past the last of as many elements of a row as torch should work on at once.

    On the CPU that is so few that torch does not wake threads of its own: they go on waiting for
    more, actively, while ours work.
    """
    step = SERIAL if row.device.type == "cpu" else max(1, row.numel())
    for low in range(0, row.numel(), step):
        yield low, min(low + step, row.numel())


def elements(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements start, ..., stop - 1 in row-major order, shape (stop - start,)."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    found = [tensor[box].reshape(-1) for box in boxes(tensor.shape, start, stop)]
    return torch.cat(found) if len(found) > 1 else found[0]


def assign(tensor: Tensor, start: int, values: Tensor) -> None:
    """Elements start, start + 1, ... become ``values``, rounded to the tensor's dtype."""
    place = 0
    for box in boxes(tensor.shape, start, start + values.numel()):
        section = tensor[box]
        own = values[place : place + section.numel()].view(section.shape)
        section.copy_(narrowed(own, tensor.dtype))
        place += section.numel()


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values rounded to nearest even, of any dtype; a NaN to 0x7FC0 or 0x7E00 in 16 bits.

    Torch itself makes different NaNs of one on different processors.
    """
    rounded = values.to(dtype)
    if dtype in _NAN:
        rounded.view(torch.int16)[values.isnan()] = _NAN[dtype]
    return rounded


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Indices that hold the elements start, ..., stop - 1 of a shape, one after another."""
    if len(shape) < 2:
        yield (slice(start, stop),) if shape else ()
        return
    inner = math.prod(shape[1:])
    (first, skipped), (last, taken) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        yield from _within(first, shape, skipped, taken)
        return
    if skipped:
        yield from _within(first, shape, skipped, inner)
        first += 1
    if first < last:
        yield (slice(first, last),)
    if taken:
        yield from _within(last, shape, 0, taken)


def _within(number: int, shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    for box in boxes(shape[1:], start, stop):
        yield (number, *box)


def zeros(rows: int, columns: int, device: torch.device) -> Tensor:
    """float32 zeros, shape (rows, columns), on the CPU without torch's threads."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros((rows, columns), dtype=np.float32))
    return torch.zeros(rows, columns, dtype=torch.float32, device=device)
