"""The same rows in every form of file are the same examples, whoever wrote the file."""

from __future__ import annotations

import builtins
import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed import hub
from fullfed.data.examples import Example
from fullfed.data.record_files import COMPRESSIONS, FORMS, form_of, read_records, stem_of
from fullfed.data.sources import read_examples
from fullfed.errors import UserError

pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")

ROWS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3", "category": "sums"},
    {"instruction": 'Say "so".', "input": "", "output": "a\nb\tc\r\nd", "category": ""},
    {"instruction": "Ääkköset: 日本語", "input": "'x', y", "output": "\u2028", "category": "words"},
]
EXAMPLES = [
    Example.single(r["instruction"], r["input"], r["output"], (r["output"],), "", r["category"])
    for r in ROWS
]


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """By pandas, uncompressed."""
    frame = pandas.DataFrame(rows)
    form = form_of(path)
    if form == ".json":
        frame.to_json(path, orient="records")
    elif form in (".jsonl", ".ndjson"):
        frame.to_json(path, orient="records", lines=True)
    elif form == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        # pandas leaves a cell with a lone carriage return without quotes, if it may.
        lone = any("\r" in str(value) for row in rows for value in row.values())
        quoting = csv.QUOTE_ALL if lone else csv.QUOTE_MINIMAL
        frame.to_csv(path, index=False, sep="\t" if form == ".tsv" else ",", quoting=quoting)


