"""Packed examples are the same examples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.data.tokens import PackedExamples, TokenizedExample


def example(ids: list[int], prompt_length: int = 1) -> TokenizedExample:
    return TokenizedExample(np.array(ids, dtype=np.int32), prompt_length, ("an answer",))


sequences = st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9)


@given(st.lists(sequences, max_size=6), st.integers(0, 8))
def test_they_come_out_as_they_went_in(contents: list[list[int]], prompt: int) -> None:
    packed = PackedExamples([example(ids, min(prompt, len(ids) - 1)) for ids in contents])
    assert len(packed) == len(contents)
    assert [one.ids.tolist() for one in packed] == contents
    assert [one.prompt_length for one in packed] == [min(prompt, len(ids) - 1) for ids in contents]
    assert all(one.ids.dtype == np.int32 and one.references == () for one in packed)


def test_they_are_a_sequence() -> None:
    packed = PackedExamples([example([n, n]) for n in range(5)])
    assert packed[-1].ids.tolist() == [4, 4]
    assert [one.ids[0] for one in packed[1:4:2]] == [1, 3]
    with pytest.raises(IndexError):
        packed[5]
    packed[0].ids[0] = 9
    assert packed[0].ids[0] == 0, "what is changed is a copy"


def test_they_take_two_bytes_a_token_and_eight_an_example() -> None:
    examples = [example([7] * 30) for _ in range(10_000)]
    tracemalloc.start()
    packed = PackedExamples(examples)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == 10_000
    assert held < 10_000 * (30 * 2 + 8) + 5_000
