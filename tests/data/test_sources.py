from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fullfed.config_data import ColumnsTable
from fullfed.data import hub_records
from fullfed.data.examples import Example
from fullfed.data.sources import read_examples
from fullfed.errors import UserError

ALPACA = {"instruction": "Add.", "input": "1, 2", "output": "3"}
DOLLY = {"instruction": "Who?", "context": "", "response": "She.", "category": "open_qa"}


def write_lines(path: Path, records: list[Any]) -> Path:
    text = "\n".join(json.dumps(record) for record in records)
    data = gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_lines_are_read_plain_and_compressed_under_either_name(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / name, [ALPACA, ALPACA])
    assert read_examples(str(path)) == [Example.single("Add.", "1, 2", "3", ("3",))] * 2


def test_a_json_list_is_read(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([ALPACA, {**ALPACA, "input": None}], indent=1))
    assert [example.input for example in read_examples(str(path))] == ["1, 2", ""]
    path.write_text(json.dumps(ALPACA))
    assert len(read_examples(str(path))) == 1


def test_each_format_is_known_by_its_fields(tmp_path: Path) -> None:
    records = {
        "ni": {"task": "t", "category": "c", "definition": "Do.", "input": "x", "output": "y",
               "references": ["y", "z"], "license": "MIT"},
        "hub": {"task_name": "t", "id": "1", "definition": "Do.", "inputs": "x", "targets": "y"},
        "dolly": DOLLY,
        "gsm8k": {"question": "How many?", "answer": "Two.\n#### 2"},
        "own": {**ALPACA, "task": "sums", "category": "numbers", "references": ["3", "three"]},
    }  # fmt: skip
    read = {
        name: read_examples(str(write_lines(tmp_path / f"{name}.jsonl", [record])))[0]
        for name, record in records.items()
    }
    assert read == {
        "ni": Example.single("Do.", "x", "y", ("y", "z"), "t", "c"),
        "hub": Example.single("Do.", "x", "y", ("y",), "t"),
        "dolly": Example.single("Who?", "", "She.", ("She.",), "", "open_qa"),
        "gsm8k": Example.single("How many?", "", "Two.\n#### 2", ("Two.\n#### 2",)),
        "own": Example.single("Add.", "1, 2", "3", ("3", "three"), "sums", "numbers"),
    }


