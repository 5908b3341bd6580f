"""Samples that a federation's operator declares for its partners."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fullfed.deployment.folders import ServerFolder
from fullfed.deployment.members import fix_members, read_members
from fullfed.errors import UserError


@pytest.fixture
def federation(tmp_path: Path) -> ServerFolder:
    """Of three partners, two of whose sizes are declared."""
    names = ["north", "east", "south"]
    folder = ServerFolder.create(tmp_path / "fed", names, "127.0.0.1", 8443, "127.0.0.1", "builtin")
    with folder.settings_file.open("a") as file:
        file.write("north = 12000\nsouth = 7\n")  # the last table is [samples]
    return folder


def test_declared_sizes_are_those_of_a_run_that_begins(
    federation: ServerFolder, tmp_path: Path
) -> None:
    fix_members(tmp_path, federation.partners(), anew=True)
    members = read_members(tmp_path)
    assert members is not None
    assert members.samples() == {0: 12000, 2: 7}
    federation.remove("north")
    assert federation.settings().samples == {"south": 7}
    assert read_members(tmp_path) == members


@pytest.mark.parametrize(
    ("line", "reason"),
    [("west = 5", "samples.west: there is no partner 'west'"), ("east = 0", "greater than 0")],
)
def test_sizes_that_cannot_be_are_refused_in_one_sentence(
    federation: ServerFolder, line: str, reason: str
) -> None:
    with federation.settings_file.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        federation.settings()
    assert "\n" not in str(caught.value)
