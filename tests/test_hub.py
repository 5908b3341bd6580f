"""What is a path, what is a name of the hub's, and what is said where the hub is out of reach."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fullfed import hub
from fullfed.data.sources import read_examples
from fullfed.errors import UserError
from fullfed.runs.loading import load_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "org/name",
        "org/name:config",
        "org/name:config@v1.0",
        "a/b@refs/pr/1",
        "HuggingFaceTB/Smol-1.7B",
    ],
)
def test_names(name: str) -> None:
    assert hub.is_hub_name(name)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "./model",
            "../model",
            "/models/llama",
            "~/model",
            "a/b/c",
            "data.jsonl",
            "x/data.json.gz",
        ),
        *("models/lama", "model path"),
    ],
)
def test_paths_that_are_not_there(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert not hub.is_hub_name(path)
    started = time.monotonic()
    with pytest.raises(UserError, match="there is no model folder here; correct"):
        load_model(path)
    assert time.monotonic() - started < 2, "nobody was asked"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's address is one where nobody listens, and its cache is empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
def test_a_model_of_a_hub_out_of_reach_is_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="no such folder here, and the hub cannot be reached"):
        load_model("some-org/some-model")
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("offline")
def test_data_of_a_hub_out_of_reach_are_refused_at_once() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="no such file or folder here, and the hub cannot be"):
        read_examples("some-org/some-data")


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text(POINTER)
    (tmp_path / "train.jsonl").write_text(POINTER)
    fetch = "this is a pointer of Git LFS, not the file; fetch it with `git lfs pull`"
    with pytest.raises(UserError, match=f"model.safetensors: {fetch}"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match=f"train.jsonl: {fetch}"):
        read_examples(str(tmp_path / "train.jsonl"))
