"""What it takes to make a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs.small import write_ingredients


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and train.jsonl."""
    return write_ingredients(tmp_path_factory.mktemp("ingredients"))
