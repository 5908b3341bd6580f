"""The counter-based generator behind everything random in fullfed.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC'11). A stream is named, not stored: its seed, purpose, block, round and owner
fix every word of it, and any word can be computed alone. This module is the
readable NumPy form; the kernels compute the same words. The wire format is
specified in docs/shared-randomness.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

SPECIFICATION = 1
SHARED = 0xFFFFFFFF  # the owner of a stream that belongs to no single client

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Purpose(IntEnum):
    """What a stream is for; part of the key, so no two uses share words. Codecs and methods outside
    the package take numbers from 2**31 up, which will not be used here."""

    SIGNS = 1
    ROTATION = 2
    TRUNCATED_NORMAL = 3
    DIRECTION = 4
    COHORT = 5
    PARTITION = 6
    BATCHES = 7
    PROBE = 8
    EVALUATION = 9
    ROUNDING = 10
    DENSE_SIGNS = 11  # not used; the number stays reserved
    CANDIDATES = 12
    ADAPTERS = 13
    VALIDATION = 14
    FAILURES = 15
    BLOCKS = 16
    CODES = 17
    DITHER = 18
    TRAINER = 19
    CLASSES = 20
    TENSORS = 21
    RANKS = 22
    MASK = 23
    PROMPT = 24
    EVOLUTION = 25
    PERTURBATION = 26
    PREFIX = 27
    ARRIVALS = 28


def philox(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10 of each counter (shape (..., 4)) under one key of two 32-bit words."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def derive_key(seed: int, purpose: int, block: int = 0) -> tuple[int, int]:
    """The two key words of a stream: the first two of Philox((purpose, block, 0, version), seed).

    ``seed`` is taken modulo 2**64; ``purpose`` and ``block`` are 32-bit.
    """
    counter = np.array([purpose, block, 0, SPECIFICATION], dtype=np.uint32)
    words = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return int(words[0]), int(words[1])


@dataclass(frozen=True)
class Stream:
    """One named, endless sequence of 32-bit words.

    Attributes:
        seed: the recipe's seed, 64-bit.
        purpose: what the words are used for.
        round: 32-bit round number.
        owner: 32-bit client number, or SHARED.
        block: 32-bit block number.
    """

    seed: int
    purpose: int
    round: int = 0
    owner: int = SHARED
    block: int = 0

    @property
    def key(self) -> tuple[int, int]:
        return derive_key(self.seed, self.purpose, self.block)

    def words(self, count: int, start: int = 0) -> NDArray[np.uint32]:
        """Words start, start + 1, ... of the stream, shape (count,).

        Word i is output i mod 4 of the counter (i div 4 low, i div 4 high, round, owner).
        """
        first, last = start // 4, (start + count + 3) // 4
        position = np.arange(first, last, dtype=np.uint64)
        counter = np.empty((last - first, 4), dtype=np.uint32)
        counter[:, 0] = (position & _LOW).astype(np.uint32)
        counter[:, 1] = (position >> _SHIFT).astype(np.uint32)
        counter[:, 2] = self.round
        counter[:, 3] = self.owner
        return philox(counter, self.key).reshape(-1)[start - 4 * first :][:count]


def uniforms(stream: Stream, count: int, start: int = 0) -> NDArray[np.float64]:
    """Multiples of 2**-53 in [0, 1), shape (count,), two words each, high word first."""
    words = stream.words(2 * count, 2 * start).astype(np.uint64).reshape(-1, 2)
    bits = (words[:, 0] << np.uint64(21)) | (words[:, 1] >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53


def permutation(stream: Stream, count: int) -> NDArray[np.int64]:
    """A uniformly random order of 0 .. count - 1: the stable sort order of 64-bit keys."""
    words = stream.words(2 * count).astype(np.uint64).reshape(-1, 2)
    keys = (words[:, 0] << _SHIFT) | words[:, 1]
    return np.argsort(keys, kind="stable")