LOST = {
    "GSM8K with a context": (
        {"question": "Who?", "answer": "She.", "context": "She came."}, "context",
    ),
    "GSM8K with a system prompt": (
        {"question": "Who?", "answer": "She.", "system": "Be brief."}, "system",
    ),
    "Dolly with a history": ({**DOLLY, "history": [["Hi.", "Hello."]]}, "history"),
    "Alpaca with a context": ({**ALPACA, "context": "Numbers."}, "context"),
    "Dolly with an input": ({**DOLLY, "input": "Numbers."}, "input"),
    "Dolly with references": ({**DOLLY, "references": ["Her."]}, "references"),
    "a number": ({**ALPACA, "score": 0}, "score"),
    "a truth": ({**ALPACA, "safe": False}, "safe"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_a_field_that_would_be_lost_is_refused_with_both_ways_out(
    tmp_path: Path, case: str
) -> None:
    record, name = LOST[case]
    calm = {key: value for key, value in record.items() if key != name}
    path = write_lines(tmp_path / "a.jsonl", [calm, record])
    with pytest.raises(UserError) as caught:
        read_examples(str(path))
    text = str(caught.value)
    assert f'{path}, line 2: "{name}" would not be read' in text
    assert f'columns = {{ context = "{name}" }}' in text
    assert f'ignore = ["{name}"]' in text
    assert len(read_examples(str(path), ignore=[name])) == 2


def test_an_empty_field_loses_nothing(tmp_path: Path) -> None:
    empty = {"system": "", "history": [], "note": None, "about": {}, "blank": " \n"}
    path = write_lines(tmp_path / "a.jsonl", [{**ALPACA, **empty}])
    assert read_examples(str(path)) == [Example.single("Add.", "1, 2", "3", ("3",))]


def test_columns_say_what_a_format_does_not(tmp_path: Path) -> None:
    record = {"question": "Who?", "answer": "She.", "passage": "She came.", "hospital": "north"}
    path = write_lines(tmp_path / "a.jsonl", [record])
    columns = ColumnsTable(context="passage", category="hospital")
    read = read_examples(str(path), columns=columns)
    assert read == [Example.single("Who?", "She came.", "She.", ("She.",), "", "north")]


def test_columns_alone_are_a_format(tmp_path: Path) -> None:
    record = {"q": "Who?", "context": "She came.", "a": "She.", "all": ["She.", "Her."]}
    path = write_lines(tmp_path / "a.jsonl", [record, {**record, "context": None}])
    columns = ColumnsTable(prompt="q", completion="a", references="all")
    with pytest.raises(UserError, match='"context" would not be read'):
        read_examples(str(path), columns=columns)
    columns = columns.model_copy(update={"context": "context"})
    assert read_examples(str(path), columns=columns) == [
        Example.single("Who?", "She came.", "She.", ("She.", "Her.")),
        Example.single("Who?", "", "She.", ("She.", "Her.")),
    ]


def test_a_context_that_no_record_has_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [ALPACA])
    with pytest.raises(UserError, match=r"has the field 'pasage', which columns\.context names"):
        read_examples(str(path), columns=ColumnsTable(context="pasage"), ignore=["input"])


def test_what_is_ignored_is_not_read_either(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [ALPACA])
    assert read_examples(str(path), ignore=["input"])[0].input == ""


def test_relative_paths_start_at_the_root(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [ALPACA])
    assert len(read_examples("a.jsonl", root=tmp_path)) == 1


def test_line_separators_inside_a_record_do_not_end_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = json.dumps({**ALPACA, "output": "one\u2028two"}, ensure_ascii=False)
    path.write_text(text + "\n\n", encoding="utf-8")
    assert read_examples(str(path))[0].output == "one\u2028two"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ALPACA), encoding="utf-8-sig")
    assert len(read_examples(str(path))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"instruction": "a", "output": "b"}\n{"instr', r"bad\.jsonl, line 2: malformed JSON"),
        ('\n[1, 2]', r"line 2: expected a JSON object with fields, found list"),
        ('{"story": "a story"}', r"line 1: fields story fit no known format"),
        ('{"instruction": "a", "output": 3}', r"line 1: field 'output' is int, not text"),
        (f"{json.dumps(ALPACA)}\n{json.dumps(DOLLY)}",
         r"line 2: a Dolly record in a file that began with Alpaca records"),
        ('{"instruction": "a", "output": "b", "references": "b"}', r"line 1: field 'references'"),
        ('{"instruction": "a", "output": "\\ud83d!"}', r"field 'output' has half a character"),
        ('{"instruction": "a", "output": "b", "references": ["\\udc00"]}', "has half"),
        ("[" * 100_000, r"line 1: malformed JSON"),
        ('{"output": ' + "1" * 5000 + "}", r"line 1: malformed JSON"),
        ("\n", r"bad\.jsonl holds no examples"),
    ],
)  # fmt: skip
def test_bad_records_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_examples(str(path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "qestion", "completion": "answer"}, "field 'qestion', .* you mean 'question'"),
        ({"prompt": "qestion"}, "'qestion', which columns names; the record has question, answer"),
        ({"prompt": "story", "completion": "answer"}, "'story', which columns names; .* answer[.]"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_named(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "a", "answer": "b"}))
    with pytest.raises(UserError, match=message):
        read_examples(str(path), columns=ColumnsTable(**columns))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.json", b'[\n{"a": 1},\n{"a" 2}]', r"list\.json, line 3: malformed JSON"),
        ("list.json", json.dumps([ALPACA, 5]).encode(), r"list\.json, record 2: expected"),
        ("deep.json", b"[" * 100_000, "malformed JSON"),
        ("one.json", b"5", r"one\.json, record 1: expected a JSON object"),
        ("cut.jsonl.gz", gzip.compress(json.dumps(ALPACA).encode(), mtime=0)[:-9], "damaged gzip"),
        ("not.jsonl.gz", b"plain", "damaged gzip"),
        ("latin.jsonl", "é".encode("latin-1"), "not UTF-8"),
        ("notes.txt", b"a,b", r"has no name of a file that can be read \(\.json, \.jsonl, "),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(str(path))
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere/train\.jsonl does not exist"):
        read_examples("nowhere/train.jsonl")


