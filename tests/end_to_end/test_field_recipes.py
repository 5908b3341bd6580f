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
    "local.batch_size": 2,
    "data.test_samples": 8,
    "evaluation.every": 2,
    "evaluation.metrics": '["loss"]',
}
OWN: dict[str, dict[str, object]] = {
    "flexlora": {},
    "fedbpt": {
        "federation.clients_per_round": 3,
        "method.population": 3,
    },
    "slora": {"method.sparse_rounds": 1, "data.clients": 10},
    "fedpeptao": {},
    "fedbuff": {"method.buffer": 2},
    "embracing-fl": {},
    "blockllm": {},
    "flasc": {"data.clients": 10},
    "diloco": {},
    "sparseloco": {},
    "eden": {},
}
# Of methods that have no file of their own.
OTHERS = {"sparseloco": "diloco", "eden": "natural-instructions"}


@pytest.mark.parametrize("name", OWN)
def test_two_short_rounds(
    part_of_shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FULLFED_SHARED", str(part_of_shared))
    other = {"method": "{}", "method.name": name} if name in OTHERS else {}
    changes = [f"{key}={value}" for key, value in {**other, **SHORT, **OWN[name]}.items()]
    file = RECIPES / f"{OTHERS.get(name, name)}.toml"
    run = fullfed.run(file, tmp_path / "run", overrides=changes)
    assert run["method"] == name
    # Two steps of a search find nothing yet.
    most = 20.0 if name == "fedbpt" else run["loss"]["initial"]
    assert 1.0 < run["loss"]["final"] < most
    assert verify(RunFolder(tmp_path / "run")) == 3
