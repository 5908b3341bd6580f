"""Packed examples are the same examples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.data.tokens import PackedExamples, TokenizedExample


def example(ids: list[int]) -> TokenizedExample:
    return TokenizedExample.pair(np.array(ids, dtype=np.int32), 1, ("an answer",))


sequences = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=2, max_size=19)


@given(st.lists(sequences, max_size=6))
def test_they_come_out_as_they_went_in(contents: list[list[tuple[int, bool]]]) -> None:
    ids = [[number for number, _ in one] for one in contents]
    learned = [[is_learned for _, is_learned in one] for one in contents]
    packed = PackedExamples(
        [
            TokenizedExample(np.array(own, dtype=np.int32), np.array(mask), ("an answer",))
            for own, mask in zip(ids, learned, strict=True)
        ]
    )
    assert len(packed) == len(contents)
    assert [one.ids.tolist() for one in packed] == ids
    assert [one.learned.tolist() for one in packed] == learned
    assert all(one.ids.dtype == np.int32 and one.references == () for one in packed)


def test_they_are_a_sequence() -> None:
    packed = PackedExamples([example([n, n]) for n in range(5)])
    assert packed[-1].ids.tolist() == [4, 4]
    assert [one.ids[0] for one in packed[1:4:2]] == [1, 3]
    with pytest.raises(IndexError):
        packed[5]
    packed[0].ids[0] = 9
    assert packed[0].ids[0] == 0, "what is changed is a copy"


def test_they_take_two_bytes_and_a_bit_a_token_and_four_an_example() -> None:
    examples = [example([7] * 30) for _ in range(10_000)]
    tracemalloc.start()
    packed = PackedExamples(examples)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == 10_000
    assert held < 10_000 * (30 * 2 + 30 / 8 + 4) + 5_000