def test_code_is_told_apart_by_language(tmp_path: Path) -> None:
    requests = {
        "Write a Java program that adds.": "Java",
        "Write a JavaScript function that adds.": "other",
        "Write a C program that adds.": "C",
        "Sort a list in C++.": "C++",
        "Sort a list in C#.": "C#",
        "Name the vitamins A, B and C.": "other",
        "Create a Go function that adds.": "Go",
        "Go through the list.": "other",
        "Create a Pascal program.": "Pascal",
        "Create PHP code.": "PHP",
        "Use Scala.": "Scala",
    }
    records = [{"instruction": text, "output": ""} for text in requests]
    records += [
        {"instruction": "Add two numbers.", "output": "def add(a, b):\n    return a + b"},
        {"instruction": "Add two numbers.", "input": "Pascal", "output": "begin end."},
        {"instruction": "Add two numbers.", "output": "#include <iostream>\nint main() {}"},
    ]
    path = write_lines(tmp_path / "code_alpaca_20k.jsonl", records)
    assert [e.category for e in read_examples(str(path))] == [
        *requests.values(), "Python", "Pascal", "C++",
    ]  # fmt: skip
    other = write_lines(tmp_path / "alpaca.jsonl", records)
    assert {e.category for e in read_examples(str(other))} == {""}


