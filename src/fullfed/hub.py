"""What a source names: a path on this machine, or something on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from fullfed.errors import UserError

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?(@[\w./-]+)?")
# What files end with, and names do not.
_PATHS = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"),
    *(".gz", ".zst", ".xz", ".bz2", ".toml"),
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_SECONDS = 3.0  # that the hub may take to answer


def is_hub_name(source: str) -> bool:
    """Whether a source can be the hub's "name", "org/name" or "org/name:config@revision".

    What begins or ends like a path, or lies in a folder that is here, is a path, there or not.
    """
    path = Path(source)
    inside = path.parent != Path() and path.parent.is_dir()
    return bool(_NAME.fullmatch(source)) and not (inside or source.lower().endswith(_PATHS))


def has_wildcards(source: str) -> bool:
    """Whether a source can be a pattern of file names."""
    return any(wildcard in source for wildcard in "*?[")


def absolute(source: str) -> str:
    """A source that means the same in any working folder; what is no path here stays as it is."""
    path = Path(source)
    return str(path.absolute()) if path.exists() or has_wildcards(source) else source


def is_reachable() -> bool:
    """Whether the hub answers, or the user has said not to ask it (HF_HUB_OFFLINE).

    Its own library tries for half a minute, file by file.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # the library's errors are other classes in each of its versions
        return False
    return True


def cached_model(name: str) -> str:
    """The folder where a model that was fetched from the hub lies.

    Raises:
        UserError: it was not fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}: there is no such folder here, and the hub cannot be reached from this "
            "machine; name a folder, or fetch the model first."
        ) from error


def refuse_pointer(path: Path) -> None:
    """Raise a UserError if a file is only Git LFS's note of where the file is."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(
                f"{path}: this is a pointer of Git LFS, not the file; fetch it with `git lfs pull`."
            )
