"""A part of the real data, for tests that only have to see a run on them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

PART = 8


@pytest.fixture(scope="session")
def part_of_shared(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared folder with every eighth record of each file of data."""
    folder = tmp_path_factory.mktemp("part")
    (folder / "models").symlink_to(shared / "models")
    (folder / "data").mkdir()
    for file in (shared / "data").glob("*.jsonl.gz"):
        with gzip.open(file, "rb") as records:
            kept = b"".join(list(records)[::PART])
        (folder / "data" / file.name).write_bytes(gzip.compress(kept, 1))
    return folder
