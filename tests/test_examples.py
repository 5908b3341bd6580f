"""examples/: the script and the notebook are short, and do what they are for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fullfed

CarryOut = Callable[[str], list[str]]
EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = (EXAMPLES / "script.py").read_text()
NOTEBOOK: dict[str, Any] = json.loads((EXAMPLES / "notebook.ipynb").read_text())


def code() -> str:
    """The notebook's code cells, one after another."""
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


@pytest.fixture
def carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CarryOut:
    """Carries a program out in a folder of its own; returns what it prints, in lines."""

    def carry_out(program: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out.splitlines()

    return carry_out


@pytest.mark.parametrize("program", [SCRIPT, code()], ids=["script", "notebook"])
def test_it_is_short(program: str) -> None:
    assert len([line for line in program.splitlines() if line.strip()]) < 30


def test_the_script_teaches_a_model_the_museums_hours(tmp_path: Path) -> None:
    """In a process of its own."""
    (tmp_path / "program.py").write_text(SCRIPT)
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert re.fullmatch(r"<ferret, 6 rounds, loss \d.*KiB up, .* down, in runs/ferret>", line)
    run = fullfed.RunResult(tmp_path / "runs" / "ferret")
    assert run.losses[-1] < run.losses[0] / 2
    assert run.bytes_up < 6 * 3 * 32 * 1024


def test_the_notebook_does_too(carried_out: CarryOut, tmp_path: Path) -> None:
    lines = carried_out(code())
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


def test_the_shops_come_to_prefer_short_answers(carried_out: CarryOut) -> None:
    program = (EXAMPLES / "preferences.py").read_text()
    lines = [line for line in carried_out(program) if " -> " in line][-3:]
    margins = [re.findall(r"(-?\d+\.\d+) -> (-?\d+\.\d+)", line)[0] for line in lines]
    assert len(margins) == 3
    assert all(float(after) > float(before) + 0.1 for before, after in margins)
