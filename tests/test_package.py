"""The wheel holds what fullfed needs, outside of the checkout too."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from fullfed import __version__

ROOT = Path(__file__).parents[1]


def done(command: list[str | Path], folder: Path) -> str:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_dockerfile_is_as_it_should_be(tmp_path: Path) -> None:
    """By hadolint; an image is built by whoever has a daemon."""
    done([Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"], tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; the rest is what is here (`make package` has an empty one)."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT]
    done(build, folder)
    files = sorted((folder / "dist").iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    done([sys.executable, "-m", "twine", "check", "--strict", *files], folder)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    packages = next((folder / "env").rglob("site-packages"))
    (packages / "rest.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "env/bin/python"
    options = ["--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    done([python, "-m", "pip", "install", *options, files[0]], folder)
    return folder / "env/bin"


def test_the_wheel_brings_the_embedded_model_and_the_pages(installed: Path, tmp_path: Path) -> None:
    said = done([installed / "fullfed", "--version"], tmp_path)
    assert said.splitlines()[0] == f"fullfed {__version__}"
    code = """
import fullfed
assert "site-packages" in fullfed.__file__ and "/env/" in fullfed.__file__, fullfed.__file__
recipe = {
    "model": {"path": "builtin"},
    "data": {"train": "builtin", "test_samples": 8},
    "federation": {"rounds": 1, "clients_per_round": 2},
    "local": {"steps": 1},
    "method": {"name": "fedavg"},
}
print(fullfed.run(recipe, "run"))
fullfed.report("run")
"""
    assert done([installed / "python", "-c", code], tmp_path).startswith("<fedavg, 1 round")
