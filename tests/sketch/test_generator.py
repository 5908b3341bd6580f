"""The generator: published vectors, random access, counters beyond 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.randomness import derive_key, philox
from fullfed.sketch import SHARED, Purpose, Stream, permutation, uniforms

# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, output.
VECTORS = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0xFFFFFFFF] * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]

streams = st.builds(
    Stream,
    seed=st.integers(0, 2**64 - 1),
    purpose=st.sampled_from(Purpose),
    round=st.integers(0, 2**32 - 1),
    owner=st.integers(0, 2**32 - 1),
    block=st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_philox_gives_the_published_vectors(counter, key, output):
    assert philox(np.array(counter, dtype=np.uint32), key).tolist() == output


@given(streams, st.integers(0, 2**40), st.integers(1, 40))
def test_words_are_random_access_beyond_32_bit_counters(stream, start, count):
    words = stream.words(count, start)
    for i in range(count):
        position = start + i
        counter = [position // 4 & 0xFFFFFFFF, position // 4 >> 32, stream.round, stream.owner]
        output = philox(np.array(counter, dtype=np.uint32), stream.key)
        assert words[i] == output[position % 4]


def test_every_part_of_a_name_changes_the_stream():
    base = {"seed": 1, "purpose": Purpose.SIGNS, "round": 2, "owner": 3, "block": 4}
    changes = [{}] + [{name: base[name] + 1} for name in base] + [{"seed": 1 + 2**32}]
    seen = {tuple(Stream(**{**base, **change}).words(4)) for change in changes}
    assert len(seen) == len(changes)


def test_seeds_count_modulo_two_to_the_64():
    assert derive_key(-1, 5) == derive_key(2**64 - 1, 5)


def test_shared_belongs_to_nobody():
    assert SHARED == 2**32 - 1


@given(streams, st.integers(1, 200), st.integers(0, 2**35))
def test_uniforms_are_in_range_and_random_access(stream, count, start):
    values = uniforms(stream, count, start)
    assert values.min() >= 0
    assert values.max() < 1
    assert values[-1] == uniforms(stream, 1, start + count - 1)[0]


@given(streams, st.integers(0, 300))
def test_permutation_is_one(stream, count):
    assert sorted(permutation(stream, count)) == list(range(count))
