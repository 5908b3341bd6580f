"""The generated tasks: what they promise to whoever trains on them."""

from __future__ import annotations

import pytest

from fullfed.errors import UserError
from fullfed.quickstart.federated import FEDERATED
from fullfed.quickstart.pretraining import PRETRAINING
from fullfed.quickstart.tasks import FEDERATED_KINDS, PRETRAINING_KINDS, examples

KINDS = PRETRAINING_KINDS + FEDERATED_KINDS


def test_there_are_enough_kinds_and_none_is_both_pretraining_and_federated() -> None:
    assert len(PRETRAINING_KINDS) >= 30
    assert len(FEDERATED_KINDS) >= 20
    assert not set(PRETRAINING_KINDS) & set(FEDERATED_KINDS)


def test_no_instruction_of_a_federated_kind_occurs_in_pretraining() -> None:
    known = {wording for kind in PRETRAINING.values() for wording in kind.wordings}
    new = [wording for kind in FEDERATED.values() for wording in kind.wordings]
    assert not known & set(new)
    assert len(set(new)) == len(new)


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_test_inputs_are_disjoint_under_any_seeds(kind: str) -> None:
    train = {
        item.input or item.instruction
        for seed in (1, 2)
        for item in examples(kind, 200, seed, "train")
    }
    test = {item.input or item.instruction for item in examples(kind, 50, 1, "test")}
    assert not train & test


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_complete(kind: str) -> None:
    for item in examples(kind, 50, 3, "train"):
        assert item.instruction.strip()
        assert "{" not in item.instruction
        assert item.output.strip()
        assert item.references == (item.output,)
        assert item.task == kind
        assert item.category


@pytest.mark.parametrize("kind", FEDERATED_KINDS)
def test_a_client_has_varied_data(kind: str) -> None:
    items = examples(kind, 60, 4, "train")
    assert len({item.input for item in items}) >= 45


def test_examples_are_a_function_of_kind_seed_and_split() -> None:
    drawn = examples("record", 20, 7, "train")
    assert drawn == examples("record", 20, 7, "train")
    assert drawn[:5] == examples("record", 5, 7, "train")
    assert drawn != examples("record", 20, 8, "train")
    assert drawn != examples("record", 20, 7, "test")


def test_the_same_examples_on_every_machine() -> None:
    item = examples("record", 1, 0, "train")[0]
    assert (item.instruction, item.input, item.output) == (
        "Fill in the form.",
        "In the street, Paul found the white shoe.",
        "name: Paul; place: street",
    )


def test_unknown_kind_and_split_are_named() -> None:
    with pytest.raises(UserError, match="no quickstart task 'knitting'"):
        examples("knitting", 1, 0, "train")
    with pytest.raises(UserError, match="no split 'validation'"):
        examples("record", 1, 0, "validation")
