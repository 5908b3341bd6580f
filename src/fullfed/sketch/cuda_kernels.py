"""The kernels in Triton: Philox and the numbers made of it, the sign basis, dense directions.

Many segments are one launch. Their table, int64 of shape (4, segments), holds the addresses of the
segments and of what they were before training, and the numbers of their first elements and of
those after their last, ascending. bfloat16 is held as int16, because Triton's interpreter has no
bfloat16. Streams are rows of an int64 table ``keys``, shape (K, 4): two key words, round, owner.
"""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, N806, RET505, SIM300
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch import entries

_SIGN = tl.constexpr(0x80000000)
_LOGARITHM = tl.constexpr(entries.LOGARITHM)
_COSINE = tl.constexpr(entries.COSINE)
_SINE = tl.constexpr(entries.SINE)
_OCTAVES = tl.constexpr(entries.OCTAVES)
_TOP = tl.constexpr(entries.TOP)
# Numbers that are not worth a variant of a kernel for 1 or multiples of 16.
_PLAIN = ["count", "width", "first_group", "depth", "counters"]


@triton.jit
def philox(counter, c_round, c_owner, k0, k1):
    """The four output words (uint32) of an int64 counter, scalar or block."""
    c0 = counter.to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + c_round.to(tl.uint32)
    c3 = tl.zeros_like(c0) + c_owner.to(tl.uint32)
    k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
    m0, m1 = tl.full((), 0xD2511F53, tl.uint32), tl.full((), 0xCD9E8D57, tl.uint32)
    w0, w1 = tl.full((), 0x9E3779B9, tl.uint32), tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        h0, h1 = tl.umulhi(m0, c0), tl.umulhi(m1, c2)
        c1, c3, c0, c2 = m1 * c2, m0 * c0, h1 ^ c1 ^ k0, h0 ^ c3 ^ k1
        k0, k1 = k0 + w0, k1 + w1
    return c0, c1, c2, c3


@triton.jit
def words_of(keys, k, counter):
    """The four words of an output of stream k."""
    key = keys + k * 4
    return philox(counter, tl.load(key + 2), tl.load(key + 3), tl.load(key + 0), tl.load(key + 1))


