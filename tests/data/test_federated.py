from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fullfed.config_data import DataTable
from fullfed.data.federated import FederatedData, divide, federate
from fullfed.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Thirty records, ten of each of three categories."""
    path = tmp_path / "train.jsonl"
    records = [
        {"instruction": f"Number {i}.", "output": str(i), "category": "abc"[i % 3]}
        for i in range(30)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def load(source: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> FederatedData:
    length, seed = changes.pop("max_length", 512), changes.pop("seed", 0)
    table = DataTable.model_validate({"train": source, "partition": "category"} | changes)
    return federate(*divide(table, seed), table, tokenizer, length)


def outputs(examples: Any, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The answers, back from their ids."""
    return [tokenizer.decode(one.ids[one.prompt_length : -1]) for one in examples]


def test_a_category_can_be_held_out(source: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    data = load(source, byte_tokenizer, hold_out="c")
    assert [client.name for client in data.clients] == ["a", "b"]
    assert outputs(data.test, byte_tokenizer) == [str(i) for i in range(2, 30, 3)]
    assert (data.shortened, data.dropped) == (0, 0)


def test_held_out_samples_belong_to_no_client(
    source: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = load(source, byte_tokenizer, test_samples=6)
    everything = [*data.test, *(one for client in data.clients for one in client.examples)]
    assert len(data.test) == 6
    assert sorted(outputs(everything, byte_tokenizer), key=int) == [str(i) for i in range(30)]


def test_the_hash_tells_who_has_what(source: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    def hashed(**changes: Any) -> str:
        return load(source, byte_tokenizer, test_samples=6, **changes).content_hash()

    assert hashed() == hashed()
    text = Path(source).read_text()
    others = {
        hashed(),
        hashed(partition="iid", clients=3),
        hashed(partition="iid", clients=3, seed=1),
    }
    Path(source).write_text(text.replace("Number 7.", "Number 8."))
    others.add(hashed())
    Path(source).write_text("\n".join(reversed(text.splitlines())))
    others.add(hashed())
    assert len(others) == 5


@pytest.mark.parametrize("test", [None, "source"])
def test_the_test_set_does_not_depend_on_the_seed(
    source: str, byte_tokenizer: PreTrainedTokenizerFast, test: str | None
) -> None:
    one, other = (
        load(
            source,
            byte_tokenizer,
            test=source if test else None,
            test_samples=6,
            partition="iid",
            clients=3,
            seed=seed,
        )
        for seed in (1, 2)
    )
    assert outputs(one.test, byte_tokenizer) == outputs(other.test, byte_tokenizer)
    first, second = (outputs(data.clients[0].examples, byte_tokenizer) for data in (one, other))
    assert first != second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "There is no test set"),
        ({"test_samples": 30}, "30 examples to hold out of 30 leave none"),
        ({"hold_out": "z"}, r"The category 'z' cannot be held out .*\(a, b, c\)"),
        ({"test": "x.jsonl", "hold_out": "a"}, "nothing is held out"),
        ({"test_samples": 6, "max_length": 17}, "Client a has no example whose answer fits"),
    ],
)
def test_bad_settings_say_why(
    source: str,
    byte_tokenizer: PreTrainedTokenizerFast,
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        load(source, byte_tokenizer, **changes)


def test_a_test_set_that_does_not_fit_is_named(
    source: str, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"instruction": "Long.", "output": "y" * 600}))
    with pytest.raises(UserError, match="The test set has no example whose answer fits"):
        load(source, byte_tokenizer, test=str(test))


def test_real_tasks_become_clients(shared: Path) -> None:
    source = "data/natural-instructions-test.jsonl.gz"
    table = DataTable(train=source, test=source, test_samples=100)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "base-4m")
    data = federate(*divide(table, 0, shared), table, tokenizer, 512)
    assert len(data.clients) == 55
    assert {len(client.examples) for client in data.clients} == {10}
    assert len(data.test) == 100
    assert data.dropped == 0
    assert 0 <= data.shortened < 50
