"""A dataset as a federation sees it: clients with their own data, and a test set apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from fullfed.config import CheckTable
from fullfed.config_data import DataTable
from fullfed.data.examples import Example
from fullfed.data.owners import read_training
from fullfed.data.partition import Part, partition
from fullfed.data.sources import find_files, is_on_hub, read_examples
from fullfed.data.tokens import (
    PackedExamples,
    Tokenized,
    TokenizedExample,
    Untokenized,
    tokenize,
)
from fullfed.errors import UserError
from fullfed.randomness import Purpose, Stream, permutation

# Not the recipe's seed: runs that differ in their training seed are measured on the same samples.
_EVALUATION_SEED = 0


@dataclass(frozen=True)
class ClientData:
    """One client's training data. It stays where the client is.

    Attributes:
        name: of the client: its number, or what ``data.partition`` tells clients apart by.
        examples: at least one, without their text.
    """

    name: str
    examples: Sequence[TokenizedExample]


@dataclass(frozen=True)
class FederatedData:
    """Everything a simulated federation trains and is measured on.

    Attributes:
        clients: in order of their names.
        test: held out from every client.
        shortened: how many prompts of clients and test lost their middle.
        dropped: how many examples of clients and test did not fit at all.
        empty: how many of theirs teach nothing but to say nothing.
        check: what the server checks reports on, held out from every client and the test set.
    """

    clients: tuple[ClientData, ...]
    test: tuple[TokenizedExample, ...]
    shortened: int
    dropped: int
    empty: int = 0
    check: tuple[TokenizedExample, ...] = ()

    def content_hash(self) -> str:
        """SHA-256 of who has which tokens, in which order, and of what is held out; hexadecimal."""
        digest = hashlib.sha256()
        held_out = [("", self.test), *([("check", self.check)] if self.check else [])]
        for name, examples in [*((c.name, c.examples) for c in self.clients), *held_out]:
            digest.update(f"{name!r} {len(examples)}\n".encode())
            for example in examples:
                references = example.references
                digest.update(f"{len(example)} {references!r}\n".encode())
                digest.update(np.packbits(example.learned).tobytes())
                digest.update(example.ids.astype("<i4").tobytes())
        return digest.hexdigest()


class Divided(NamedTuple):
    """Examples, and who has which.

    Attributes:
        train: of all clients.
        test: held out from every client.
        parts: of ``train``, one a client.
        check: what the server checks reports on.
    """

    train: Sequence[Example]
    test: Sequence[Example]
    parts: Sequence[Part]
    check: Sequence[Example] = ()


def divide(
    table: DataTable, seed: int, root: Path | None = None, check: CheckTable | None = None
) -> Divided:
    """Reads the data of a run and says who has which.

    The test set is ``table.test`` (split "test" where it has splits); without one, the category
    ``table.hold_out`` of the training data, of which no client sees anything; without that
    either, ``table.test_samples`` random examples of the training data. At most so many are kept,
    chosen by a seed of its own, whatever the run's seed.

    Args:
        table: the recipe's.
        seed: fixes who holds what.
        root: what relative paths are relative to.
        check: the recipe's.

    Raises:
        UserError: bad input of any kind.
    """
    if table.test is not None and table.hold_out is not None:
        raise UserError(
            f"The test set is {table.test}, so nothing is held out; "
            "leave out either the test source or hold_out."
        )
    train = read_training(table, root)
    if table.test is not None:
        test = read_examples(table.test, "test", root, table.columns, table.ignore)
        _refuse_test_files(table, table.test, root)
    elif table.hold_out is not None:
        train, test = hold_out_category(train, table.hold_out)
    else:
        train, test = hold_out_samples(train, table.test_samples)
        _refuse_held_out_clients(train, test, "data.test_samples")
    left, checked = set_apart(train, check, table, root)
    return Divided(left, test, partition(left, table, seed), checked)


def set_apart(
    train: Sequence[Example], check: CheckTable | None, table: DataTable, root: Path | None = None
) -> tuple[Sequence[Example], list[Example]]:
    """(what is left for clients, what the server checks reports on), the same ones in every run.

    Args:
        check: the recipe's; None for no check.
        table, root: see ``divide``.

    Raises:
        UserError: bad data, or there is nothing left for a client.
    """
    if check is None:
        return train, []
    if check.data is None:
        train, held_out = hold_out_samples(train, check.samples, "check.samples")
        _refuse_held_out_clients(train, held_out, "check.samples")
        return train, held_out
    own = read_examples(check.data, "test", root, table.columns, table.ignore)
    return train, [own[i] for i in _chosen(len(own), check.samples)]


def federate(
    train: Sequence[Example],
    test: Sequence[Example],
    parts: Sequence[Part],
    check: Sequence[Example],
    table: DataTable,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    keep_examples: bool = False,
) -> FederatedData:
    """Tokenises examples that have been divided.

    Args:
        train, test, parts, check: see `Divided`; the server of a real federation has no train and
            parts, and need not have the others.
        table: the recipe's.
        max_length: ids in a sequence, at most the model's context.
        keep_examples: whether clients keep theirs untokenised too, for trainers that read them.

    Raises:
        UserError: no example of a client, of the test set or of the check has an answer that fits;
            or all answers of the clients, or of the test set, are empty.
    """

    def fitting(owner: str, own: Sequence[Example]) -> Tokenized:
        tokenized = tokenize(own, tokenizer, table.template, max_length, table.date, table.answers)
        if not tokenized.examples:
            raise UserError(
                f"{owner} has no example whose answer fits into {max_length} tokens; raise "
                "max_length (or take a model with a longer context), or leave its data out."
            )
        return tokenized

    held = {
        part.name: fitting(f"Client {part.name}", [train[i] for i in part.indices])
        for part in parts
    }
    chosen = [test[i] for i in _chosen(len(test), table.test_samples)]
    none = Tokenized((), 0, 0)
    tested = fitting("The test set", chosen) if test else none
    checked = fitting("The check's data", check) if check else none
    refuse_empty("The training data", list(held.values()))
    refuse_empty("The test set", [tested])
    everything = [*held.values(), tested, checked]

    def packed(part: Part) -> PackedExamples:
        own, source = held[part.name], None
        if keep_examples:
            examples = [train[i] for i in part.indices]
            source = Untokenized.of(own, examples, tokenizer, table.template, table.answers)
        return PackedExamples(own.examples, source)

    clients = tuple(ClientData(part.name, packed(part)) for part in parts)
    return FederatedData(
        clients=clients,
        test=tested.examples,
        shortened=sum(own.shortened for own in everything),
        dropped=sum(own.dropped for own in everything),
        empty=sum(own.empty for own in everything),
        check=checked.examples,
    )


def refuse_empty(owner: str, parts: Sequence[Tokenized]) -> None:
    """UserError if there are answers and not one has a letter in it."""
    kept = sum(len(part.examples) for part in parts)
    if kept and sum(part.empty for part in parts) == kept:
        raise UserError(
            f"{owner}: every answer is empty; name the field that holds the answers "
            '(columns = { completion = "..." }), or take other data.'
        )


def hold_out_category(
    examples: Sequence[Example], category: str
) -> tuple[list[Example], list[Example]]:
    """(the rest, every example of the category).

    Raises:
        UserError: either would be empty.
    """
    rest = [e for e in examples if e.category != category]
    held_out = [e for e in examples if e.category == category]
    if not held_out or not rest:
        found = ", ".join(sorted({e.category for e in examples} - {""})) or "none"
        raise UserError(
            f"The category {category!r} cannot be held out of data with the categories "
            f"({found}); name one of several."
        )
    return rest, held_out


def hold_out_samples(
    examples: Sequence[Example], samples: int | None, key: str = "data.test_samples"
) -> tuple[list[Example], list[Example]]:
    """(the rest, `samples` random examples), the same ones in every run; ``key`` is the recipe's.

    Raises:
        UserError: either would be empty.
    """
    if samples is None:
        raise UserError(
            f"There is no test set: give a test source, a category to hold out (hold_out), or how "
            f"many of the {len(examples)} training examples to hold out (test_samples)."
        )
    if samples >= len(examples):
        raise UserError(
            f"{key}: {samples} examples to hold out of {len(examples)} leave none to "
            "train on; lower it."
        )
    chosen = set(_chosen(len(examples), samples))
    rest = [e for i, e in enumerate(examples) if i not in chosen]
    return rest, [examples[i] for i in sorted(chosen)]


def _refuse_test_files(table: DataTable, test: str, root: Path | None) -> None:
    """UserError if a folder or a pattern of training data has a file of the test set in it.

    A source that is named for both, word for word, is meant.
    """
    if is_on_hub(test, root):
        return
    tested = {file.path.resolve() for file in find_files(test, "test", root)}
    for source in table.training_sources():
        if source.path == test or is_on_hub(source.path, root):
            continue
        for file in find_files(source.path, "train", root):
            if file.path.resolve() in tested:
                raise UserError(
                    f"{file.path} is a file of the test set ({test}) and of the training data "
                    f"({source.path}); move it, or name the training data by a pattern."
                )


def _refuse_held_out_clients(
    train: Sequence[Example], held_out: Sequence[Example], key: str
) -> None:
    """UserError if all of an owner's examples are held out."""
    gone = {example.owner for example in held_out} - {example.owner for example in train}
    if gone:
        raise UserError(
            f"Client {min(gone)} is left with no examples: all that it has are held out; lower "
            f"{key}, or leave the client out of the data."
        )


def _chosen(count: int, samples: int | None) -> list[int]:
    """Random numbers below ``count``, ascending: so many if there are, all for None."""
    stream = Stream(_EVALUATION_SEED, Purpose.EVALUATION)
    return sorted(permutation(stream, count)[:samples].tolist())