@triton.jit
def signed(number, word, shift):
    """number, negated if bit 31 of word << shift is set."""
    sign = (word << shift) & _SIGN
    return (number.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def value(word, shift, BITS: tl.constexpr, series, TERMS: tl.constexpr):
    """The number whose bits are the highest of word << shift."""
    if BITS == 1:
        return signed(tl.full(word.shape, 1.0, tl.float32), word, shift)
    elif TERMS == 0:
        return _normal(word, shift == 0)
    else:
        half = ((word << shift) >> 16).to(tl.int32)
        u = (2 * half - 65535).to(tl.float32) * 0.0000152587890625
        total = tl.zeros_like(u) + tl.load(series + TERMS - 1)
        for n in tl.static_range(1, TERMS):
            total = total * (u * u) + tl.load(series + TERMS - 1 - n)
        return total * u


@triton.jit
def _normal(word, second):
    """Of a word's two, the first or the second."""
    u = (2 * ((word >> 1) & 0x7FFF).to(tl.int32) - 32767).to(tl.float32) * 0.000030517578125
    turned = tl.where(second, u * _polynomial(_SINE, 4, u * u), _polynomial(_COSINE, 5, u * u))
    return signed(_radius(word), word, tl.full((), 31, tl.uint32)) * turned


@triton.jit
def _radius(word):
    bits = ((word >> 15) | 1).to(tl.float32).to(tl.int32, bitcast=True)
    octaves = (-(bits - _TOP)).to(tl.float32)
    g = 2.0 - ((bits & 0x7FFFFF) + 0x3F800000).to(tl.float32, bitcast=True)
    return tl.sqrt_rn(octaves * _OCTAVES + g * _logarithm(g))


@triton.jit
def _logarithm(g):
    low = g * _LOGARITHM[1] + _LOGARITHM[0]
    middle = g * _LOGARITHM[3] + _LOGARITHM[2]
    high = g * _LOGARITHM[5] + _LOGARITHM[4]
    square = g * g
    return (square * _LOGARITHM[6] + high) * (square * square) + (middle * square + low)


@triton.jit
def _polynomial(coefficients: tl.constexpr, LENGTH: tl.constexpr, x):
    total = tl.zeros_like(x) + coefficients[LENGTH - 1]
    for n in tl.static_range(1, LENGTH):
        total = total * x + coefficients[LENGTH - 1 - n]
    return total


@triton.jit
def overlapping(table, count, begin, end):
    """The first segment with elements from begin to end - 1, and the one after the last."""
    return _at_most(table + 3 * count, count, begin), _at_most(table + 2 * count, count, end - 1)


@triton.jit
def _at_most(edges, count, bound):
    """How many of the ascending edges are at most the bound."""
    low, high = count * 0, count
    while low < high:
        middle = (low + high) // 2
        below = tl.load(edges + middle) <= bound
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def bounds(table, count, n):
    """The numbers of a segment's first element and of the one after its last."""
    return tl.load(table + 2 * count + n), tl.load(table + 3 * count + n)


@triton.jit
def pointer(table, n, STORED: tl.constexpr):
    """Where segment n of a row of addresses is."""
    return tl.load(table + n).to(tl.pointer_type(STORED))


@triton.jit
def widen(stored, STORED: tl.constexpr):
    """float32 of what was loaded; bfloat16 comes as int16, because the interpreter has none."""
    if STORED == tl.int16:
        return (stored.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


@triton.jit
def narrow(number, STORED: tl.constexpr):
    """A float32 rounded to nearest even, as it is stored; a NaN to 0x7FC0 or 0x7E00 in 16 bits."""
    if STORED == tl.int16:
        bits = number.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        kept = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)
        return kept.to(tl.uint16).to(tl.int16, bitcast=True)
    elif STORED == tl.float16:
        nan = tl.full((), 0x7E00, tl.int16).to(tl.float16, bitcast=True)
        return tl.where(number != number, nan, number.to(tl.float16))
    else:
        return number


@triton.jit
def _places(row, rotation, columns, width, offset, end):
    """Where the elements of a row's columns are in the segment, and whether they are in it."""
    places = row * width - rotation + columns
    places = tl.where(columns < rotation, places + width, places)
    return places - offset, (columns < width) & (places >= offset) & (places < end)


@triton.jit
def _quads(group, width, depth, offset, end):
    """The first four of the group's rows with elements of the segment, and past the last."""
    begin = group * 128 * width
    first = (tl.maximum(offset - begin, 0) // width) // 4
    last = (tl.minimum(end - begin, depth * width) - 1) // width // 4
    return first.to(tl.int32), last.to(tl.int32) + 1


@triton.jit
def _rotation(word, width, ROTATED: tl.constexpr):
    if ROTATED:
        return tl.umulhi(word, width.to(tl.uint32)).to(tl.int64)
    else:
        return tl.zeros_like(word).to(tl.int64)


@triton.jit
def _start(keys, first_group, counters, PROGRAM: tl.constexpr):
    """This program's group, counters and their four words of signs."""
    group = first_group.to(tl.int64) + tl.program_id(0)
    own = tl.program_id(1).to(tl.int64) * PROGRAM + tl.arange(0, PROGRAM)
    return group, own, words_of(keys, 0, group * counters + own)


@triton.jit
def _pick(words, bit):
    """The word that has the bit."""
    low = tl.where(bit < 32, words[0], words[1])
    high = tl.where(bit < 96, words[2], words[3])
    return tl.where(bit < 64, low, high)


@triton.jit(do_not_specialize=_PLAIN)
def project(
    table,
    factors,
    count,
    sums,
    width,
    depth,
    counters,
    first_group,
    keys,
    ROTATED: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    BEFORE: tl.constexpr,
    PROGRAM: tl.constexpr,
):
    """sums[group, column] += sign * change, rows in order.

    ``sums`` is float32, shape (groups, width). A program does PROGRAM outputs of one group of 128
    rows; an output's bits are signs of ``depth`` rows in one column, of as many in the column
    ``counters`` further, and so on.
    """
    width, counters = width.to(tl.int64), counters.to(tl.int64)
    group, own, words = _start(keys, first_group, counters, PROGRAM)
    first, last = overlapping(table, count, group * 128 * width, (group + 1) * 128 * width)
    for part in range(128 // depth):
        # Past the last output there is another part's column.
        columns = tl.where(own < counters, part * counters + own, width)
        target = sums + group * width + columns
        total = tl.load(target, mask=columns < width, other=0.0)
        for n in range(first, last):
            offset, end = bounds(table, count, n)
            after, before = pointer(table, n, AFTER), pointer(table + count, n, BEFORE)
            factor = tl.load(factors + n)
            low, high = _quads(group, width, depth, offset, end)
            for quad in range(low, high):
                turns = words_of(keys, 1, group * 32 + quad)  # they rotate four rows
                bit = part * depth + quad * 4
                word = _pick(words, bit)
                for i in tl.static_range(4):
                    row = group * 128 + quad * 4 + i
                    rotation = _rotation(turns[i], width, ROTATED)
                    places, inside = _places(row, rotation, columns, width, offset, end)
                    change = widen(tl.load(after + places, mask=inside, other=0), AFTER)
                    if HAS_BEFORE:
                        old = tl.load(before + places, mask=inside, other=0)
                        change = change - widen(old, BEFORE)
                    change = change * factor
                    total += signed(change, word, 31 - (bit % 32 + i))
        tl.store(target, total, mask=columns < width)


@triton.jit(do_not_specialize=_PLAIN)
def reconstruct(
    table,
    factors,
    count,
    values,
    width,
    depth,
    counters,
    first_group,
    keys,
    ROTATED: tl.constexpr,
    STORED: tl.constexpr,
    PROGRAM: tl.constexpr,
):
    """element += sign * factor * values[column], float32 (width,); programs as for project."""
    width, counters = width.to(tl.int64), counters.to(tl.int64)
    group, own, words = _start(keys, first_group, counters, PROGRAM)
    first, last = overlapping(table, count, group * 128 * width, (group + 1) * 128 * width)
    for part in range(128 // depth):
        columns = tl.where(own < counters, part * counters + own, width)
        value = tl.load(values + columns, mask=columns < width, other=0.0)
        for n in range(first, last):
            offset, end = bounds(table, count, n)
            elements = pointer(table, n, STORED)
            step = value * tl.load(factors + n)
            low, high = _quads(group, width, depth, offset, end)
            for quad in range(low, high):
                turns = words_of(keys, 1, group * 32 + quad)  # they rotate four rows
                bit = part * depth + quad * 4
                word = _pick(words, bit)
                for i in tl.static_range(4):
                    row = group * 128 + quad * 4 + i
                    rotation = _rotation(turns[i], width, ROTATED)
                    places, inside = _places(row, rotation, columns, width, offset, end)
                    stored = widen(tl.load(elements + places, mask=inside, other=0), STORED)
                    changed = stored + signed(step, word, 31 - (bit % 32 + i))
                    tl.store(elements + places, narrow(changed, STORED), mask=inside)


@triton.jit
def products(elements, sums, keys, firsts, series, count, BITS: tl.constexpr, TERMS: tl.constexpr):
    """sums[part, k] = <direction k, part>, a part being 32 rows of 128; one program each.

    Directions start at a multiple of 32 rows, or of a counter's rows where those are fewer.
    """
    PARTS: tl.constexpr = 128 // BITS
    RUN: tl.constexpr = PARTS if PARTS < 32 else 32
    part, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lanes = tl.arange(0, 128)
    first = tl.load(firsts + k) + part * 32
    total = tl.zeros((128,), tl.float32)
    for run in range(32 // RUN):
        row = first + run * RUN
        w0, w1, w2, w3 = words_of(keys, k, (row // PARTS) * 128 + lanes)
        held = row % PARTS * BITS // 32  # signs: 32 rows share one word; else the first
        for r in tl.static_range(RUN):
            word = held + r * BITS // 32
            mine = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
            line = tl.load(elements + (part * 32 + run * RUN + r) * 128 + lanes)
            total += value(mine, 32 - BITS - r * BITS % 32, BITS, series, TERMS) * line
    # Two numbers have one sum, so a reduction over an axis of two is exact in any order.
    for n in tl.static_range(7):
        total = tl.sum(tl.reshape(total, (2, 64 >> n)), axis=0)
    tl.store(sums + part * count + k, tl.sum(total, axis=0))


@triton.jit
def add_in_order(sums, parts, rows, count, PROGRAM: tl.constexpr):
    """sums[g, k] += parts[128 g, k], then parts[128 g + 1, k], ...; a program does PROGRAM k."""
    group = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * PROGRAM + tl.arange(0, PROGRAM)
    target = sums + group * count + k
    total = tl.load(target, mask=k < count, other=0.0)
    for i in range(tl.minimum(rows - group * 128, 128)):
        row = group * 128 + i
        total += tl.load(parts + row * count + k, mask=k < count, other=0.0)
    tl.store(target, total, mask=k < count)


@triton.jit(do_not_specialize=["segments", "first_run"])
def add_combination(
    table,
    factors,
    segments,
    first_run,
    keys,
    firsts,
    scalars,
    series,
    count,
    BITS: tl.constexpr,
    TERMS: tl.constexpr,
    RUN: tl.constexpr,
    STORED: tl.constexpr,
):
    """element += factor * sum of scalars[k] * direction k, k in order; a program does RUN rows.

    Directions start at a multiple of a counter's rows, and RUN divides those, so that a
    program's rows share their counters.
    """
    PARTS: tl.constexpr = 128 // BITS
    lanes = tl.arange(0, 128)[None, :]
    row = (first_run.to(tl.int64) + tl.program_id(0)) * RUN
    bit = (row % PARTS + tl.arange(0, RUN)[:, None]) * BITS
    word, shift = bit // 32, (32 - BITS - bit % 32).to(tl.uint32)
    total = tl.zeros((RUN, 128), tl.float32)
    for k in range(count):
        counter = (tl.load(firsts + k) + row) // PARTS * 128 + lanes
        w0, w1, w2, w3 = words_of(keys, k, counter)
        mine = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
        total += tl.load(scalars + k) * value(mine, shift, BITS, series, TERMS)
    numbers = (row + tl.arange(0, RUN)[:, None]) * 128 + lanes
    first, last = overlapping(table, segments, row * 128, (row + RUN) * 128)
    for n in range(first, last):
        offset, end = bounds(table, segments, n)
        places, inside = pointer(table, n, STORED) + (numbers - offset), numbers < end
        inside = inside & (numbers >= offset)
        stored = widen(tl.load(places, mask=inside, other=0), STORED)
        tl.store(places, narrow(stored + total * tl.load(factors + n), STORED), mask=inside)
