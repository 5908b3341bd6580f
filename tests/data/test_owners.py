"""Whose an example is: the file, the folder, the source or the value that it belongs to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fullfed.config_data import DataTable
from fullfed.data.federated import divide
from fullfed.data.owners import read_training
from fullfed.errors import UserError


def write(path: Path, *answers: str, **fields: Any) -> None:
    """Records with these answers, as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"instruction": path.stem, "output": answer, **fields} for answer in answers]
    path.write_text("\n".join(map(json.dumps, records)))


def owned(root: Path, **settings: Any) -> dict[str, str]:
    """The answers of each owner, in the order in which owners are met."""
    table = DataTable.model_validate(settings)
    answers: dict[str, str] = {}
    for example in read_training(table, root):
        answers[example.owner] = answers.get(example.owner, "") + example.output
    return answers


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    write(tmp_path / "data/north/a.jsonl", "1", "2")
    write(tmp_path / "data/north/deep/b.v2.jsonl", "3")
    write(tmp_path / "data/south/c.jsonl", "4")
    return tmp_path


def test_a_file_is_an_owner_by_its_name(hospitals: Path) -> None:
    assert owned(hospitals, train="data", partition="file") == {"a": "12", "b.v2": "3", "c": "4"}
    assert owned(hospitals, train="data/*/*.jsonl", partition="file") == {"a": "12", "c": "4"}
    assert owned(hospitals, train="data/south/c.jsonl", partition="file") == {"c": "4"}


def test_files_of_one_name_are_owners_by_their_paths(hospitals: Path) -> None:
    write(hospitals / "data/south/a.jsonl", "5")
    by_path = {"north/a": "12", "north/deep/b.v2": "3", "south/a": "5", "south/c": "4"}
    assert owned(hospitals, train="data", partition="file") == by_path
    pattern = str(hospitals / "data/**/*.jsonl")
    assert owned(Path("/"), train=pattern, partition="file") == by_path
    (hospitals / "data/south/c.csv").write_text("instruction,output\nc,6\n")
    assert owned(hospitals, train="data/south", partition="file") == {
        "a.jsonl": "5", "c.csv": "6", "c.jsonl": "4",
    }  # fmt: skip


def test_a_folder_is_an_owner_with_all_below_it(hospitals: Path) -> None:
    folders = {"north": "123", "south": "4"}
    assert owned(hospitals, train="data", partition="folder") == folders
    assert owned(hospitals, train="data/*", partition="folder") == folders
    assert owned(hospitals, train="data/**/*.jsonl", partition="folder") == folders
    write(hospitals / "data/d.jsonl", "5")
    with pytest.raises(UserError, match=r"d\.jsonl lies in no folder below data, and data\.part"):
        owned(hospitals, train="data", partition="folder")


