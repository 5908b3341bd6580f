"""Transforms of rows of 256 numbers, and additions of 16 rows, in registers.

A product is with the transform's scale 1 / 16 and with signs: those of a row's first half are a bit
of each of 128 words, those of its second half the bit below.
"""

# Kernels are typed by numba, which has no types for what makes them.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fullfed.sketch.butterflies_cpu import add_among, add_within
from fullfed.sketch.lanes_cpu import LANES, WIDTH, data_of, load, pointer_to, store

SIDE = 256
ROWS = 16
_HALF = SIDE // 2
_SCALE = SIDE**-0.5
_INDEX, _WORD = ir.IntType(64), ir.IntType(32)
_RUN, _BITS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(_WORD, WIDTH)
_EIGHT = ir.VectorType(ir.FloatType(), LANES)


@intrinsic
def add_rows(typing_context, source, place, apart, target, spot):
    """Four levels of the first numbers of 16 rows, those of a register, to rows that follow."""

    def generate(context, builder, signature, arguments):
        source, target = (data_of(context, builder, signature, arguments, n) for n in (0, 3))
        place, runs = arguments[1], []
        for _ in range(ROWS):
            runs.append(load(builder, pointer_to(builder, source, place, _RUN)))
            place = builder.add(place, arguments[2])
        add_among(builder, runs)
        for n, run in enumerate(runs):
            spot = builder.add(arguments[4], _INDEX(n * SIDE))
            store(builder, run, pointer_to(builder, target, spot, _RUN))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp), generate


def _row(before, after):
    """The transform of a row between two products, each with the scale, with signs or with both."""

    @intrinsic
    def act(typing_context, source, place, target, spot, words, shift, early, late):
        def generate(context, builder, signature, arguments):
            source, target, early, late = (
                data_of(context, builder, signature, arguments, n) for n in (0, 2, 6, 7)
            )
            signs = arguments[4:6]
            runs = [load(builder, pointer) for pointer in _pointers(builder, source, arguments[1])]
            runs = _multiplied(builder, runs, before, early, *signs)
            runs = _multiplied(builder, _transformed(builder, runs, 1), after, late, *signs)
            _put(builder, runs, target, arguments[3])
            return context.get_dummy_value()

        places = [types.intp] * 3
        return types.void(source, types.intp, target, *places, early, late), generate

    return act


_NOTHING: set[str] = set()
_SCALED, _SIGNED, _BOTH = {"scale"}, {"signs"}, {"scale", "signs"}
transform_row = _row(_BOTH, _BOTH)
transform_row_first = _row(_SIGNED, _BOTH)
transform_row_last = _row(_BOTH, _SCALED)
transform_row_unsigned = _row(_NOTHING, _BOTH)


@intrinsic
def transform_row_of_bytes(typing_context, codes, byte, table, target, spot, words, shift, late):
    """transform_row_unsigned of a row that 32 codes stand for.

    Row c of the table has levels 1, 2 and 4 of what code c stands for.
    """

    def generate(context, builder, signature, arguments):
        codes, table, target, late = (
            data_of(context, builder, signature, arguments, n) for n in (0, 2, 3, 7)
        )
        eights = []
        for n in range(SIDE // LANES):
            code = builder.load(builder.gep(codes, [builder.add(arguments[1], _INDEX(n))]))
            row = builder.mul(builder.zext(code, _INDEX), _INDEX(LANES))
            eights.append(load(builder, pointer_to(builder, table, row, _EIGHT)))
        runs = eights if WIDTH == LANES else _joined(builder, eights)
        runs = _transformed(builder, runs, LANES)
        _put(
            builder, _multiplied(builder, runs, _BOTH, late, *arguments[5:7]), target, arguments[4]
        )
        return context.get_dummy_value()

    places = [types.intp] * 3
    return types.void(codes, types.intp, table, target, *places, late), generate


def _transformed(builder, runs, half):
    """Levels ``half``, 2 half, ... of the runs of a row."""
    runs = [add_within(builder, run, half) for run in runs]
    add_among(builder, runs)
    return runs


def _put(builder, runs, target, spot):
    for run, pointer in zip(runs, _pointers(builder, target, spot), strict=True):
        store(builder, run, pointer)


def _pointers(builder, data, place):
    """To the runs of a row."""
    for n in range(0, SIDE, WIDTH):
        yield pointer_to(builder, data, builder.add(place, _INDEX(n)), _RUN)


def _joined(builder, eights):
    """Two and two."""
    both = ir.Constant(_BITS, list(range(WIDTH)))
    pairs = zip(eights[::2], eights[1::2], strict=True)
    return [builder.shuffle_vector(low, high, both) for low, high in pairs]


def _multiplied(builder, runs, factors, words, first, shift):
    """The runs of a row times the scale, their signs or both."""
    if "scale" in factors:
        runs = [builder.fmul(run, _RUN([_SCALE] * WIDTH)) for run in runs]
    if "signs" in factors:
        runs = [_signed(builder, run, n, words, first, shift) for n, run in enumerate(runs)]
    return runs


def _signed(builder, run, n, words, first, shift):
    """Run n of a row times its signs."""
    half, column = divmod(n * WIDTH, _HALF)
    place = builder.add(first, _INDEX(column))
    pointer = builder.bitcast(builder.gep(words, [place]), _BITS.as_pointer())
    left = builder.trunc(builder.sub(shift, _INDEX(half)), _WORD)
    shifted = builder.shl(load(builder, pointer), _repeated(builder, left))
    signs = builder.and_(shifted, _BITS([1 << 31] * WIDTH))
    return builder.bitcast(builder.xor(builder.bitcast(run, _BITS), signs), _RUN)


def _repeated(builder, number):
    """A register of it."""
    nothing = _BITS(ir.Undefined)
    one = builder.insert_element(nothing, number, _WORD(0))
    return builder.shuffle_vector(one, nothing, _BITS([0] * WIDTH))
