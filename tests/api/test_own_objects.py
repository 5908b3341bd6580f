"""Models and records that a program has in memory: a run of them is as good as one of files."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import fullfed
from methods.tiny import same, weights
from runs.small import CATEGORIES, write_ingredients

CLIENTS = CATEGORIES[:-1]


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ingredients(tmp_path_factory.mktemp("ingredients"))


@pytest.fixture(scope="module")
def owned(ingredients: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each category."""
    lines = (ingredients / "train.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {c: [r for r in records if r["category"] == c] for c in CATEGORIES}


@pytest.fixture(scope="module")
def model(ingredients: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(ingredients / "model")


def tables(**data: Any) -> dict[str, Any]:
    """A recipe that names neither model nor data."""
    return {
        "data": {"template": "alpaca", **data},
        "federation": {"rounds": 3, "clients_per_round": 2, "snapshot_every": 2},
        "local": {"learning_rate": 0.2, "steps": 2, "batch_size": 2},
        "evaluation": {"every": 2},
        "method": {"name": "ferret", "coordinates": 300},
    }


@pytest.fixture(scope="module")
def given(
    ingredients: Path,
    owned: dict[str, list[dict[str, Any]]],
    model: PreTrainedModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> fullfed.RunResult:
    """A run of a model object, datasets and lists."""
    before = weights(model)
    forms = [Dataset.from_list, list, Dataset.from_list, tuple]
    run = fullfed.run(
        tables(),
        str(tmp_path_factory.mktemp("runs") / "given"),
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(ingredients / "model"),
        clients={c: form(owned[c]) for c, form in zip(CLIENTS, forms, strict=True)},
        test=Dataset.from_list(owned["white"]),
    )
    assert same(weights(model), before), "the object that was given is not trained"
    return run


def test_the_run_is_that_of_the_same_model_and_data_in_files(
    given: fullfed.RunResult, ingredients: Path, tmp_path: Path
) -> None:
    recipe = tables(
        train=str(ingredients / "train.jsonl"), hold_out="white", partition="category"
    ) | {"model": {"path": str(ingredients / "model")}}
    named = fullfed.run(recipe, tmp_path / "named")
    log = (named.folder / "updates.log").read_bytes()
    assert (given.folder / "updates.log").read_bytes() == log
    assert given["model_hash"] == named["model_hash"]
    assert given.losses == named.losses


def test_the_folder_is_enough_for_another_process_by_the_command_line(
    given: fullfed.RunResult, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fullfed", "verify", str(given.folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "verified, 4 hashes equal" in done.stdout, done.stderr


def test_it_is_resumed_to_the_end_that_it_would_have_had(
    given: fullfed.RunResult,
    ingredients: Path,
    model: PreTrainedModel,
    tmp_path: Path,
    owned: dict[str, list[dict[str, Any]]],
) -> None:
    class Stop(fullfed.Callback):
        def on_round_end(self, record: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fullfed.run(
            tables(),
            tmp_path / "stopped",
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(ingredients / "model"),
            clients={c: owned[c] for c in CLIENTS},
            test=owned["white"],
            callbacks=[Stop()],
        )
    stopped = fullfed.RunResult(tmp_path / "stopped")
    assert len(stopped.history) == 1
    with pytest.raises(fullfed.UserError, match="has not ended; resume it first"):
        dict(stopped)
    resumed = fullfed.resume(str(tmp_path / "stopped"))
    assert resumed["model_hash"] == given["model_hash"]


def test_records_may_be_files_of_any_form_that_is_read(
    owned: dict[str, list[dict[str, Any]]], ingredients: Path, tmp_path: Path
) -> None:
    lines = {c: "".join(json.dumps(r) + "\n" for r in owned[c]) for c in CATEGORIES}
    (tmp_path / "red.v1.jsonl.gz").write_bytes(gzip.compress(lines["red"].encode()))
    (tmp_path / "blue.json").write_text(json.dumps(owned["blue"]))
    (tmp_path / "white.jsonl").write_text(lines["white"])
    run = fullfed.run(
        {**tables(), "model": {"path": str(ingredients / "model")}},
        tmp_path / "run",
        clients={"red one": tmp_path / "red.v1.jsonl.gz", "blue": str(tmp_path / "blue.json")},
        test=tmp_path / "white.jsonl",
        overrides=["federation.rounds=1"],
    )
    data = run.folder / "data"
    names = sorted(str(path.relative_to(data)) for path in data.rglob("*.*"))
    assert names == ["clients/blue.json", "clients/red one.jsonl.gz", "test.jsonl"]
    assert run["rounds"] == 1


GOOD = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(4)]


@pytest.mark.parametrize(
    ("given", "data", "expected"),
    [
        ({"clients": {}}, {}, "clients: there is no client"),
        ({"clients": {"a/b": GOOD}}, {}, "clients: 'a/b' cannot be a client's name"),
        ({"clients": {"..": GOOD}}, {}, "clients: '..' cannot be a client's name"),
        ({"clients": {3: GOOD}}, {}, "clients: 3 cannot be a client's name"),
        ({"clients": {"a": []}}, {}, "clients['a']: there are no records"),
        ({"clients": {"a": "no.jsonl"}}, {}, "clients['a']: there is no file no.jsonl"),
        ({"clients": {"a": ["text"]}}, {}, "clients['a'], record 1: this is str, not a dict"),
        (
            {"clients": {"a": [*GOOD, {"instruction": "x", "output": {1, 2}}]}},
            {},
            "clients['a'], record 5: JSON cannot say it (Object of type set is not JSON",
        ),
        (
            {"clients": {"a": [*GOOD, {"instruction": "x", "output": 7}]}},
            {},
            "data/clients/a.jsonl, line 5: field 'output' is int, not text",
        ),
        ({"clients": {"a": GOOD}}, {"train": "x.jsonl"}, "data.train: the recipe says 'x.jsonl'"),
        ({"clients": {"a": GOOD}}, {"partition": "iid"}, "data.partition: the recipe says 'iid'"),
        ({"clients": {"a": GOOD}}, {"clients": 2}, "data.clients: the recipe says 2"),
        ({"test": GOOD}, {"test": "x.jsonl"}, "data.test: the recipe says 'x.jsonl'"),
        ({"model": "a/b", "tokenizer": 1}, {}, "model: a/b is a path; name it in the recipe"),
        ({"tokenizer": 1}, {}, "model: a model goes with its tokenizer"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(
    given: dict[str, Any], data: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    recipe = {**tables(**data), "model": {"path": "builtin"}}
    clients = {} if "clients" in given else {"clients": {"a": GOOD}}
    if "model" in given:
        del recipe["model"]
    with pytest.raises(fullfed.UserError) as caught:
        fullfed.run(recipe, tmp_path / "runs" / "bad", **{"test": GOOD, **clients, **given})
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(fullfed.UserError, match="there is something here already"):
        fullfed.run(tables(), tmp_path / "run", clients={"a": GOOD})
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "thesis.txt"]


def test_an_adapter_is_merged_into_the_model_that_is_returned(
    given: fullfed.RunResult, ingredients: Path, tmp_path: Path
) -> None:
    recipe = given.folder / "recipe.toml"
    run = fullfed.run(recipe, tmp_path / "run", overrides=["method.name=fedit", "method.rank=2"])
    model, tokenizer = run.model()
    exported = AutoModelForCausalLM.from_pretrained(fullfed.export(run, tmp_path / "exported"))
    assert same(weights(model), weights(exported))
    measured = fullfed.evaluate(model, recipe, tokenizer=tokenizer)
    assert measured["loss"] == pytest.approx(run.losses[-1], rel=1e-5)
    assert torch.is_tensor(model.generate(torch.tensor([[1, 2]]), max_new_tokens=1))


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    for bad in ({"data": 3}, {"data": {}, "method": "ferret"}, {}):
        with pytest.raises(fullfed.UserError):
            fullfed.run(bad, tmp_path / "run", clients={"a": GOOD}, test=GOOD)
    (tmp_path / "file").write_text("")
    recipe = {**tables(), "model": {"path": "builtin"}}
    with pytest.raises(fullfed.UserError, match="cannot be written"):
        fullfed.run(recipe, tmp_path / "file" / "run", clients={"a": GOOD}, test=GOOD)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