@pytest.mark.parametrize("partition", ["file", "folder"])
def test_an_owner_without_examples_is_refused(hospitals: Path, partition: str) -> None:
    (hospitals / "data/south/c.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"c\.jsonl: client '(c|south)' has no examples; give it"):
        owned(hospitals, train="data", partition=partition)
    assert owned(hospitals, train="data", partition="iid") == {"": "123"}


@pytest.mark.parametrize("partition", ["file", "folder"])
def test_a_hub_name_has_no_files(hospitals: Path, partition: str) -> None:
    said = f"some/data is a hub name, whose data are in no {partition} here"
    with pytest.raises(UserError, match=said):
        owned(hospitals, train="some/data", partition=partition)


def test_a_value_is_an_owner_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    values = ["north", 7, 7.5, True, "7", "true", "nörth"]
    records = [
        {"instruction": "?", "output": str(n), "ward": ward, "note": ""}
        for n, ward in enumerate(values)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    settings = {"train": "a.jsonl", "partition": "column", "by": "ward"}
    expected = {"north": "0", "7": "14", "7.5": "2", "true": "35", "nörth": "6"}
    assert owned(tmp_path, **settings) == expected
    assert owned(tmp_path, **settings, ignore=["ward"]) == expected
    assert owned(tmp_path, **settings, columns={"category": "instruction"}) == expected


def test_the_values_of_a_table_are_owners(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"question": list("abcd"), "answer": list("1234"), "ward": [1, 2, 1, 3], "open": True}
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    of_pandas = {str(ward): "".join(rows.answer) for ward, rows in frame.groupby("ward")}
    for name in ("a.csv", "a.parquet"):
        settings = {"train": name, "partition": "column", "by": "ward", "ignore": ["open"]}
        assert owned(tmp_path, **settings) == of_pandas


def test_an_instances_field_is_an_owner(tmp_path: Path) -> None:
    instances = [{"input": "a", "output": [str(n)], "ward": "xy"[n % 2]} for n in range(4)]
    task = {"Definition": "Do.", "Instances": instances}
    (tmp_path / "task1.json").write_text(json.dumps(task))
    assert owned(tmp_path, train="task1.json", partition="column", by="ward") == {
        "x": "02", "y": "13",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", r"line 2: the record has nothing in 'ward', by which data\.by tells clients apart"),
        (None, "line 2: the record has nothing in 'ward'"),
        (["north"], "line 2: field 'ward' is list, which names no client"),
        ("\ud800", "line 2, field 'ward' has half a character"),
    ],
)
def test_a_record_without_an_owner_is_named(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "a.jsonl"
    record = {"instruction": "?", "output": "1", "ward": "north"}
    path.write_text(f"{json.dumps(record)}\n{json.dumps({**record, 'ward': value})}")
    with pytest.raises(UserError, match=message):
        owned(tmp_path, train="a.jsonl", partition="column", by="ward")


def several(**more: Any) -> dict[str, Any]:
    return {
        "sources": [
            {"name": "sums", "path": "sums.jsonl"},
            {"name": "words", "path": "words/*", "columns": {"prompt": "q"}, "ignore": ["court"]},
        ],
        "ignore": ["level"],
        **more,
    }


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    write(tmp_path / "sums.jsonl", "1", "2", level=3)
    (tmp_path / "words").mkdir()
    (tmp_path / "words/a.csv").write_text("q,output,court\n?,3,x\n?,4,y\n")
    write(tmp_path / "words/b.jsonl", "5", q="?")
    return tmp_path


def test_a_source_is_an_owner_with_fields_of_its_own(domains: Path) -> None:
    settings = several(columns={"prompt": "instruction", "completion": "output"})
    settings["sources"][1]["columns"] = {"prompt": "q", "completion": "output"}
    settings["sources"][1]["ignore"] = ["court", "instruction"]
    assert owned(domains, **settings, partition="source") == {"sums": "12", "words": "345"}
    assert owned(domains, **settings, partition="iid") == {"": "12345"}
    assert owned(domains, **settings, partition="file") == {"sums": "12", "a": "34", "b": "5"}
    (domains / "words/b.jsonl").rename(domains / "words/sums.jsonl")
    assert owned(domains, **settings, partition="file") == {
        "sums/sums": "12", "words/a": "34", "words/sums": "5",
    }  # fmt: skip
    settings["sources"][1]["ignore"] = ["instruction"]
    with pytest.raises(UserError, match=r'a\.csv, line 2: "court" would not be read'):
        owned(domains, **settings, partition="source")


def test_folders_of_one_name_are_owners_with_their_sources(tmp_path: Path) -> None:
    for number, name in enumerate(("x/north", "x/south", "y/west")):
        write(tmp_path / name / "a.jsonl", str(number))
    sources = [{"name": "one", "path": "x"}, {"name": "two", "path": "y"}]
    settings = {"sources": sources, "partition": "folder"}
    assert owned(tmp_path, **settings) == {"north": "0", "south": "1", "west": "2"}
    (tmp_path / "y/west").rename(tmp_path / "y/north")
    assert owned(tmp_path, **settings) == {"one/north": "0", "one/south": "1", "two/north": "2"}


def test_a_source_without_examples_is_refused(domains: Path) -> None:
    (domains / "sums.jsonl").write_text("")
    with pytest.raises(UserError, match=r"sums\.jsonl holds no examples"):
        owned(domains, **several(partition="source"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "the key 'data.train' is missing; add it, or "),
        ({"train": "a", "sources": [{"name": "a", "path": "b"}]}, r"give train or \[\[data\.so"),
        ({"sources": []}, "at least 1 item"),
        ({"sources": [{"name": "a", "path": "b"}] * 2}, "two of the sources are called 'a'"),
        (
            {"sources": [{"name": "a/b", "path": "b"}]},
            "'a/b' is no source's name; take one without slashes",
        ),
        ({"train": "a", "partition": "column"}, "needs the field that tells clients apart; add by"),
        ({"train": "a", "by": "ward"}, "by is for partition = 'column', not 'task'; leave it out"),
        ({"train": "a", "partition": "source"}, r"makes clients of \[\[data\.sources\]\]"),
        (
            {"train": "a", "partition": "file", "clients_per_source": 2},
            "clients_per_source is for partition = 'source', not 'file'",
        ),
    ],
)
def test_tables_that_contradict_themselves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataTable.model_validate(settings)


def test_a_test_set_among_the_training_data_is_refused(hospitals: Path) -> None:
    settings = {"train": "data", "partition": "file", "test": "data/south/*.jsonl"}
    with pytest.raises(UserError, match=r"south/c\.jsonl is a file of the test set \(data/south/"):
        divide(DataTable.model_validate(settings), 0, hospitals)
    divided = divide(DataTable.model_validate({**settings, "train": "data/north"}), 0, hospitals)
    assert [part.name for part in divided.parts] == ["a", "b.v2"]
    assert [example.output for example in divided.test] == ["4"]
    divide(DataTable.model_validate({**settings, "test": "data"}), 0, hospitals)


def test_the_test_set_comes_from_everybody_and_takes_nobody_all(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"data/{name}.jsonl", *(f"{name}{n}" for n in range(25)))
    table = DataTable.model_validate({"train": "data", "partition": "file", "test_samples": 40})
    divided = divide(table, 0, tmp_path)
    assert [part.name for part in divided.parts] == list("abcd")
    assert Counter(e.owner for e in divided.test).keys() == set("abcd")
    held = [divided.train[i].output for part in divided.parts for i in part.indices]
    assert len(held) == 60
    assert len({*held, *(e.output for e in divided.test)}) == 100
    for part in divided.parts:
        assert {divided.train[i].owner for i in part.indices} == {part.name}
    write(tmp_path / "data/e.jsonl", "e0")
    with pytest.raises(UserError, match="Client a is left with no examples: all that it has"):
        divide(table.model_copy(update={"test_samples": 100}), 0, tmp_path)
