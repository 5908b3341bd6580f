"""The main job on real instruction data with a real pretrained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fullfed.cli import app

RECIPE = Path(__file__).parents[2] / "recipes" / "natural-instructions.toml"
SHORT = {
    "federation.rounds": 2,
    "federation.clients_per_round": 2,
    "local.steps": 2,
    "data.test_samples": 16,
    "evaluation.every": 1,
    "evaluation.generation_samples": 4,
    "evaluation.max_new_tokens": 8,
}


@pytest.mark.parametrize(
    "method",
    [
        {"method.name": "ferret", "method.coordinates": 2600},
        {"method.name": "fedavg"},
    ],
    ids=["ferret", "fedavg"],
)
def test_two_short_rounds_on_natural_instructions(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, object]
) -> None:
    monkeypatch.setenv("FULLFED_SHARED", str(shared))
    changes = [f"{key}={value}" for key, value in {**SHORT, **method}.items()]
    options = [part for change in changes for part in ("--set", change)]
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", str(RECIPE), *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["parameters"] == 260_032
    assert summary["rounds"] == 2
    assert summary["loss"]["final"] < summary["loss"]["initial"] < 10
    assert 0 <= summary["rouge_l"]["final"] <= 1
    dense = 2 * 2 * 4 * 260_032
    if method["method.name"] == "fedavg":
        assert dense < summary["bytes"]["up"] < 1.02 * dense
    else:
        assert 2 * 2 * 4 * 2600 < summary["bytes"]["up"] < dense / 80
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1]
    assert CliRunner().invoke(app, ["verify", str(out)]).exit_code == 0
