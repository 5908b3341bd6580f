"""The additions of Walsh-Hadamard transforms in numba, eight at a time.

LLVM does not vectorise them by itself: the places written might be those read next, and it cannot
know that they are not.
"""

# Kernels are typed by numba, which has no types for what makes them.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_BITS = ir.VectorType(ir.IntType(32), LANES)


def _pointers(context, builder, signature, arguments, count):
    """To 8 floats at place, place + distance, ..., ``count`` of them; aligned as floats are."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    place, pointers = arguments[1], []
    for _ in range(count):
        pointers.append(builder.bitcast(builder.gep(data, [place]), _VECTOR.as_pointer()))
        place = builder.add(place, arguments[2]) if count > 1 else place
    return pointers


def _shuffled(builder, x, y, lanes):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(lanes))
    return builder.shuffle_vector(x, y, mask)


def _negated(builder, x, half):
    """The lanes with bit ``half`` negated."""
    signs = [1 << 31 if lane & half else 0 for lane in range(LANES)]
    bits = builder.bitcast(x, _BITS)
    return builder.bitcast(builder.xor(bits, ir.Constant(_BITS, signs)), _VECTOR)


def _among(count):
    """log2(count) levels of ``count`` runs of 8 numbers, which are ``distance`` apart."""

    @intrinsic
    def act(typing_context, values, place, distance):
        def generate(context, builder, signature, arguments):
            pointers = _pointers(context, builder, signature, arguments, count)
            runs = [builder.load(pointer, align=4) for pointer in pointers]
            half = 1
            while half < count:
                for low in (n for n in range(count) if not n & half):
                    x, y = runs[low], runs[low + half]
                    runs[low], runs[low + half] = builder.fadd(x, y), builder.fsub(x, y)
                half *= 2
            for pointer, run in zip(pointers, runs, strict=True):
                builder.store(run, pointer, align=4)
            return context.get_dummy_value()

        return types.void(values, types.intp, types.intp), generate

    return act


_two, _four, _eight = _among(2), _among(4), _among(8)


@intrinsic
def _within(typing_context, values, place):
    """Levels 1, 2 and 4 of 8 neighbours."""

    def generate(context, builder, signature, arguments):
        (pointer,) = _pointers(context, builder, signature, arguments, 1)
        x = builder.load(pointer, align=4)
        for half in (1, 2, 4):
            y = _shuffled(builder, x, x, (lane ^ half for lane in range(LANES)))
            x = builder.fadd(y, _negated(builder, x, half))
        builder.store(x, pointer, align=4)
        return context.get_dummy_value()

    return types.void(values, types.intp), generate


@njit
def transform(values, first, stop, half):
    """Levels half, 2 half, ... of values first to stop - 1, a power of 2 of them.

    A level h makes v_i and v_(i + h), for i without bit h, their sum and their difference. ``half``
    is 1, or at least 8.
    """
    size = stop - first
    if half == 1 and size < LANES:
        _few(values, first, size)
        return
    if half == 1:
        for place in range(first, stop, LANES):
            _within(values, place)
        half = LANES
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
