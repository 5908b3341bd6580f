"""What the samples of a recipe are for its model: their lengths, and how one reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from fullfed.data.federated import FederatedData
from fullfed.data.tokens import TokenizedExample


class Passage(NamedTuple):
    """A part of a sample as the model reads it, special tokens spelled out."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Samples:
    """Of all clients.

    Attributes:
        by_client: how many each client has, by name.
        test: how many the test set has.
        median_tokens, longest_tokens: of a client's sample, prompt and answer.
        most_tokens: what is longer is shortened.
        shortened, dropped, empty: see ``FederatedData``.
        shown: one of them.
    """

    by_client: dict[str, int]
    test: int
    median_tokens: float
    longest_tokens: int
    most_tokens: int
    shortened: int
    dropped: int
    empty: int
    shown: tuple[Passage, ...]


def samples_of(
    data: FederatedData, most_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> Samples:
    """What there is to say about a federation's data; the sample shown is the first client's first.

    Args:
        most_tokens: of a sample, by recipe and model.
    """
    lengths = [len(example) for client in data.clients for example in client.examples]
    return Samples(
        by_client={client.name: len(client.examples) for client in data.clients},
        test=len(data.test),
        median_tokens=median(lengths),
        longest_tokens=max(lengths),
        most_tokens=most_tokens,
        shortened=data.shortened,
        dropped=data.dropped,
        empty=data.empty,
        shown=passages(data.clients[0].examples[0], tokenizer),
    )


def passages(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> tuple[Passage, ...]:
    """A sample as text, divided where what is learned begins and ends."""
    found: list[Passage] = []
    end = 0
    for learned, run in groupby(example.learned.tolist()):
        begin, end = end, end + len(list(run))
        # Of one decoding of all: what stands before decides whether a word begins with a space.
        text = _decoded(tokenizer, example.ids[:end].tolist())
        before = _decoded(tokenizer, example.ids[:begin].tolist())
        found.append(Passage(text[len(before) :], learned))
    return tuple(found)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""
