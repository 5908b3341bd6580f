"""The additions of Walsh-Hadamard transforms in numba, eight at a time."""

# Kernels are typed by numba, which has no types for what makes them.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fullfed.sketch.lanes_cpu import LANES, data_of, load, pointer_to, store

_INDEX = ir.IntType(64)


@njit
def transform(values, first, stop, half):
    """Levels half, 2 half, ... of values first to stop - 1, a power of 2 times half of them.

    A level h makes v_i and v_(i + h), where floor(i / h) is even and i is 0 at ``first``, their sum
    and their difference. ``half`` is 1, or a multiple of 8.
    """
    size = stop - first
    if half == 1 and size < LANES:
        _few(values, first, size)
        return
    if half == 1:
        half = _neighbours(values, first, stop)
    while 8 * half <= size:
        for begin in range(first, stop, 8 * half):
            for place in range(begin, begin + half, LANES):
                _eight(values, place, half)
        half *= 8
    if 4 * half <= size:
        for begin in range(first, stop, 4 * half):
            for place in range(begin, begin + half, LANES):
                _four(values, place, half)
        half *= 4
    if 2 * half <= size:
        for place in range(first, first + half, LANES):
            _two(values, place, half)


@njit
def _few(values, first, size):
    """All levels of 1, 2 or 4 values."""
    half = 1
    while half < size:
        for n in range(size):
            if not n & half:
                low, high = values[first + n], values[first + n + half]
                values[first + n], values[first + n + half] = low + high, low - high
        half *= 2


@njit
def _neighbours(values, first, stop):
    """The levels of 8 to 64 neighbours at once; returns how many."""
    if stop - first >= 64:
        for place in range(first, stop, 64):
            _first_64(values, place, LANES)
        return 64
    if stop - first == 32:
        _first_32(values, first, LANES)
    elif stop - first == 16:
        _first_16(values, first, LANES)
    else:
        _first_8(values, first, LANES)
    return stop - first


def _levels(count, inside):
    """log2(count) levels of ``count`` runs of 8 values, ``distance`` apart.

    After levels 1, 2 and 4 of each run, if ``inside``.
    """

    @intrinsic
    def act(typing_context, values, place, distance):
        def generate(context, builder, signature, arguments):
            data, place = data_of(context, builder, signature, arguments, 0), arguments[1]
            pointers = []
            for _ in range(count):
                pointers.append(pointer_to(builder, data, place))
                place = builder.add(place, arguments[2])
            runs = [load(builder, pointer) for pointer in pointers]
            if inside:
                runs = [add_within(builder, run) for run in runs]
            add_among(builder, runs)
            for pointer, run in zip(pointers, runs, strict=True):
                store(builder, run, pointer)
            return context.get_dummy_value()

        return types.void(values, types.intp, types.intp), generate

    return act


_two, _four, _eight = _levels(2, False), _levels(4, False), _levels(8, False)
_first_8, _first_16, _first_32, _first_64 = (_levels(count, True) for count in (1, 2, 4, 8))


def add_within(builder, run, half=1):
    """Levels ``half``, 2 half, ... of neighbours in one run."""
    width = run.type.count
    bits = ir.VectorType(ir.IntType(32), width)
    while half < width:
        others = ir.Constant(bits, [lane ^ half for lane in range(width)])
        signs = ir.Constant(bits, [1 << 31 if lane & half else 0 for lane in range(width)])
        negated = builder.bitcast(builder.xor(builder.bitcast(run, bits), signs), run.type)
        run = builder.fadd(builder.shuffle_vector(run, run, others), negated)
        half *= 2
    return run


def add_among(builder, runs):
    """Levels 1, 2, ... of which run it is."""
    half = 1
    while half < len(runs):
        for low in (n for n in range(len(runs)) if not n & half):
            x, y = runs[low], runs[low + half]
            runs[low], runs[low + half] = builder.fadd(x, y), builder.fsub(x, y)
        half *= 2
