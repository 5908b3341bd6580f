"""Encoding in numba: codes of b bits without gaps, each byte's highest bit first."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.scalars_cpu import at, bits_of

RUN = 4096  # codes that are written at a time; a multiple of 8, so that they take whole bytes
_ABSOLUTE = np.uint32(0x7FFFFFFF)
_ADDED = 8  # sums that grow side by side, since one would have each wait for the one before


@njit
def _write(codes, place, waiting, count, bits, code):
    """Append a code to ``count`` waiting bits; full bytes go to codes[place], ..."""
    waiting, count = (waiting << bits) | code, count + bits
    while count >= 8:
        codes[at(place)] = np.uint8((waiting >> (count - 8)) & 255)
        place, count = place + 1, count - 8
    return place, waiting & 255, count


@njit
def _finish(codes, place, waiting, count):
    """The last bits, and zeros."""
    if count:
        codes[at(place)] = np.uint8((waiting << (8 - count)) & 255)


@njit(nogil=True, cache=True)
def energy(start, stop, values, sums):
    """sums[run] = the sum of the run's squares, float64."""
    for run in range(start, stop):
        first, last = run * RUN, min(run * RUN + RUN, len(values))
        parts = np.zeros(_ADDED, np.float64)
        for begin in range(first, last - _ADDED + 1, _ADDED):
            for lane in range(_ADDED):
                value = np.float64(values[at(begin + lane)])
                parts[at(lane)] += value * value
        for k in range(last - (last - first) % _ADDED, last):
            parts[0] += np.float64(values[at(k)]) ** 2
        sums[run] = parts.sum()


@njit(nogil=True, cache=True)
def pack_levels(start, stop, numbers, bounds, levels, bits, written, codes, sums):
    """The nearest level of each number as written[level]; sums[run] = <numbers, levels>."""
    nearest = np.empty(RUN, np.uint8)
    for run in range(start, stop):
        first, count = run * RUN, min(RUN, len(numbers) - run * RUN)
        nearest[:] = 0
        for bound in bounds:
            for k in range(count):
                nearest[at(k)] += numbers[at(first + k)] > bound
        place, waiting, bits_waiting, along = first * bits // 8, 0, 0, 0.0
        for k in range(count):
            level = nearest[at(k)]
            along += np.float64(numbers[at(first + k)]) * np.float64(levels[at(level)])
            place, waiting, bits_waiting = _write(
                codes, place, waiting, bits_waiting, bits, np.int64(written[at(level)])
            )
        _finish(codes, place, waiting, bits_waiting)
        sums[run] = along


@njit(nogil=True, cache=True)
def pack_signs(start, stop, numbers, codes, sums):
    """A bit for what is above zero; sums[run] = the sum of absolute values."""
    for run in range(start, stop):
        along = 0.0
        for byte in range(run * RUN // 8, min((run + 1) * RUN // 8, len(codes))):
            bits, length = 0, np.float32(0)
            for k in range(8 * byte, min(8 * byte + 8, len(numbers))):
                positive = numbers[k] > 0
                bits |= positive << (7 - (k & 7))
                length += numbers[k] if positive else -numbers[k]
            codes[byte] = bits
            along += np.float64(length)
        sums[run] = along


@njit(nogil=True, cache=True)
def pack_largest(start, stop, groups, bits, written, codes, sums):
    """Of each row written[place of its largest], and a bit for whether that is above zero.

    sums[run] = the sum of the largest absolute values.
    """
    for run in range(start, stop):
        first, along = run * RUN, 0.0
        place, waiting, count = first * bits // 8, 0, 0
        for g in range(first, min(first + RUN, len(groups))):
            most = np.uint32(0)
            for k in range(groups.shape[1]):  # absolute values have the order of their bits
                most = max(most, bits_of(groups[at(g), at(k)]) & _ABSOLUTE)
            largest = 0
            while bits_of(groups[at(g), at(largest)]) & _ABSOLUTE != most:
                largest += 1
            value = groups[at(g), at(largest)]
            along += np.float64(abs(value))
            code = (np.int64(written[at(largest)]) << 1) | (value > 0)
            place, waiting, count = _write(codes, place, waiting, count, bits, code)
        _finish(codes, place, waiting, count)
        sums[run] = along
