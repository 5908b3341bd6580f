"""The kernels in Triton of coordinates in few bits: docs/shared-randomness.md, section 9.

A launch is for blocks of one length, one after another in memory. All sums are in float64, in the
order of the other backends.
"""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch.cuda_kernels import signed, words_of

_PLAIN = ["length", "total", "count", "first_block", "part"]


@triton.jit(do_not_specialize=_PLAIN)
def sign_words(words, keys, first_block):
    """The signs of the three rotations of blocks; a program makes a twelfth of a block's.

    ``words`` is int32, shape (blocks, 12, 4, 128): element e of a block has bit e div 128 mod 32 of
    word [e div 128**2, e div (32 * 128) mod 4, e mod 128].
    """
    block, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lanes = tl.arange(0, 128)
    w0, w1, w2, w3 = words_of(keys, 0, ((first_block + block) * 12 + group) * 128 + lanes)
    own = words + (block * 12 + group) * 512 + lanes
    tl.store(own, w0.to(tl.int32, bitcast=True))
    tl.store(own + 128, w1.to(tl.int32, bitcast=True))
    tl.store(own + 256, w2.to(tl.int32, bitcast=True))
    tl.store(own + 384, w3.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=_PLAIN)
def transform(
    x,
    words,
    length,
    part,
    scale,
    DISTANT: tl.constexpr,
    SIGNS_FIRST: tl.constexpr,
    LEVELS: tl.constexpr,
    PROGRAM: tl.constexpr,
):
    """Walsh-Hadamard transforms in place of C = 2**LEVELS numbers each, times ``scale``.

    The C are neighbours, or ``length`` / C apart. They get the signs of rotation ``part`` before or
    after. A program has PROGRAM transforms of one block.
    """
    C: tl.constexpr = 1 << LEVELS
    block, count = tl.program_id(1).to(tl.int64), length // C
    which = tl.program_id(0) * PROGRAM + tl.arange(0, PROGRAM)[:, None]
    inside = which < count
    if DISTANT:
        places = which + tl.arange(0, C)[None, :] * count
    else:
        places = which * C + tl.arange(0, C)[None, :]
    element = part * length + places
    word = (element >> 14) * 512 + ((element >> 12) & 3) * 128 + (element & 127)
    word = tl.load(words + block * 6144 + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    shift = (31 - ((element >> 7) & 31)).to(tl.uint32)
    v = tl.load(x + block * length + places, mask=inside, other=0.0)
    if SIGNS_FIRST:
        v = signed(v, word, shift)
    # Each level is that of the lowest bit of a place, which then becomes the highest.
    for _ in tl.static_range(LEVELS):
        low, high = tl.split(tl.reshape(v, (PROGRAM, C // 2, 2)))
        both = tl.permute(tl.join(low + high, low - high), (0, 2, 1))
        v = tl.reshape(both, (PROGRAM, C))
    v = v * scale
    if not SIGNS_FIRST:
        v = signed(v, word, shift)
    tl.store(x + block * length + places, v, mask=inside)


@triton.jit(do_not_specialize=_PLAIN)
def add_in_order(terms, sums, length, total, SQUARED: tl.constexpr, LANES: tl.constexpr):
    """sums[block] = the sum of a block's terms, or of their squares; one program each.

    LANES sums side by side, then one after another; terms that are no multiple of LANES are in the
    first. There are ``total`` terms, ``length`` a block; ``sums`` is float64.
    """
    block = tl.program_id(0).to(tl.int64)
    own, count = terms + block * length, tl.minimum(length, total - block * length).to(tl.int32)
    lanes, whole = tl.arange(0, LANES), count - count % LANES
    parts = tl.zeros((LANES,), tl.float64)
    for begin in tl.range(0, whole, LANES, loop_unroll_factor=16):
        parts += _term(tl.load(own + begin + lanes), SQUARED)
    for k in range(whole, count):
        parts += tl.where(lanes == 0, _term(tl.load(own + k), SQUARED), 0.0)
    result = tl.zeros((), tl.float64)
    for lane in tl.static_range(LANES):
        result += tl.sum(tl.where(lanes == lane, parts, 0.0), axis=0)  # of one number and zeros
    tl.store(sums + block, result)


@triton.jit
def _term(loaded, SQUARED: tl.constexpr):
    wide = loaded.to(tl.float64)
    if SQUARED:
        wide = wide * wide
    return wide


@triton.jit(do_not_specialize=_PLAIN)
def nearest_levels(
    x, bounds, levels, codes, terms, length, BOUNDS: tl.constexpr, PROGRAM: tl.constexpr
):
    """The number of each x's level, int16, and x * level, float64; bounds has a row a block."""
    block = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * PROGRAM + tl.arange(0, PROGRAM)
    places, inside = block * length + k, k < length
    own = tl.load(x + places, mask=inside, other=0.0)
    nearest = tl.zeros((PROGRAM,), tl.int32)
    for n in tl.static_range(BOUNDS):
        nearest += (own > tl.load(bounds + block * BOUNDS + n)).to(tl.int32)
    tl.store(codes + places, nearest.to(tl.int16), mask=inside)
    product = own.to(tl.float64) * tl.load(levels + nearest).to(tl.float64)
    tl.store(terms + places, product, mask=inside)


@triton.jit(do_not_specialize=_PLAIN)
def largest_of_groups(x, codes, terms, count, GROUP: tl.constexpr, PROGRAM: tl.constexpr):
    """The place of each group's largest, the first of equals, plus GROUP if it is above zero.

    Codes are int16; ``terms`` are the largest absolute values, float64. There are ``count`` groups.
    """
    groups = tl.program_id(0).to(tl.int64) * PROGRAM + tl.arange(0, PROGRAM)
    inside, lanes = groups < count, tl.arange(0, GROUP)[None, :]
    own = tl.load(x + groups[:, None] * GROUP + lanes, mask=inside[:, None], other=0.0)
    sizes = own.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # absolute values have their bits' order
    most = tl.max(sizes, axis=1)
    place = tl.min(tl.where(sizes == most[:, None], lanes, GROUP), axis=1)
    above = tl.max(((lanes == place[:, None]) & (own > 0)).to(tl.int32), axis=1)
    tl.store(codes + groups, (place + GROUP * above).to(tl.int16), mask=inside)
    tl.store(terms + groups, most.to(tl.float32, bitcast=True).to(tl.float64), mask=inside)


@triton.jit(do_not_specialize=_PLAIN)
def pack(codes, packed, total, count, BITS: tl.constexpr, PROGRAM: tl.constexpr):
    """``total`` codes one after another, lowest bits first, from each of ``count`` bytes' highest
    bit on; bits that are left are 0."""
    byte = tl.program_id(0) * PROGRAM + tl.arange(0, PROGRAM)
    held = tl.zeros((PROGRAM,), tl.int32)
    for n in tl.static_range(8):
        bit = byte * 8 + n
        code = tl.load(codes + bit // BITS, mask=bit // BITS < total, other=0).to(tl.int32)
        held |= ((code >> (bit % BITS)) & 1) << (7 - n)
    tl.store(packed + byte, held.to(tl.uint8), mask=byte < count)


@triton.jit
def _read(packed, number, inside, BITS: tl.constexpr):
    """Codes by their numbers, int32."""
    code = tl.zeros_like(number).to(tl.int32)
    for n in tl.static_range(BITS):
        bit = number * BITS + n
        byte = tl.load(packed + (bit >> 3), mask=inside, other=0).to(tl.int32)
        code |= ((byte >> (7 - (bit & 7)).to(tl.int32)) & 1) << n
    return code


@triton.jit(do_not_specialize=_PLAIN)
def unpack_levels(packed, levels, scales, x, length, BITS: tl.constexpr, PROGRAM: tl.constexpr):
    """Each x = its level times its block's scale."""
    block = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * PROGRAM + tl.arange(0, PROGRAM)
    places, inside = block * length + k, k < length
    level = tl.load(levels + _read(packed, places, inside, BITS))
    tl.store(x + places, level * tl.load(scales + block), mask=inside)


@triton.jit(do_not_specialize=_PLAIN)
def unpack_groups(
    packed, scales, x, length, BITS: tl.constexpr, GROUP: tl.constexpr, PROGRAM: tl.constexpr
):
    """x = 0 but for one of each group: its block's scale or minus that."""
    block = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * PROGRAM + tl.arange(0, PROGRAM)
    inside, lanes = group < length // GROUP, tl.arange(0, GROUP)[None, :]
    code = _read(packed, block * (length // GROUP) + group, inside, BITS)
    scale = tl.load(scales + block)
    largest = tl.where(code >= GROUP, scale, -scale)
    own = tl.where(lanes == (code % GROUP)[:, None], largest[:, None], 0.0)
    places = block * length + group[:, None] * GROUP + lanes
    tl.store(x + places, own, mask=inside[:, None])
