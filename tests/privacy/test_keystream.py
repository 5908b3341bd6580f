"""Keys and streams are the standard's, and what is drawn from them has the law it is said to."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fullfed.privacy.keystream import KeyStream, derived


def test_the_stream_is_chacha20() -> None:
    """The keystream of the zero key and nonce: RFC 8439, appendix A.1, vector 1."""
    due = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert KeyStream(bytes(32)).bytes(32).hex() == due


@given(st.lists(st.integers(0, 300), max_size=6))
def test_a_stream_goes_on_where_it_was(lengths: list[int]) -> None:
    whole, parts = KeyStream(bytes(range(32))), KeyStream(bytes(range(32)))
    assert b"".join(map(parts.bytes, lengths)) == whole.bytes(sum(lengths))


def test_keys_are_hkdf_and_differ_by_purpose() -> None:
    due = HKDF(SHA256(), 32, None, b"fullfed one").derive(b"secret of sixteen")
    assert derived(b"secret of sixteen", "one") == due
    assert derived(b"secret of sixteen", "another") != due


def test_uniform_numbers_are_uniform() -> None:
    numbers = KeyStream(derived(b"a test", "uniforms")).uniforms(100_000)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert len(np.unique(numbers)) == len(numbers)
