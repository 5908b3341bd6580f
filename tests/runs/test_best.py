"""The best round by a metric, and runs that end when nothing gets better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedModel

import fullfed
from fullfed.config import EvaluationTable
from fullfed.data.client_dataset import ClientDataset
from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.best import best_version, is_over
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_model
from fullfed.runs.replay import measure, replay
from fullfed.training.trainer import VisitContext
from methods.tiny import same, weights

from .small import recipe

Values = list[float | None]


def files(metric: str, values: Values) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """base.json and the lines of metrics.jsonl with these values, the base's first."""
    lines = [{"round": n, metric: value} for n, value in enumerate(values[1:])]
    return {metric: values[0]}, lines


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("loss", [3.0, 2.0, 1.0, 1.5], 2),
        ("loss", [1.0, 2.0, 3.0], 0),
        ("loss", [3.0, 2.0, 2.0], 1),
        ("loss", [3.0, None, 2.5, None, 2.0], 4),
        ("loss", [None, None], None),
        ("rouge_l", [0.1, 0.4, 0.3], 1),
        ("gsm8k", [0.0, 0.0, 0.1], 2),
    ],
)
def test_the_best_version(metric: Any, values: Values, best: int | None) -> None:
    table = EvaluationTable(metrics=("loss", "rouge_l", "gsm8k"), best_by=metric)
    assert best_version(*files(metric, values), table) == best


losses = st.lists(st.none() | st.floats(0, 9), min_size=1, max_size=12)


@given(losses, st.integers(1, 4))
def test_a_run_is_over_when_so_many_measurements_brought_nothing(
    values: Values, patience: int
) -> None:
    """By the definition, one measurement after another."""
    best, since = float("inf"), 0
    for value in values:
        if value is not None:
            since = 0 if value < best else since + 1
            best = min(best, value)
    table = EvaluationTable(patience=patience)
    assert is_over(*files("loss", values), table) == (since >= patience)
    assert not is_over(*files("loss", values), EvaluationTable())


def test_a_metric_that_is_not_measured_decides_nothing() -> None:
    with pytest.raises(ValidationError, match="best_by is one of metrics"):
        EvaluationTable(best_by="rouge_l")
    with pytest.raises(ValidationError, match="patience needs a metric"):
        EvaluationTable(metrics=(), patience=2)


def climb(model: PreTrainedModel, dataset: ClientDataset, context: VisitContext) -> dict[str, Any]:
    """A step up the loss: every round is worse than the one before."""
    loss = model(**dataset.collate(dataset[:4])).loss
    (-loss).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    return {"loss": float(loss.detach())}


def test_a_run_that_gets_no_better_ends_and_says_so(ingredients: Path, tmp_path: Path) -> None:
    notices: list[str] = []

    class Heard(Callback):
        def on_notice(self, text: str) -> None:
            notices.append(text)

    out = tmp_path / "run"
    fedavg = {"method": {"name": "fedavg"}}
    early = recipe(ingredients, evaluation={"every": 1, "patience": 2}, **fedavg)
    summary = run.start(early, out, [Heard()], climb)
    folder = RunFolder(out)
    assert (summary["rounds"], summary["best"]) == (2, 0)
    assert notices == ["loss has not become better in 2 measurements, so the run ends"]
    assert run.resume(out, trainer=climb)["rounds"] == 2, "it has ended"
    # With more patience it goes on, and is the run that it would have been.
    text = folder.recipe_file.read_text()
    folder.recipe_file.write_text(text.replace("patience = 2", "patience = 9"))
    whole = run.start(
        recipe(ingredients, evaluation={"every": 1}, **fedavg), tmp_path / "whole", trainer=climb
    )
    assert run.resume(out, trainer=climb)["model_hash"] == whole["model_hash"]
    assert whole["rounds"] == 4


def test_an_earlier_model_can_be_had(ingredients: Path, tmp_path: Path) -> None:
    made = recipe(ingredients, evaluation={"every": 1})
    run.start(made, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    lines = folder.metrics()
    for version in (1, 3):
        measured = measure(replay(folder, version), made)
        assert measured["loss"] == lines[version - 1]["loss"]
    base, _ = replay(folder, 0)
    assert measure((base, replay(folder)[1]), made)["loss"] == folder.base()["loss"]


def test_the_best_model_can_be_exported(ingredients: Path, tmp_path: Path) -> None:
    made = recipe(ingredients, evaluation={"every": 1}, method={"name": "fedavg"})
    run.start(made, tmp_path / "run", trainer=climb)
    result = fullfed.RunResult(tmp_path / "run")
    assert result.best == 0, "every round is worse"
    fullfed.export(result, tmp_path / "best", round="best")
    fullfed.export(result, tmp_path / "second", round=2)
    base, _ = load_model(made.model.path)
    exported, _ = load_model(str(tmp_path / "best"))
    assert same(weights(exported), weights(base))
    assert same(weights(result.model("best")[0]), weights(base))
    second, _ = load_model(str(tmp_path / "second"))
    assert same(weights(second), weights(result.model(2)[0]))
    assert "after 2 rounds" in (tmp_path / "second/README.md").read_text()
    with pytest.raises(UserError, match="has 4 rounds, and no model after 5; name a round from 0"):
        fullfed.export(result, tmp_path / "fifth", round=5)
    assert not (tmp_path / "fifth").exists()
