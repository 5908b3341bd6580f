"""Datasets of the Hugging Face hub, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullfed.errors import UserError

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form "org/name" or "org/name:config" and no data file's ending."""
    return bool(_NAME.fullmatch(source)) and not source.endswith((".json", ".jsonl", ".gz"))


def read_hub_records(source: str, split: str) -> Iterator[tuple[str, object]]:
    """(place, record) of every row of a dataset's split; `place` names dataset, split and row.

    Raises:
        UserError: the extra `hub` is not installed, or the dataset, its configuration or
            split cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f'{source} is a hub name; install what reads it with pip install "fullfed[hub]".'
        ) from error
    name, _, config = source.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} is neither a file or folder here nor a dataset with a split {split!r} "
            f"that can be loaded from the hub ({str(error).splitlines()[0]})."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source}, split {split}, row {number}", dict(row)