def test_a_hub_name_is_read_by_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub_records, "is_reachable", lambda: True)
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, split: str, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list([{"question": "How many?", "answer": "#### 2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_examples("openai/gsm8k:main", "test")[0].instruction == "How many?"
    assert read_examples("some/data@refs/pr/1", "train", ignore=["id"])
    assert read_examples("some/data:part@v1.0")
    assert asked == [
        ("openai/gsm8k", "main", "test", None),
        ("some/data", None, "train", "refs/pr/1"),
        ("some/data", "part", "train", "v1.0"),
    ]


def test_a_hub_dataset_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub_records, "is_reachable", lambda: True)

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="some/thing is neither a file or folder here nor"):
        read_examples("some/thing")


def test_a_hub_name_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "fullfed\[hub\]"'):
        read_examples("some/thing")


@pytest.mark.parametrize(
    ("name", "records", "tasks", "categories"),
    [
        ("natural-instructions-train", 10_200, 170, 40),
        ("natural-instructions-test", 550, 55, 12),
        ("dolly-15k-short", 11_500, 1, 8),
        ("gsm8k-train", 7_473, 1, 1),
        ("gsm8k-test", 919, 1, 1),
        ("code-alpaca-short", 5_748, 1, 9),
        ("alpaca-10k", 9_000, 1, 1),
    ],
)
def test_every_real_file_is_read(
    shared: Path, name: str, records: int, tasks: int, categories: int
) -> None:
    ignore = ["part"] if name == "code-alpaca-short" else []
    examples = read_examples(f"data/{name}.jsonl.gz", root=shared, ignore=ignore)
    assert len(examples) == records
    assert len({e.task for e in examples}) == tasks
    assert len({e.category for e in examples}) == categories
    assert all(e.instruction and e.output and e.output in e.references for e in examples)


def test_most_real_code_is_given_its_language(shared: Path) -> None:
    examples = read_examples("data/code-alpaca-short.jsonl.gz", root=shared, ignore=["part"])
    counts = Counter(e.category for e in examples)
    named = [e for e in examples if "in Python" in e.instruction]
    assert counts.most_common(4)[0][0] in ("other", "Python")
    assert all(e.category in ("Python", "C", "C++", "C#", "Java", "PHP") for e in named)
    assert counts["Java"] > 500
    assert counts["C"] > 50
    script = [e for e in examples if "a JavaScript" in e.instruction]
    assert sum(e.category == "other" for e in script) > 0.98 * len(script)


def test_real_texts_are_read_as_they_are(shared: Path) -> None:
    examples = read_examples("data/tinystories.jsonl.gz", root=shared)
    assert all(e.is_text and e.references == () for e in examples)
    assert examples[0].output.startswith(("Once", "One"))


def test_a_field_that_repeats_the_others_is_not_lost(tmp_path: Path) -> None:
    """Alpaca as published has the whole prompt and its answer once more; not so a passage."""
    path = tmp_path / "alpaca.jsonl"
    record = {"instruction": "Name a colour.", "input": "", "output": "Red."}
    text = f"Below is an instruction.\n### Instruction:\n{record['instruction']}\n### Response:\n"
    path.write_text(json.dumps({**record, "id": 7, "text": text + record["output"]}))
    assert len(read_examples(str(path))) == 1
    for passage in ("Roses are Red.", text + record["output"] + "More of it. " * 50):
        path.write_text(json.dumps({**record, "passage": passage}))
        with pytest.raises(UserError, match=r'"passage" would not be read.*leave it out with'):
            read_examples(str(path))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Readable files in a folder and below it, with others and hidden ones between them."""
    contents = {
        "data/b.jsonl": '{"instruction": "b", "output": "1"}',
        "data/a.CSV": "instruction,output\na,1\n",
        "data/north/z.tsv": "instruction\toutput\nz\t1\n",
        "data/north/deep/y.ndjson": '{"question": "y", "answer": "1"}',
        "data/south/z.tsv": "instruction\toutput\ns\t1\n",
        "data/.hidden.jsonl": "{",
        "data/.git/c.jsonl": "{",
        "data/south/.d.csv": "{",
        "data/README.md": "no data",
        "other/notes.txt": "no data",
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("data", "abyzs"),
        ("data/", "abyzs"),
        ("data/*", "abyzs"),
        ("data/**", "abyzs"),
        ("data/**/*.tsv", "zs"),
        ("data/*.jsonl", "b"),
        ("data/*/z.tsv", "zs"),
        ("data/n*", "yz"),
        ("data/[s-z]*/*", "s"),
        ("*/?.jsonl", "b"),
        ("data/a.CSV", "a"),
    ],
)
def test_folders_and_patterns_are_read_in_order(
    tree: Path, monkeypatch: pytest.MonkeyPatch, source: str, found: str
) -> None:
    assert "".join(e.instruction for e in read_examples(source, root=tree)) == found
    monkeypatch.chdir(tree)
    assert "".join(e.instruction for e in read_examples(source)) == found
    monkeypatch.chdir("/")
    assert "".join(e.instruction for e in read_examples(str(tree / source))) == found


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("other", r"other holds no file that can be read \(\.json, \.jsonl, .*\.parquet, each"),
        ("other/*", r"other/\* matches no file that can be read"),
        ("data/*.parquet", r"data/\*\.parquet matches no file"),
        ("nowhere/*.jsonl", r"nowhere/\*\.jsonl matches no file"),
        ("data/**.jsonl", r"data/\*\*\.jsonl: \*\* stands for whole folders only"),
    ],
)
def test_a_source_with_nothing_to_read_is_refused(tree: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_examples(source, root=tree)


def test_a_bad_record_is_named_by_its_own_file(tree: Path) -> None:
    (tree / "data/south/z.tsv").write_text("instruction\toutput\ns\t1\nt\n")
    with pytest.raises(UserError, match=r"data/south/z\.tsv, line 3: 1 cells"):
        read_examples("data", root=tree)


def test_a_name_with_wildcards_may_be_a_files_own(tree: Path) -> None:
    (tree / "data/b.jsonl").rename(tree / "data/[b]*.jsonl")
    assert [e.instruction for e in read_examples("data/[b]*.jsonl", root=tree)] == ["b"]


def test_formats_may_differ_between_files_only(tree: Path) -> None:
    """north/deep/y.ndjson has GSM8K's fields, all others Alpaca's; `tree` reads them together."""
    (tree / "data/b.jsonl").write_text(f"{json.dumps(ALPACA)}\n{json.dumps(DOLLY)}")
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: a Dolly record in a file that began"):
        read_examples("data", root=tree)
