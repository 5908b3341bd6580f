"""What LLVM does not do with numba's loops by itself: eight float32 at a time, memory ahead.

It does not vectorise where places written might be those read next, since it cannot know that they
are not, nor sums, whose order it must keep.
"""

# Kernels are typed by numba, which has no types for what makes them.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fullfed.sketch.scalars_cpu import processor_has

LANES = 8
WIDTH = 16 if processor_has("avx512f") else LANES  # numbers of a row at once
VECTOR = ir.VectorType(ir.FloatType(), LANES)
BITS = ir.VectorType(ir.IntType(32), LANES)
_WIDE = ir.VectorType(ir.DoubleType(), LANES)


@intrinsic
def above_zero(typing_context, values, place):
    """A bit for each of 8 values that is, the highest for the first."""

    def generate(context, builder, signature, arguments):
        data = data_of(context, builder, signature, arguments, 0)
        run = load(builder, pointer_to(builder, data, arguments[1]))
        above = builder.fcmp_ordered(">", run, VECTOR([0.0] * LANES))
        turned = builder.shuffle_vector(above, above, BITS(list(reversed(range(LANES)))))
        return builder.bitcast(turned, ir.IntType(LANES))

    return types.uint8(values, types.intp), generate


@intrinsic
def prefetch(typing_context, values, place):
    """Begin to fetch the cache line that has this value."""

    def generate(context, builder, signature, arguments):
        data = data_of(context, builder, signature, arguments, 0)
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(fetch, [address, flag(1), flag(3), flag(1)])  # to write, to keep, data
        return context.get_dummy_value()

    return types.void(values, types.intp), generate


def _adding(measure):
    """sums[k], float64, plus a measure of the value at place + k, for 8 of them."""

    @intrinsic
    def act(typing_context, sums, values, place):
        def generate(context, builder, signature, arguments):
            data = data_of(context, builder, signature, arguments, 1)
            run = load(builder, pointer_to(builder, data, arguments[2]))
            total = data_of(context, builder, signature, arguments, 0)
            total = builder.bitcast(total, _WIDE.as_pointer())
            added = measure(builder, builder.fpext(run, _WIDE))
            builder.store(builder.fadd(builder.load(total, align=8), added), total, align=8)
            return context.get_dummy_value()

        return types.void(sums, values, types.intp), generate

    return act


def _absolute(builder, run):
    bits = ir.VectorType(ir.IntType(64), LANES)
    size = builder.and_(builder.bitcast(run, bits), bits([(1 << 63) - 1] * LANES))
    return builder.bitcast(size, _WIDE)


add_squares = _adding(lambda builder, run: builder.fmul(run, run))
add_absolutes = _adding(_absolute)


def data_of(context, builder, signature, arguments, n):
    """Where argument n begins, an array that numba may think to be None."""
    kind, value = signature.args[n], arguments[n]
    if isinstance(kind, types.Optional):
        kind, value = kind.type, context.make_helper(builder, kind, value).data
    return context.make_array(kind)(context, builder, value).data


def pointer_to(builder, data, place, vector=VECTOR):
    """To the numbers from ``place`` on, 8 of them by default."""
    return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())


def load(builder, pointer):
    """The numbers there; aligned as floats are."""
    return builder.load(pointer, align=4)


def store(builder, run, pointer):
    """Put numbers there."""
    builder.store(run, pointer, align=4)
