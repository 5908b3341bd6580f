"""Batches of similar length, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from fullfed.data.tokens import TokenizedExample
from fullfed.randomness import Stream, permutation

IGNORED = -100  # the label of a position that is not learned, torch's own convention
_WINDOW = range(8, 51)  # batches whose examples are sorted by length together

# What stands in padded positions. Any valid id would do, they are attended to by none and
# learned by none; so a model needs no pad token, and its embeddings are never resized for one.
_FILLER = 0


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to a common length.

    Attributes:
        input_ids: int64, shape (examples, length).
        attention_mask: int64, shape (examples, length); 1 on prompt and answer, 0 on padding.
        labels: int64, shape (examples, length); the learned ids, -100 on the others and on padding.
            Not shifted: the label of a position is the id at that position.
        tokens: how many learned tokens (the ends of answers included).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    tokens: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
        )

    def split(self, size: int | None) -> list[Batch]:
        """Parts of at most ``size`` samples of similar length; the whole batch if it is None."""
        if size is None or size >= len(self.labels):
            return [self]
        lengths = self.attention_mask.sum(dim=1)
        return [self._part(rows) for rows in torch.split(lengths.argsort(stable=True), size)]

    def _part(self, rows: torch.Tensor) -> Batch:
        length = int(self.attention_mask[rows].sum(dim=1).max())
        labels = self.labels[rows, :length]
        return Batch(
            input_ids=self.input_ids[rows, :length],
            attention_mask=self.attention_mask[rows, :length],
            labels=labels,
            tokens=int((labels != IGNORED).sum()),
        )


def collate(examples: Sequence[TokenizedExample]) -> Batch:
    """One batch of all the examples; of none, one of no rows."""
    if not examples:
        nothing = torch.zeros((0, 0), dtype=torch.int64)
        return Batch(nothing, nothing, nothing, tokens=0)
    ids = [torch.from_numpy(example.ids).long() for example in examples]
    labels = [row.clone() for row in ids]
    for row, example in zip(labels, examples, strict=True):
        row[torch.from_numpy(~example.learned)] = IGNORED
    return Batch(
        input_ids=pad_sequence(ids, batch_first=True, padding_value=_FILLER),
        attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        labels=pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        tokens=sum(example.learned_tokens for example in examples),
    )


def training_batches(
    examples: Sequence[TokenizedExample], batch_size: int, steps: int, stream: Stream
) -> Iterator[Batch]:
    """Exactly `steps` batches, epoch after epoch, each epoch in a fresh order.

    An epoch holds every example once; its last batch is smaller where the numbers do not divide,
    and fewer examples than `batch_size` are one batch. Similar lengths share a batch: the epoch's
    random order is sorted by length within windows of 8 to 50 batches, and the batches shuffled.

    Args:
        examples: at least one.
        stream: fixes the order; epoch e uses its blocks 2e and 2e + 1.
    """
    lengths = [len(example) for example in examples]
    for indices in training_order(lengths, batch_size, steps, stream):
        yield collate([examples[i] for i in indices])


def training_order(
    lengths: Sequence[int], batch_size: int, steps: int, stream: Stream
) -> Iterator[list[int]]:
    """Which examples each of ``training_batches`` holds, by their numbers.

    Args:
        lengths: of the examples, in ids; the rest as for ``training_batches``.
    """
    epoch = 0
    while steps > 0:
        batches = _epoch(lengths, batch_size, stream, epoch)
        yield from batches[:steps]
        steps -= len(batches)
        epoch += 1


def evaluation_batches(examples: Sequence[TokenizedExample], batch_size: int) -> Iterator[Batch]:
    """Every example once, longest first, so that running out of memory shows at once.

    A batch has at most as many tokens, padding included, and as many answer tokens, each of which
    costs a row of logits, as ``batch_size`` of the longest could have. Shorter ones are more.
    """
    ordered = sorted(examples, key=len, reverse=True)
    most = batch_size * len(ordered[0])
    most_answers = batch_size * max(example.learned_tokens for example in ordered)
    batch, answers = list[TokenizedExample](), 0
    for example in ordered:
        own = example.learned_tokens
        if batch and (len(batch[0]) * (len(batch) + 1) > most or answers + own > most_answers):
            yield collate(batch)
            batch, answers = [], 0
        batch.append(example)
        answers += own
    yield collate(batch)


def _epoch(lengths: Sequence[int], batch_size: int, stream: Stream, epoch: int) -> list[list[int]]:
    """The indices of each batch of one epoch."""
    order = permutation(replace(stream, block=2 * epoch), len(lengths)).tolist()
    quarter = len(order) // (4 * batch_size)  # so that batches differ from epoch to epoch
    window = min(max(quarter, _WINDOW[0]), _WINDOW[-1]) * batch_size
    bucketed: list[int] = []
    for start in range(0, len(order), window):
        bucketed += sorted(order[start : start + window], key=lambda i: lengths[i])
    batches = [bucketed[i : i + batch_size] for i in range(0, len(bucketed), batch_size)]
    shuffled = permutation(replace(stream, block=2 * epoch + 1), len(batches))
    return [batches[i] for i in shuffled]
