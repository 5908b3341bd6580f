from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from fullfed.data.examples import Example
from fullfed.data.sources import read_examples
from fullfed.errors import UserError


def write_task(path: Path, **fields: Any) -> None:
    task = {
        "Contributors": ["someone"],
        "Source": ["winogrande"],
        "Categories": ["Word Analogy"],
        "Definition": ["Complete the analogy."],
        "Positive Examples": [],
        "Instances": [{"id": "task1-1", "input": "a : b", "output": ["c", "d"]}],
        "Instance License": ["MIT"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(task | fields, indent=4))


def test_every_instance_of_every_task_is_read_in_order_of_file_names(tmp_path: Path) -> None:
    write_task(tmp_path / "task002_b.json", Definition="Old style.", Categories=["Misc."])
    write_task(tmp_path / "task001_a.json")
    (tmp_path / "README.md").write_text("not a task")
    assert read_examples(str(tmp_path)) == [
        Example.single(
            "Complete the analogy.", "a : b", "c", ("c", "d"), "task001_a", "Word Analogy"
        ),
        Example.single("Old style.", "a : b", "c", ("c", "d"), "task002_b", "Misc."),
    ]


def test_an_instances_further_field_is_refused_unless_ignored(tmp_path: Path) -> None:
    instance = {"id": "task1-1", "input": "a : b", "output": ["c"], "passage": "On letters."}
    write_task(tmp_path / "task001_a.json", Instances=[instance])
    with pytest.raises(
        UserError, match=r'task001_a\.json, instance 1: "passage" would not be read'
    ):
        read_examples(str(tmp_path))
    assert len(read_examples(str(tmp_path), ignore=["passage"])) == 1


def test_one_task_file_is_read_alone(tmp_path: Path) -> None:
    write_task(tmp_path / "task001_a.json")
    path = tmp_path / "task001_a.json"
    assert [e.task for e in read_examples(str(path))] == ["task001_a"]
    path.write_text(json.dumps(json.loads(path.read_text())))  # on one line
    assert [e.task for e in read_examples(str(path))] == ["task001_a"]


def test_a_checkout_of_the_original_has_its_splits_honoured(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_task(tmp_path / "tasks" / f"task00{number}.json")
    splits = tmp_path / "splits" / "default"
    splits.mkdir(parents=True)
    (splits / "train_tasks.txt").write_text("task003\ntask001\n")
    (splits / "test_tasks.txt").write_text("task002\ntask009\n")
    assert [e.task for e in read_examples(str(tmp_path / "tasks"))] == ["task003", "task001"]
    with pytest.raises(UserError, match=r"lacks task009\.json"):
        read_examples(str(tmp_path / "tasks"), "test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"Instances": "none"}, r"task001\.json is no natural-instructions task file"),
        ({"Definition": 3}, r"task001\.json: Definition is neither"),
        ({"Instances": [{"input": "a", "output": "b"}]}, r"task001\.json, instance 1: expected"),
        ({"Instances": [{"input": "a", "output": ["b", 1]}]}, r"instance 1: expected"),
        ({"Instances": []}, "holds no examples"),
    ],
)
def test_bad_task_files_are_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_task(tmp_path / "task001.json", **fields)
    with pytest.raises(UserError, match=message):
        read_examples(str(tmp_path))


def test_a_malformed_task_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "task001.json").write_text('{\n "Definition": \n}')
    with pytest.raises(UserError, match=r"task001\.json, line 3: malformed JSON"):
        read_examples(str(tmp_path))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no file that can be read \(\.json, "):
        read_examples(str(tmp_path))


def test_real_tasks_written_in_the_original_layout_read_the_same(
    shared: Path, tmp_path: Path
) -> None:
    examples = read_examples("data/natural-instructions-test.jsonl.gz", root=shared)
    for task, group in groupby(examples, key=lambda e: e.task):
        members = list(group)
        write_task(
            tmp_path / f"{task}.json",
            Definition=[members[0].instruction],
            Categories=[members[0].category],
            Instances=[
                {"id": str(i), "input": e.input, "output": list(e.references)}
                for i, e in enumerate(members)
            ],
        )
    assert read_examples(str(tmp_path)) == sorted(examples, key=lambda e: e.task)
