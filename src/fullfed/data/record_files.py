"""The records of a file: JSON, JSON lines, CSV, TSV or Parquet, plain or compressed.

The file's name says its form, in capitals or not. Errors say which file and which line or row.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

from fullfed.data.conversations import SPEAKER
from fullfed.errors import UserError
from fullfed.hub import refuse_pointer

FORMS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
READABLE = f"{', '.join(FORMS)}, each plain or {', '.join(COMPRESSIONS)}"

Placed = tuple[str, object]  # how messages name the record, and the record


def form_of(path: PurePath) -> str | None:
    """Which of FORMS a file has; None where its name ends otherwise."""
    endings = _endings(path)
    return endings[-1] if endings else None


def stem_of(path: PurePath) -> str:
    """The file's name without the endings that say its form: "a.v2.jsonl.gz" is "a.v2"."""
    name = path.name
    for ending in _endings(path):
        name = name[: -len(ending)]
    return name


def _endings(path: PurePath) -> list[str]:
    """The endings of a readable file's name, the last first, in small letters; else none."""
    endings = [suffix.lower() for suffix in reversed(path.suffixes)]
    count = 2 if endings[:1] and endings[0] in COMPRESSIONS else 1
    return endings[:count] if len(endings) >= count and endings[count - 1] in FORMS else []


def read_records(path: Path) -> Iterator[Placed]:
    """(place, record) of every record of a file; ``place`` names the file and its line or row.

    A JSON file is a list of records, an object with one list of objects in it, which are the
    records (their place has the list's name), one record, or JSON lines under the other name. The
    first row of CSV and TSV has the names of the fields; every cell is a text. A Parquet file's
    columns are the fields.

    Raises:
        UserError: the file cannot be read, is damaged or malformed, is not UTF-8, has no name that
            says its form, or needs an extra that is not installed.
    """
    form = form_of(path)
    if form is None:
        raise UserError(f"{path} has no name of a file that can be read ({READABLE}).")
    if form == ".parquet":
        return _parquet_rows(_read_bytes(path), path)
    return _TEXT_READERS[form](read_text(path), path)


def parse_json(text: str, path: Path, line: int | None = None) -> object:
    """The one JSON value in the content of ``path``, or in one of its lines.

    Raises:
        UserError: it is malformed.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers too long and brackets too deep as well
        line = line or getattr(error, "lineno", None)
        place = f"{path}" if line is None else f"{path}, line {line}"
        reason = getattr(error, "msg", error)
        raise UserError(f"{place}: malformed JSON ({reason}); mend or remove it.") from error


def _read_bytes(path: Path) -> bytes:
    """The whole file, decompressed."""
    try:
        data = path.read_bytes()
        refuse_pointer(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    name, decompress = _DECOMPRESSORS.get(path.suffix.lower(), ("", None))
    if decompress is None:
        return data
    try:
        return decompress(data)
    except ImportError as error:
        raise _lacks_pyarrow(path) from error
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is a damaged {name} file; fetch it again ({error}).") from error


def read_text(path: Path) -> str:
    """The whole file as text, decompressed.

    Raises:
        UserError: the file cannot be read, is damaged or is not UTF-8.
    """
    try:
        return _read_bytes(path).decode(
            "utf-8-sig"
        )  # the mark that some editors begin with is no text
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; convert it first ({error}).") from error


def _lacks_pyarrow(path: Path) -> UserError:
    return UserError(
        f'{path}: install what reads Parquet and .zst with pip install "fullfed[files]".'
    )


def _decompress_zstandard(data: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.py_buffer(data), "zstd") as stream:
        content: bytes = stream.read()
    return content


_DECOMPRESSORS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    ".gz": ("gzip", gzip.decompress),
    ".zst": ("Zstandard", _decompress_zstandard),
    ".xz": ("xz", lzma.decompress),
    ".bz2": ("bzip2", bz2.decompress),
}


def _json_lines(text: str, path: Path) -> Iterator[Placed]:
    """Of every line that is not blank."""
    # Not str.splitlines: JSON may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", parse_json(line, path, number)


def _json_records(text: str, path: Path) -> Iterator[Placed]:
    first_line, _, rest = text.strip().partition("\n")
    if rest and first_line.startswith("{") and first_line.rstrip().endswith("}"):
        yield from _json_lines(text, path)
        return
    content, place = parse_json(text, path), f"{path}"
    if isinstance(content, dict) and "Instances" not in content:  # which a task file has
        name = _list_within(content, path)
        if name is not None:
            content, place = content[name], f'{path}, "{name}"'
    records = content if isinstance(content, list) else [content]
    for number, record in enumerate(records, start=1):
        yield f"{place}, record {number}", record


def _list_within(content: dict[str, object], path: Path) -> str | None:
    """The name of the one list of objects in a JSON object.

    None if there is no such list, or one is a conversation: then the object is a record.
    """
    lists = {
        name: value
        for name, value in content.items()
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    }
    if any(speaker in one for value in lists.values() for one in value for speaker in SPEAKER):
        return None
    if len(lists) > 1:
        raise UserError(
            f"{path} has several lists ({', '.join(lists)}), each of which may be the records; "
            "write the one that is meant to a file of its own."
        )
    return next(iter(lists), None)


def _separated_rows(text: str, path: Path, delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(sys.maxsize)  # the library's own limit is shorter than many a text
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for row in rows:
            place, line = f"{path}, line {line}", rows.line_num + 1
            if not row:
                continue
            if names is None:
                names = _checked_names(row, place)
            elif len(row) != len(names):
                raise UserError(
                    f"{place}: {len(row)} cells in a table of {len(names)} columns; mend the row "
                    "(a cell with a delimiter or a line break in it is put in double quotes)."
                )
            else:
                yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: malformed row ({error}); mend it.") from error


def _comma_separated(text: str, path: Path) -> Iterator[Placed]:
    return _separated_rows(text, path, ",")


def _tab_separated(text: str, path: Path) -> Iterator[Placed]:
    return _separated_rows(text, path, "\t")


_TEXT_READERS: dict[str, Callable[[str, Path], Iterator[Placed]]] = {
    ".json": _json_records,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
}


def _checked_names(names: Sequence[str], place: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{place}: two columns are called {twice[0]!r}; rename one.")
    return list(names)


def _parquet_rows(data: bytes, path: Path) -> Iterator[Placed]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise _lacks_pyarrow(path) from error
    number = 0
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(data))
        _checked_names(table.schema_arrow.names, f"{path}")
        for batch in table.iter_batches():
            for row in range(len(batch)):
                number += 1
                place = f"{path}, row {number}"
                yield place, without_nulls(batch.slice(row, 1).to_pylist()[0])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, row {number}: a text is not UTF-8 ({error}).") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is a damaged Parquet file; fetch it again ({error}).") from error


def without_nulls(row: dict[str, object]) -> dict[str, object]:
    """A row of a columnar table, whose tables within have every field of any row's: without those
    that are empty in this row."""
    return {name: _shorn(value) for name, value in row.items()}


def _shorn(value: object) -> object:
    if isinstance(value, dict):
        return {name: _shorn(one) for name, one in value.items() if one is not None}
    return [_shorn(one) for one in value] if isinstance(value, list) else value
