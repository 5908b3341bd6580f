"""What training data look like to whoever writes a recipe for them: format, numbers, owners."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fullfed.config_data import ColumnsTable
from fullfed.data.examples import Example
from fullfed.data.formats import UnknownFieldsError, formats_of, is_empty, recognise
from fullfed.data.record_files import Placed, form_of, read_records
from fullfed.data.sources import find_files, is_on_hub, read_examples
from fullfed.data.task_files import is_task
from fullfed.errors import UserError
from fullfed.quickstart.tasks import FEDERATED

_FEWEST, _MOST = 2, 200  # clients that tasks, categories or the values of a field may make


@dataclass(frozen=True)
class Survey:
    """Of a source.

    Attributes:
        format: what the records' format is called; empty where it is none that we know.
        samples: how many there are.
        partition: "file" or "folder" where files or folders can be clients, else "iid"; "task" for
            the embedded tasks.
        clients: how many files, folders or tasks there are; 0 for "iid".
        ignore: fields of records that are not read; all of them where the format is not known.
        labels: how many clients the partitions "task" and "category" would make, where these are
            neither too few nor too many.
        fields: the same of the partition "column" by each of these fields.
    """

    format: str
    samples: int
    partition: str
    clients: int
    ignore: tuple[str, ...]
    labels: dict[str, int]
    fields: dict[str, int]


def survey(source: str) -> Survey:
    """Read a source of training data, and say what there is.

    Raises:
        UserError: as for ``read_examples``, but fields that would not be read are told.
    """
    if source == "builtin":
        return Survey("generated tasks", 0, "task", len(FEDERATED), (), {}, {})
    if is_on_hub(source):
        examples = read_examples(source)
        return Survey("a dataset of the hub", len(examples), "iid", 0, (), _labels(examples), {})
    files = [file.path for file in find_files(source)]
    partition, clients = _by_files(source)
    format_, fields = "tasks", _Fields()
    for file in files:
        for place, record in _records(file):
            try:
                format_ = fields.add(place, record)
            except UnknownFieldsError:
                assert isinstance(record, dict)
                count = sum(1 for one in files for _ in _records(one))
                return Survey("", count, partition, clients, tuple(record), {}, {})
    examples = read_examples(source, ignore=tuple(fields.unread))
    return Survey(
        format=format_,
        samples=len(examples),
        partition=partition,
        clients=clients,
        ignore=tuple(fields.unread),
        labels=_labels(examples),
        fields=fields.groups(),
    )


def _records(file: Path) -> Iterator[Placed]:
    """A file's records; none of a task file's, which has fields of its own."""
    records = read_records(file)
    if form_of(file) == ".json":
        whole = list(records)
        return iter([] if len(whole) == 1 and is_task(whole[0][1]) else whole)
    return records


class _Fields:
    """The fields of records, as one record after another is added.

    Attributes:
        unread: those that the records' format does not read, in their order.
    """

    def __init__(self) -> None:
        self.unread: dict[str, None] = {}
        self._values: dict[str, set[str]] = {}
        self._records = 0

    def add(self, place: str, record: object) -> str:
        """Count a record in; return what its format is called."""
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected a JSON object with fields; write one a record.")
        found = recognise(place, record, formats_of(ColumnsTable()), None)
        self._records += 1
        for name, value in record.items():
            if not is_empty(value) and name not in (*found.fields.values(), *found.about):
                self.unread[name] = None
            if isinstance(value, str | int) and name in self.unread:
                self._values.setdefault(name, set()).add(str(value))
        return found.name

    def groups(self) -> dict[str, int]:
        """Fields that are not read, and how many values each has, if these may be clients."""
        return {
            name: len(values)
            for name, values in self._values.items()
            if _FEWEST <= len(values) <= min(_MOST, self._records // 2)
        }


def _labels(examples: list[Example]) -> dict[str, int]:
    counts = {
        "task": len({example.task for example in examples} - {""}),
        "category": len({example.category for example in examples} - {""}),
    }
    return {name: count for name, count in counts.items() if _FEWEST <= count <= _MOST}


def _by_files(source: str) -> tuple[str, int]:
    """Whether a source's folders, or else its files, can be clients, and how many there are."""
    below = [file.below for file in find_files(source)]
    if len(below) == 1:
        return "iid", 0
    folders = {path.parts[0] for path in below if len(path.parts) > 1}
    if len(folders) > 1 and all(len(path.parts) > 1 for path in below):
        return "folder", len(folders)
    return "file", len(below)
