"""A dataset as a federation sees it: clients with their own data, and a test set apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fullfed.data.examples import Example
from fullfed.data.partition import Kind, partition
from fullfed.data.sources import read_examples
from fullfed.data.templates import Template
from fullfed.data.tokens import TokenizedExample, tokenize
from fullfed.errors import UserError
from fullfed.sketch.generator import Purpose, Stream, permutation

# Not the recipe's seed: runs that differ in their training seed are measured on the same samples.
_EVALUATION_SEED = 0


@dataclass(frozen=True)
class ClientData:
    """One client's training data. It stays where the client is.

    Attributes:
        name: the task, category or number of the client.
        examples: at least one.
    """

    name: str
    examples: tuple[TokenizedExample, ...]


@dataclass(frozen=True)
class FederatedData:
    """Everything a simulated federation trains and is measured on.

    Attributes:
        clients: in order of their names.
        test: held out from every client.
        shortened: how many prompts of clients and test lost their middle.
        dropped: how many examples of clients and test did not fit at all.
    """

    clients: tuple[ClientData, ...]
    test: tuple[TokenizedExample, ...]
    shortened: int
    dropped: int


def load_federated(
    train_source: str,
    test_source: str | None,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    kind: Kind,
    clients: int | None,
    alpha: float,
    minimum: int,
    seed: int,
    test_samples: int | None,
    hold_out: str | None = None,
    root: Path | None = None,
) -> FederatedData:
    """Reads, splits and tokenises the data of a run.

    The test set is `test_source` (split "test" where it has splits); without one, the category
    `hold_out` of the training data, of which no client sees anything; without that either,
    `test_samples` random examples of the training data. At most `test_samples` are kept, chosen
    by a seed of its own, whatever the run's seed.

    Args:
        train_source: see `read_examples`.
        test_source: see `read_examples`; None to hold out from the training data.
        tokenizer: the model's.
        template: see `render`.
        max_length: ids in a sequence, at most the model's context.
        kind: see `partition`, as for `clients`, `alpha`, `minimum` and `seed`.
        test_samples: None for all of the test set.
        hold_out: a category, only without a `test_source`.
        root: what relative paths are relative to.

    Raises:
        UserError: bad input of any kind; also a client or a test set none of whose examples
            fit into `max_length`.
    """
    train = read_examples(train_source, "train", root)
    if test_source is not None:
        if hold_out is not None:
            raise UserError("Give a test source or a category to hold out, not both.")
        test = read_examples(test_source, "test", root)
    elif hold_out is not None:
        train, test = _hold_out_category(train, hold_out, train_source)
    else:
        train, test = _hold_out_samples(train, test_samples, train_source)
    test_tokens = tokenize(_subset(test, test_samples), tokenizer, template, max_length)
    if not test_tokens.examples:
        raise UserError(
            f"No answer of the test set {test_source or train_source} fits into {max_length} "
            "tokens; raise max_length or take a model with a longer context."
        )
    shortened, dropped = test_tokens.shortened, test_tokens.dropped
    parties: list[ClientData] = []
    for name, indices in partition(train, kind, clients, alpha, minimum, seed):
        own = tokenize([train[i] for i in indices], tokenizer, template, max_length)
        if not own.examples:
            raise UserError(
                f"Client {name} has no example whose answer fits into {max_length} tokens; "
                "raise max_length or leave that client out of the data."
            )
        parties.append(ClientData(name, own.examples))
        shortened += own.shortened
        dropped += own.dropped
    return FederatedData(tuple(parties), test_tokens.examples, shortened, dropped)


def _hold_out_category(
    examples: Sequence[Example], category: str, source: str
) -> tuple[list[Example], list[Example]]:
    test = [e for e in examples if e.category == category]
    train = [e for e in examples if e.category != category]
    if not test or not train:
        found = ", ".join(sorted({e.category for e in examples})) or "none"
        raise UserError(
            f"Cannot hold out the category {category!r} of {source}, which has {found}; "
            "name one of several."
        )
    return train, test


def _hold_out_samples(
    examples: Sequence[Example], samples: int | None, source: str
) -> tuple[list[Example], list[Example]]:
    if samples is None or not 0 < samples < len(examples):
        raise UserError(
            f"Give a test source, a category to hold out, or how many of the {len(examples)} "
            f"examples of {source} to hold out (test_samples, fewer than all)."
        )
    held_out = set(_chosen(len(examples), samples))
    train = [e for i, e in enumerate(examples) if i not in held_out]
    return train, [examples[i] for i in sorted(held_out)]


def _subset(examples: Sequence[Example], samples: int | None) -> list[Example]:
    if samples is None or samples >= len(examples):
        return list(examples)
    return [examples[i] for i in _chosen(len(examples), samples)]


def _chosen(count: int, samples: int) -> list[int]:
    stream = Stream(_EVALUATION_SEED, Purpose.EVALUATION)
    return sorted(permutation(stream, count)[:samples].tolist())
