"""The recipes of methods from the field, short, on real data with a real pretrained model."""

from __future__ import annotations

from pathlib import Path

import pytest

import fullfed
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = {
    "federation.rounds": 2,
    "federation.clients_per_round": 2,
    "local.steps": 2,
    "data.test_samples": 8,
    "evaluation.every": 2,
}
OWN: dict[str, dict[str, object]] = {
    "flexlora": {},
    "fedbpt": {
        "federation.clients_per_round": 3,
        "local.batch_size": 2,
        "method.population": 3,
    },
    "slora": {"method.sparse_rounds": 1},
    "fedpeptao": {},
}


@pytest.mark.parametrize("name", OWN)
def test_two_short_rounds(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FULLFED_SHARED", str(shared))
    changes = [f"{key}={value}" for key, value in {**SHORT, **OWN[name]}.items()]
    run = fullfed.run(RECIPES / f"{name}.toml", tmp_path / "run", overrides=changes)
    assert run["method"] == name
    # Two steps of a search find nothing yet.
    most = 20.0 if name == "fedbpt" else run["loss"]["initial"]
    assert 1.0 < run["loss"]["final"] < most
    assert verify(RunFolder(tmp_path / "run")) == 3
