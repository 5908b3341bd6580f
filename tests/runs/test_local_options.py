"""Runs whose local work has schedules, warm-up, micro-batches and optimizers that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from runs.small import recipe


@pytest.mark.parametrize(
    "method", [{"name": "fedavg"}, {"name": "ferret", "coordinates": 40}, {"name": "fedprox"}]
)
def test_a_run_with_all_of_it_can_be_replayed_and_goes_on(
    ingredients: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    local = {
        **{"optimizer": "adamw", "learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 1},
        **{"optimizer_state": "kept", "micro_batch_size": 1, "steps": 2, "batch_size": 2},
    }
    made = recipe(ingredients, method=method, local=local)
    run.start(made, tmp_path / "run")
    verify(RunFolder(tmp_path / "run"))
    longer = made.model_copy(
        update={"federation": made.federation.model_copy(update={"rounds": 50})}
    )
    RunFolder(tmp_path / "run").write_recipe(longer)
    with pytest.raises(UserError, match=r"federation\.rounds was \d+ and is 50"):
        run.resume(tmp_path / "run")


@pytest.mark.parametrize("name", ["fedkseed", "fedkseed-pro", "fedzo"])
@pytest.mark.parametrize(
    ("key", "value"), [("schedule", "linear"), ("warmup_steps", 2), ("optimizer_state", "kept")]
)
def test_methods_without_gradients_have_one_rate_and_no_optimizer(
    ingredients: Path, tmp_path: Path, name: str, key: str, value: Any
) -> None:
    made = recipe(ingredients, method={"name": name}, local={key: value, "learning_rate": 1e-3})
    with pytest.raises(UserError, match=rf"^local\.{key}: methods without gradients"):
        run.start(made, tmp_path / "run")