def zstandard(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same(tmp_path: Path, form: str, compression: str) -> None:
    plain = tmp_path / f"plain{form}"
    write_rows(ROWS, plain)
    data = COMPRESS[compression](plain.read_bytes())
    for name in (f"a{form}{compression}", f"A.v2{form.upper()}{compression.upper()}"):
        (tmp_path / name).write_bytes(data)
        assert read_examples(str(tmp_path / name)) == EXAMPLES


@pytest.mark.parametrize("form", [".json", ".jsonl", ".csv", ".parquet"])
def test_what_datasets_writes_is_read(tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(ROWS)
    write = {".csv": rows.to_csv, ".parquet": rows.to_parquet}.get(form, rows.to_json)
    write(str(tmp_path / f"a{form}"))
    assert read_examples(str(tmp_path / f"a{form}")) == EXAMPLES


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
@settings(max_examples=40)
def test_any_text_is_the_same_in_every_form(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    names = ("instruction", "input", "output")
    rows = [dict(zip(names, three, strict=True)) for three in texts]
    expected = [Example.single(a, b, c, (c,)) for a, b, c in texts]
    for form in FORMS:
        write_rows(rows, folder / f"a{form}")
        assert read_examples(str(folder / f"a{form}")) == expected


def test_what_the_zstd_command_writes_is_read(tmp_path: Path) -> None:
    frame = bytes.fromhex(
        "28b52ffd2038a5010094027b22696e737472756374696f6e223a20224164642e222c2022696e70757431"
        "2c20326f757433227d0a03003573002392359d"
    )
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(frame + frame)
    assert read_examples(str(path)) == [Example.single("Add.", "1, 2", "3", ("3",))] * 2
    path.write_bytes(frame + frame[:20])
    with pytest.raises(UserError, match=r"a\.jsonl\.zst is a damaged Zstandard file"):
        read_examples(str(path))


@pytest.mark.parametrize("compression", [".xz", ".bz2", ".zst", ".gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.csv{compression}"
    whole = COMPRESS[compression](b"instruction,output\nAdd.,3\n")
    for damaged in (whole[:-5], b"plain text, no archive"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"a\.csv\{compression} is a damaged \w+ file; fetch"):
            read_examples(str(path))


def test_names_and_stems() -> None:
    stems = {
        "a.jsonl": "a", "DATA.JSONL.GZ": "DATA", "a.v2.csv.zst": "a.v2", "a.json.csv": "a.json",
        "a.tsv.xz": "a", "a.parquet": "a",
    }  # fmt: skip
    assert {name: stem_of(Path(name)) for name in stems} == stems
    assert [form_of(Path(name)) for name in ("a.CSV.Bz2", "a.txt", "a.gz", ".csv", "a.zip")] == [
        ".csv", None, None, None, None,
    ]  # fmt: skip
    for ending in (*FORMS, *COMPRESSIONS):
        assert not hub.is_hub_name(f"some/data{ending}"), "or the hub would be asked for a file"


def test_the_one_list_in_an_object_is_its_records(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    pandas.DataFrame(ROWS).to_json(path, orient="table", index=False)
    assert set(json.loads(path.read_text())) == {"schema", "data"}
    assert read_examples(str(path)) == EXAMPLES
    path.write_text(json.dumps({"version": 1, "rows": [ROWS[0], {"story": "?"}]}))
    with pytest.raises(UserError, match=r'a\.json, "rows", record 2: the record lacks'):
        read_examples(str(path))
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(UserError, match=r"a\.json has several lists \(train, test\)"):
        read_examples(str(path))
    path.write_text(json.dumps({"instruction": "a", "output": "b", "references": ["b", "c"]}))
    assert read_examples(str(path)) == [Example.single("a", "", "b", ("b", "c"))], (
        "a list of texts is not"
    )


def test_one_conversation_is_one_record(tmp_path: Path) -> None:
    path, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    answers: dict[str, Any] = {"chosen": said, "rejected": [said[0], {**said[1], "content": "?"}]}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for record in ({"messages": said}, {"messages": said, "tools": [tool]}, answers):
        path.write_text(json.dumps(record, indent=1))
        lines.write_text(json.dumps(record))
        assert read_examples(str(path)) == read_examples(str(lines))


def test_conversations_are_the_same_in_parquet(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"messages": said}, {"messages": [{"role": "system", "content": "Be."}, *said]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = read_examples(str(tmp_path / "a.parquet"))
    assert read == read_examples(str(tmp_path / "a.jsonl"))
    assert [len(example.messages) for example in read] == [2, 3]


def test_cells_are_texts_and_an_empty_one_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,input,output,note,history\n007,,1.50,,\ntrue,NA,null,,\n")
    assert read_examples(str(path)) == [
        Example.single("007", "", "1.50", ("1.50",)),
        Example.single("true", "NA", "null", ("null",)),
    ]


def test_a_text_may_be_longer_than_the_library_expects(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\nAdd.," + "x" * 200_000 + "\n")
    assert len(read_examples(str(path))[0].output) == 200_000


def test_parquet_keeps_lists_and_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [
        {"instruction": "a", "input": None, "output": "b", "references": ["b", "c"]},
        {"instruction": "a", "input": "x", "output": "b", "references": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1)
    assert read_examples(str(path)) == [
        Example.single("a", "", "b", ("b", "c")),
        Example.single("a", "x", "b", ("b",)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'instruction,output\n"one\ntwo",b\n\na\n', "line 5: 1 cells in a table of 2"),
        ("a.csv", b"instruction,output\na,b,c\n", "line 2: 3 cells in a table of 2 columns"),
        ("a.csv", b'instruction,output\na,b\na,"b\nc\n', "line 3: malformed row"),
        ("a.csv", b'instruction,output\na,"b"c\n', "line 2: malformed row"),
        ("a.csv", b"output,output\na,b\n", "line 1: two columns are called 'output'"),
        ("a.csv", b'\nquestion,story\n"a\nb",c\n', "line 3: fields question, story fit no known"),
        ("a.csv", b"instruction,output,ward\na,b,\na,b,3\n", 'line 3: "ward" would not be read'),
        ("a.csv", b"instruction,output\n", "holds no examples"),
        ("a.csv", b"", "holds no examples"),
        ("a.tsv", b"instruction\toutput\na,b\n", "line 2: 1 cells in a table of 2 columns"),
        ("a.csv", "instruction,output\né,b\n".encode("latin-1"), "is not UTF-8"),
        ("a.ndjson", b'{"instruction": "a", "output": "b"}\n{', "line 2: malformed JSON"),
        ("a.parquet", b"plain", "is a damaged Parquet file"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(str(path))
    assert str(caught.value).startswith(str(path))


def test_bad_rows_of_parquet_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": None}], path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: field 'output' is NoneType"):
        read_examples(str(path))
    texts = pyarrow.array([b"a", b"\xff"]).cast(pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"instruction": texts, "output": texts}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: a text is not UTF-8"):
        read_examples(str(path))
    table = pyarrow.Table.from_arrays([texts[:1]] * 2, names=["output", "output"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=r"a\.parquet: two columns are called 'output'"):
        read_examples(str(path))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.zst"])
def test_what_reads_it_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_rows(ROWS, tmp_path / "plain.parquet")
    data = (tmp_path / "plain.parquet").read_bytes()
    (tmp_path / name).write_bytes(data)
    real = builtins.__import__

    def without_pyarrow(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(UserError, match=r'pip install "fullfed\[files\]"'):
        list(read_records(tmp_path / name))


def test_tables_within_parquet_have_the_fields_of_their_own_row(tmp_path: Path) -> None:
    """Columnar files have every field of any row's table in all of them, empty."""
    import pyarrow
    from pyarrow import parquet

    made = (("f", {"x": 1}), ("g", {"y": 2}))
    calls = [{"function": {"name": name, "arguments": given}} for name, given in made]
    rows = [{"id": str(n), "calls": [call]} for n, call in enumerate(calls)]
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert [record for _, record in read_records(file)] == rows
