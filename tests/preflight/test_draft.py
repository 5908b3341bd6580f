"""`fullfed init` writes recipes that check accepts and run runs, for whatever data there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

import fullfed
from fullfed.cli import app
from fullfed.config_data import DataTable
from fullfed.methods.catalogue import METHODS
from fullfed.preflight.draft import write_draft
from fullfed.recipe_file import load_tables
from fullfed.schema.recipe_schema import recipe_schema


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def pairs(word: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"Say {word} {n}.", "answer": f"{word} {n}", **more} for n in range(count)]


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_is_a_recipe_of_any_method(method: str) -> None:
    write(Path("data.jsonl"), pairs("plum", 40))
    result = init("builtin", "data.jsonl", "--method", method)
    assert result.exit_code == 0, result.output
    found = "data.jsonl: questions and answers, 40 samples\nrecipe.toml: written; "
    assert result.output.startswith(found)
    found = fullfed.check("recipe.toml", step=False)
    assert found.recipe.method.name == method
    assert found.samples.by_client == {f"client-{n}": 9 for n in range(4)}
    assert found.samples.test == 4
    Draft202012Validator(recipe_schema()).validate(load_tables("recipe.toml"))


def test_a_buffer_does_not_wait_for_everybody() -> None:
    write(Path("data.jsonl"), pairs("plum", 40))
    init("builtin", "data.jsonl", "--method", "fedbuff")
    recipe = fullfed.load_recipe("recipe.toml")
    assert recipe.method.options["buffer"] < recipe.federation.clients_per_round


def test_it_runs_and_learns() -> None:
    write_draft("builtin", "builtin", Path("recipe.toml"))
    short = ["federation.rounds=2", "evaluation.every=2", "data.test_samples=24", "local.steps=5"]
    run = fullfed.run("recipe.toml", overrides=short)
    assert run.losses[-1] < run.losses[0] - 0.02


def test_files_are_clients() -> None:
    for ward in ("north", "south", "west"):
        write(Path("wards") / f"{ward}.jsonl", pairs(ward, 20))
    write_draft("builtin", "wards", Path("recipe.toml"))
    table = fullfed.load_recipe("recipe.toml").data
    assert (table.partition, table.test_samples) == ("file", 6)
    assert list(fullfed.check("recipe.toml", step=False).samples.by_client) == [
        "north",
        "south",
        "west",
    ]


def test_folders_are_clients_where_all_files_lie_in_some() -> None:
    for file in ("a/1", "a/2", "b/1", "b/2"):
        write(Path("all") / f"{file}.jsonl", pairs(file, 20))
    write_draft("builtin", "all", Path("recipe.toml"))
    assert fullfed.load_recipe("recipe.toml").data.partition == "folder"
    write(Path("all/c.jsonl"), pairs("c", 20))
    write_draft("builtin", "all", Path("other.toml"))
    assert fullfed.load_recipe("other.toml").data.partition == "file"


def test_fields_that_are_not_read_are_left_out_and_offered_as_clients() -> None:
    records = pairs("a", 20, ward="east", note="x") + pairs("b", 20, ward="west", note=None)
    write(Path("data.jsonl"), records)
    write_draft("builtin", "data.jsonl", Path("recipe.toml"))
    assert fullfed.load_recipe("recipe.toml").data.ignore == ("ward", "note")
    text = Path("recipe.toml").read_text()
    (line,) = [line for line in text.splitlines() if '"column"' in line]
    assert line == '# partition = "column"      # with by = "ward": 2'
    changes = ["data.partition=column", "data.by=ward", "data.clients="]
    changes.append("federation.clients_per_round=2")
    found = fullfed.check("recipe.toml", step=False, overrides=changes)
    assert found.samples.by_client.keys() == {"east", "west"}


def test_tasks_and_categories_are_offered() -> None:
    records = [
        {"instruction": f"Say {n}.", "response": str(n), "category": "ab"[n % 2]} for n in range(20)
    ]
    write(Path("data.jsonl"), records)
    assert write_draft("builtin", "data.jsonl", Path("recipe.toml")).labels == {"category": 2}
    assert '# partition = "category"    # would make 2 clients' in Path("recipe.toml").read_text()


@pytest.mark.parametrize("count", [2, 3, 9])
def test_few_samples_are_few_clients(count: int) -> None:
    write(Path("data.jsonl"), pairs("a", count))
    write_draft("builtin", "data.jsonl", Path("recipe.toml"))
    found = fullfed.check("recipe.toml", step=False)
    assert sum(found.samples.by_client.values()) + found.samples.test == count


def test_a_real_model_gets_what_is_usual_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fullfed.preflight.draft._REAL", 900_000)  # the embedded one has more
    write(Path("data.jsonl"), pairs("a", 40))
    write_draft("builtin", "data.jsonl", Path("recipe.toml"))
    local = fullfed.load_recipe("recipe.toml").local
    assert (local.optimizer, local.learning_rate, local.precision) == ("adamw", 2e-5, "bfloat16")
    fullfed.check("recipe.toml", step=False)


def test_nothing_is_overwritten() -> None:
    write(Path("data.jsonl"), pairs("a", 40))
    Path("recipe.toml").write_text("mine")
    with pytest.raises(fullfed.UserError, match=r"^recipe\.toml: there is a file here already"):
        write_draft("builtin", "data.jsonl", Path("recipe.toml"))
    assert Path("recipe.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "data", "method", "said"),
    [
        ("builtin", "nothing.jsonl", "ferret", "nothing.jsonl does not exist"),
        ("./nothing", "data.jsonl", "ferret", "there is no model folder here"),
        ("builtin", "data.jsonl", "ferrets", "there is no method 'ferrets'"),
        ("builtin", "list.jsonl", "ferret", "list.jsonl, line 1: expected a JSON object"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
    model: str, data: str, method: str, said: str
) -> None:
    write(Path("data.jsonl"), pairs("a", 40))
    Path("list.jsonl").write_text("[1, 2]\n")
    with pytest.raises(fullfed.UserError, match=said):
        write_draft(model, data, Path("recipe.toml"), method)
    assert not Path("recipe.toml").exists()


def test_fields_of_no_known_format_are_to_be_named() -> None:
    write(Path("odd.jsonl"), [{"q": f"Say {n}.", "a": str(n)} for n in range(40)])
    found = write_draft("builtin", "odd.jsonl", Path("recipe.toml"))
    assert (found.format, found.samples, found.ignore) == ("", 40, ("q", "a"))
    text = Path("recipe.toml").read_text()
    assert 'columns = { prompt = "?", completion = "?" }' in text
    assert "# q, a." in text
    with pytest.raises(fullfed.UserError, match=r"there is no field '\?', which columns names"):
        fullfed.check("recipe.toml", step=False)
    named = text.replace('prompt = "?", completion = "?"', 'prompt = "q", completion = "a"')
    Path("recipe.toml").write_text(named)
    assert fullfed.check("recipe.toml", step=False)


def test_a_folder_that_is_not_there_is_told() -> None:
    write(Path("data.jsonl"), pairs("a", 40))
    with pytest.raises(fullfed.UserError, match="the recipe cannot be written"):
        write_draft("builtin", "data.jsonl", Path("no/recipe.toml"))


def test_quotes_in_names_are_kept() -> None:
    write(Path('a "b".jsonl'), pairs("a", 40))
    write_draft("builtin", 'a "b".jsonl', Path("recipe.toml"))
    table: DataTable = fullfed.load_recipe("recipe.toml").data
    assert table.train == 'a "b".jsonl'
