"""examples/: the script and the notebook are short, and do what they are for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fullfed

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = (EXAMPLES / "script.py").read_text()
NOTEBOOK: dict[str, Any] = json.loads((EXAMPLES / "notebook.ipynb").read_text())


def code() -> str:
    """The notebook's code cells, one after another."""
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def carried_out(program: str, folder: Path) -> list[str]:
    """What a program prints in a process and a folder of its own, in lines."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("program", [SCRIPT, code()], ids=["script", "notebook"])
def test_it_is_short(program: str) -> None:
    assert len([line for line in program.splitlines() if line.strip()]) < 30


def test_the_script_teaches_a_model_the_museums_hours(tmp_path: Path) -> None:
    (line,) = carried_out(SCRIPT, tmp_path)
    assert re.fullmatch(r"<ferret, 6 rounds, loss \d.*KiB up, .* down, in runs/ferret>", line)
    run = fullfed.RunResult(tmp_path / "runs" / "ferret")
    assert run.losses[-1] < run.losses[0] / 2
    assert run.bytes_up < 6 * 3 * 32 * 1024


def test_the_notebook_does_too(tmp_path: Path) -> None:
    lines = carried_out(code(), tmp_path)
    assert lines[0].startswith("967,808 parameters, 967,808 trained in a visit of 6 steps; 3 cl")
    assert lines[-2] == "967,808 parameters"
    measured = fullfed.RunResult(tmp_path / "runs" / "ferret").losses[-1]
    assert f"'loss': {measured}" in lines[-1]


def test_the_notebook_is_one_and_holds_no_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    identities = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(identities)) == len(identities)
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), cell["id"], "exec")


def test_the_shops_come_to_prefer_short_answers(tmp_path: Path) -> None:
    program = (EXAMPLES / "preferences.py").read_text()
    lines = [line for line in carried_out(program, tmp_path) if " -> " in line][-3:]
    margins = [re.findall(r"(-?\d+\.\d+) -> (-?\d+\.\d+)", line)[0] for line in lines]
    assert len(margins) == 3
    assert all(float(after) > float(before) + 0.1 for before, after in margins)
