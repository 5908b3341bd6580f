from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.data.batches import Batch, collate, evaluation_batches, training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.randomness import Purpose, Stream

STREAM = Stream(7, Purpose.BATCHES, round=2, owner=3)


def sequence(number: int, length: int, prompt_length: int = 1) -> TokenizedExample:
    """Starts with its own number, by which a batch's rows are recognised."""
    ids = np.full(length, 9, dtype=np.int32)
    ids[0] = number
    return TokenizedExample.pair(ids, prompt_length)


def sequences(count: int) -> list[TokenizedExample]:
    return [sequence(i, 2 + (i * 37) % 50) for i in range(count)]


def rows(batch: Batch) -> list[int]:
    return batch.input_ids[:, 0].tolist()


def test_prompts_and_padding_are_masked() -> None:
    batch = collate([sequence(5, 4, prompt_length=2), sequence(6, 2, prompt_length=1)])
    assert batch.input_ids.tolist() == [[5, 9, 9, 9], [6, 9, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 9, 9], [-100, 9, -100, -100]]
    assert batch.tokens == 3
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.labels.dtype == torch.int64


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 30))
@settings(deadline=None)
def test_training_takes_exactly_the_steps_and_each_example_once_an_epoch(
    count: int, batch_size: int, steps: int
) -> None:
    batches = list(training_batches(sequences(count), batch_size, steps, STREAM))
    assert len(batches) == steps
    per_epoch = -(-count // batch_size)
    for start in range(0, steps - per_epoch + 1, per_epoch):
        epoch = batches[start : start + per_epoch]
        assert sorted(i for batch in epoch for i in rows(batch)) == list(range(count))


def test_epochs_differ_and_streams_repeat() -> None:
    examples = sequences(60)
    epochs = [rows(b) for b in training_batches(examples, 4, 30, STREAM)]
    assert epochs[:15] != epochs[15:]
    assert {frozenset(r) for r in epochs[:15]} != {frozenset(r) for r in epochs[15:]}
    assert epochs == [rows(b) for b in training_batches(examples, 4, 30, STREAM)]
    other = Stream(7, Purpose.BATCHES, round=3, owner=3)
    assert epochs != [rows(b) for b in training_batches(examples, 4, 30, other)]
    assert epochs[:5] == [rows(b) for b in training_batches(examples, 4, 5, STREAM)]


def test_fewer_examples_than_a_batch_are_one_batch() -> None:
    batches = list(training_batches(sequences(3), 8, 4, STREAM))
    assert [sorted(rows(batch)) for batch in batches] == [[0, 1, 2]] * 4


def test_every_example_is_in_a_short_run_about_equally_often() -> None:
    """Sorting by length must not favour any: 4 of 16 batches, over many rounds."""
    seen: Counter[int] = Counter()
    for round_ in range(300):
        stream = Stream(7, Purpose.BATCHES, round=round_)
        for batch in training_batches(sequences(64), 4, 4, stream):
            seen.update(rows(batch))
    assert min(seen.values()) > 75 - 4 * 8  # mean 75, standard deviation about 7.5
    assert max(seen.values()) < 75 + 4 * 8


def test_little_padding_is_computed() -> None:
    """Lengths of 2 to 51 in random batches of 4 would waste more than a third."""
    batches = list(training_batches(sequences(400), 4, 100, STREAM))
    padding = sum(int((b.attention_mask == 0).sum()) for b in batches)
    assert padding / sum(b.attention_mask.numel() for b in batches) < 0.12


def test_evaluation_sees_every_example_once_longest_first() -> None:
    batches = list(evaluation_batches(sequences(23), 5))
    assert sorted(i for batch in batches for i in rows(batch)) == list(range(23))
    lengths = [batch.input_ids.shape[1] for batch in batches]
    assert lengths == sorted(lengths, reverse=True)


def test_an_evaluation_batch_has_no_more_tokens_than_so_many_of_the_longest() -> None:
    """Padding included; and as many as fit."""
    examples = sequences(200)
    longest = max(map(len, examples))
    batches = list(evaluation_batches(examples, 3))
    for batch, after in pairwise(batches):
        assert batch.input_ids.numel() <= 3 * longest
        assert batch.input_ids.numel() + batch.input_ids.shape[1] > 3 * longest
        assert after.input_ids.shape[1] <= batch.input_ids.shape[1]
    assert len(batches[-1].labels) > 3


def test_an_evaluation_batch_has_no_more_answers_than_so_many_of_the_longest() -> None:
    """Each answer token costs a row of logits, which is more than all else of it."""
    examples = [sequence(0, 100, 90), *(sequence(n, 12, 2) for n in range(1, 20))]
    batches = list(evaluation_batches(examples, 4))
    assert [len(batch.labels) for batch in batches] == [1 + 3, 4, 4, 4, 4]
    assert all(batch.tokens <= 4 * 10 for batch in batches)


def test_batches_are_made_as_they_are_asked_for() -> None:
    (first,) = islice(training_batches(sequences(8), 2, 10**9, STREAM), 1)
    assert len(first.labels) == 2


def test_a_batch_moves_whole() -> None:
    batch = collate(sequences(2)).to("cpu")
    assert batch.tokens == pytest.approx(batch.tokens)
