"""The records of a dataset on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullfed.data.record_files import Placed, without_nulls
from fullfed.errors import UserError
from fullfed.hub import is_reachable

_PARTS = re.compile(r"(?P<name>[^:@]+)(?::(?P<config>[^@]+))?(?:@(?P<revision>.+))?")


def read_hub_records(source: str, split: str) -> Iterator[Placed]:
    """(place, record) of every row of a dataset's split; `place` names dataset, split and row.

    Args:
        source: "org/name", with ":config" where the dataset has several configurations, and
            "@revision" (a commit, a tag or a branch) for other rows than the newest.

    Raises:
        UserError: the extra `hub` is not installed, or the dataset, its configuration, revision or
            split cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f'{source} is a hub name; install what reads it with pip install "fullfed[hub]".'
        ) from error
    parts = _PARTS.fullmatch(source)
    assert parts is not None  # is_hub_name sees to it
    if not is_reachable():
        raise UserError(
            f"{source}: there is no such file or folder here, and the hub cannot be reached from "
            "this machine; name a file, or set HF_HUB_OFFLINE=1 to use what was fetched before."
        )
    try:
        rows = datasets.load_dataset(
            parts["name"], parts["config"], split=split, revision=parts["revision"]
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} is neither a file or folder here nor a dataset with a split {split!r} "
            f"that can be loaded from the hub ({str(error).splitlines()[0]})."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source}, split {split}, row {number}", without_nulls(dict(row))
