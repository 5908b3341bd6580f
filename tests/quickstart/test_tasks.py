"""The generated tasks: what they promise to whoever trains on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import pytest

from fullfed.data.examples import Example
from fullfed.quickstart.kinds import Kind, Split, draw_examples
from fullfed.quickstart.tasks import FEDERATED
from pretraining import PRETRAINING, UNDERSTOOD

KINDS = PRETRAINING | FEDERATED
FIELDS = ("instruction", "input", "output", "references", "task", "category")


def digest(kinds: Mapping[str, Kind]) -> str:
    """Of sixty examples of each kind and split."""
    whole = hashlib.sha256()
    for name, kind in kinds.items():
        for split in ("train", "test"):
            drawn = draw_examples(name, kind, 60, 11, split)
            items = [{key: getattr(item, key) for key in FIELDS} for item in drawn]
            whole.update(json.dumps(items, sort_keys=True).encode())
    return whole.hexdigest()


def test_the_examples_are_those_of_the_first_release() -> None:
    assert digest(FEDERATED) == "71ed4f55bb4e689d7243f12946ba7036b4082adce0c2c7890e43afa12a979cdd"
    assert digest(PRETRAINING) == "259e88c5bd52d845ad8963fa3a3e9eace185ec563d726d671b0c75f362b232e1"


def test_there_are_enough_kinds_and_none_is_both_pretraining_and_federated() -> None:
    assert len(PRETRAINING) >= 30
    assert len(FEDERATED) >= 20
    assert not PRETRAINING.keys() & FEDERATED.keys()


def test_no_instruction_of_a_federated_kind_occurs_in_pretraining() -> None:
    known = {wording for kind in UNDERSTOOD.values() for wording in kind.wordings}
    new = [wording for kind in FEDERATED.values() for wording in kind.wordings]
    assert not known & set(new)
    assert len(set(new)) == len(new)


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_test_inputs_are_disjoint_under_any_seeds(kind: str) -> None:
    train = {
        item.input or item.instruction
        for seed in (1, 2)
        for item in draw_examples(kind, KINDS[kind], 200, seed, "train")
    }
    tests = draw_examples(kind, KINDS[kind], 50, 1, "test")
    assert not train & {item.input or item.instruction for item in tests}


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_complete(kind: str) -> None:
    for item in draw_examples(kind, KINDS[kind], 50, 3, "train"):
        assert item.instruction.strip()
        assert "{" not in item.instruction
        assert item.output.strip()
        assert item.references == (item.output,)
        assert item.task == kind
        assert item.category


@pytest.mark.parametrize("kind", FEDERATED)
def test_a_client_has_varied_data(kind: str) -> None:
    items = draw_examples(kind, FEDERATED[kind], 60, 4, "train")
    assert len({item.input for item in items}) >= 45


def test_examples_are_a_function_of_kind_seed_and_split() -> None:
    def records(count: int, seed: int, split: Split) -> list[Example]:
        return draw_examples("record", FEDERATED["record"], count, seed, split)

    drawn = records(20, 7, "train")
    assert drawn == records(20, 7, "train")
    assert drawn[:5] == records(5, 7, "train")
    assert drawn != records(20, 8, "train")
    assert drawn != records(20, 7, "test")


def test_the_same_examples_on_every_machine() -> None:
    (item,) = draw_examples("record", FEDERATED["record"], 1, 0, "train")
    assert (item.instruction, item.input, item.output) == (
        "Fill in the form.",
        "In the street, Paul found the white shoe.",
        "name: Paul; place: street",
    )
