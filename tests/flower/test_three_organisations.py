"""docs/three-organisations.md does what it shows, with real processes, on the embedded model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flower.real import Process, free_port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "three-organisations.md").read_text()
MODEL, PORT = "./models/smollm2-135m", "8443"
STAYS = {"fullfed serve": "serving 3 partners", "fullfed join": "connected to"}
SHORT = {"rounds = 8": "rounds = 2", "steps = 6": "steps = 5", "540kb": "8KiB"}


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Process]]:
    """In a folder of its own; what is put into the list is stopped at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    started: list[Process] = []
    yield started
    for process in reversed(started):
        process.stop()


def test_the_page_does_what_it_shows(processes: list[Process], tmp_path: Path) -> None:
    port, said = str(free_port()), ""
    (recipe,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for shown, short in {**SHORT, MODEL: "builtin"}.items():
        assert shown in recipe
        recipe = recipe.replace(shown, short)
    (tmp_path / "hotels.toml").write_text(recipe)
    begins, *blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    begins = begins.replace(MODEL, "builtin")
    for block in blocks:
        stays = next((told for command, told in STAYS.items() if block.startswith(command)), None)
        if stays is not None:
            processes.append(Process(block.split()[1:], tmp_path / f"{len(processes)}.out"))
            processes[-1].says(stays)
            continue
        script = begins + block.replace(PORT, port)
        done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
        said += done.stdout
    assert "round 2/2" in said
    assert said.count("online") == 3
    assert said.count("verified, ") == 2
    assert len(set(re.findall(r"SHA256:[\w+/]+", said))) == 2, "the Mill's new key, and no other"
    assert (tmp_path / "hotels-model" / "README.md").exists()
