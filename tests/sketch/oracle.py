"""The specification again, one element at a time in plain Python, sharing no code with the kernels.

Only Philox itself comes from the library; it is held to the Random123 vectors elsewhere.
"""

from __future__ import annotations

import math

import numpy as np

from fullfed.randomness import Stream, philox

f32 = np.float32


def outputs(stream: Stream, counter: int) -> list[int]:
    words = [counter & 0xFFFFFFFF, counter >> 32, stream.round, stream.owner]
    return [int(w) for w in philox(np.array(words, dtype=np.uint32), stream.key)]


def field(stream: Stream, bits: int, width: int, row: int, column: int) -> int:
    parts = 128 // bits
    big = sum(w << (32 * i) for i, w in enumerate(outputs(stream, row // parts * width + column)))
    return big >> (bits * (row % parts)) & ((1 << bits) - 1)


def horner(coefficients: list[float], x: np.float32) -> np.float32:
    """Highest power first."""
    total = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = f32(total * x) + f32(coefficient)
    return total


def normal(word: int, second: bool) -> np.float32:
    """The first or the second of the two normals that a word makes."""
    bits = int(f32(2 * (word >> 16) + 1).view(np.uint32))
    g = f32(2) - np.uint32(bits % 2**23 + 0x3F800000).view(f32)
    gg = f32(g * g)
    low = f32(f32(0.249908372) * g) + f32(-0.386293390)
    middle = f32(f32(0.0234415439) * g) + f32(0.0847277550)
    high = f32(f32(-0.0199350569) * g) + f32(0.0326715840)
    top = f32(f32(f32(f32(0.0154778466) * gg) + high) * f32(gg * gg))
    log = top + f32(f32(middle * gg) + low)
    square = f32(f32(0x48000000 - bits) * f32(2 * math.log(2) / 2**23)) + f32(g * log)
    radius = -np.sqrt(square) if word & 1 else np.sqrt(square)
    u = f32((2 * (word // 2 % 2**15) + 1) / 2**15 - 1)
    if second:
        turned = u * horner([-0.00433311, 0.07943455, -0.64589456, 1.57079516], f32(u * u))
    else:
        cosine = [0.000858192889, -0.0208106825, 0.253651415, -1.23370148, 1.00000260]
        turned = horner(cosine, f32(u * u))
    return radius * turned


def normal_of(stream: Stream, row: int, column: int) -> np.float32:
    return normal(field(stream, 32, 128, row // 2, column), row % 2 == 1)


def normal_exact(word: int) -> tuple[float, float]:
    """What a word's two stand for, in float64."""
    radius = math.sqrt(-2 * math.log((2 * (word >> 16) + 1) / 2**17))
    angle = ((2 * (word // 2 % 2**15) + 1) / 2**15 - 1) * math.pi / 2
    scale = -1.0000026 * radius if word & 1 else 1.0000026 * radius
    return scale * math.cos(angle), scale * math.sin(angle)


def place(basis, g: int, d: int) -> tuple[int, float]:
    """Coordinate and sign of element g of d under a sign basis."""
    rows, k = basis.rows(d), basis.coordinates
    q, i = divmod(g, k)
    word = outputs(rows.rotation, q // 4)[q % 4]
    c = (i + (word * k >> 32)) % k
    r = 4
    while r < 128 and r * k < d:
        r *= 2
    m = math.ceil(k * r / 128)
    if r < 128 and m > 65_536:
        m = 65_536 * math.ceil(m / 65_536)
    big = sum(w << (32 * n) for n, w in enumerate(outputs(rows.signs, q // r * m + c % m)))
    return c, -1.0 if big >> (r * (c // m) + q % r) & 1 else 1.0


def sign_project(basis, delta: np.ndarray) -> np.ndarray:
    k = basis.coordinates
    rows = -(-delta.size // k)
    table = np.zeros((rows, k), dtype=f32)
    for g, value in enumerate(delta):
        column, sign = place(basis, g, delta.size)
        table[g // k, column] = f32(sign) * f32(value)
    while len(table) > 1 or rows:
        rows = 0
        sums = np.zeros((-(-len(table) // 128), k), dtype=f32)
        for q, row in enumerate(table):
            sums[q // 128] += row
        table = sums
    return table[0]


def sign_reconstruct(basis, weights: np.ndarray, y: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """One scale an element, float32."""
    result = weights.astype(f32).copy()
    for g in range(result.size):
        column, sign = place(basis, g, result.size)
        result[g] = result[g] + f32(sign) * (f32(y[column]) * scales[g])
    return result


def truncated_exact(h: int, d: int) -> float:
    """The exact truncated normal for the 16-bit number h, to about 1e-14, by bisection."""
    a = 1 / math.sqrt(d)
    target = (2 * h - 65535) / 65536 * math.erf(a / math.sqrt(2))
    low, high = -a, a
    for _ in range(80):
        middle = (low + high) / 2
        if math.erf(middle / math.sqrt(2)) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def side(length: int) -> int:
    return next(1 << n for n in range(17) if 4**n >= length)


def transform(x: list[np.float32], places: list[int]) -> None:
    """The Walsh-Hadamard transform of the numbers at the places."""
    size, h = len(places), 1
    while h < size:
        for i in range(size):
            if not i & h:
                a, b = x[places[i]], x[places[i + h]]
                x[places[i]], x[places[i + h]] = f32(a + b), f32(a - b)
        h *= 2
    for place in places:
        x[place] = f32(f32(size**-0.5) * x[place])


def decoded_block(
    codes: list[int], scale: float, count: int, stream: Stream, levels, group: int, bits: int
) -> list[float]:
    """``count`` numbers, of a single block; there are no levels if a code is for a group."""
    multiple = max(side(count), group)
    n = multiple * math.ceil(count / multiple)
    size = side(n)
    m = n // size
    sent = [byte >> (7 - k) & 1 for byte in codes for k in range(8)]
    x = [f32(0)] * n
    for i in range(n // group):
        code = sum(sent[i * bits + k] << k for k in range(bits))
        if levels:
            x[i] = f32(f32(levels[code]) * f32(scale))
        else:
            x[i * group + code % group] = f32(scale if code >= group else -scale)
    z = [f32(1 - 2 * field(stream, 1, 128, e // 128, e % 128)) for e in range(3 * n)]
    rows = [[i * size + k for k in range(size)] for i in range(m)]
    columns = [[i + k * m for k in range(size)] for i in range(m)]
    for places, signs in ((rows, z[2 * n :]), (columns, z[n : 2 * n]), (rows, z[:n])):
        for own in places:
            transform(x, own)
        x = [number * sign for number, sign in zip(x, signs, strict=True)]
    return [float(number) for number in x[:count]]
