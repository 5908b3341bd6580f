"""A run is bound to its recipe: what is another run's recipe is refused, and the rest is told."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fullfed.errors import UserError
from fullfed.recipe_file import load_recipe
from fullfed.reports.runs import plot_runs
from fullfed.runs import run
from fullfed.runs.binding import FREE, check_bound, flat
from fullfed.runs.callback import Callback
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import measure, verify
from fullfed.runs.simulated import computing_in
from runs.small import recipe
from runs.test_resume import assert_same_run, stop_after

# Another value for every key of the recipe that the log depends on.
BOUND: dict[str, Any] = {
    "model.dtype": "bfloat16",
    "model.rounding": "stochastic",
    "data.hold_out": "red",
    "data.template": "auto",
    "data.answers": "last",
    "data.max_length": 100,
    "data.partition": "task",
    "data.alpha": 0.6,
    "data.min_samples": 2,
    "data.ignore": ["id"],
    "data.date": "2026-01-01",
    "federation.clients_per_round": 3,
    "federation.seed": 1,
    "method.coordinates": 301,
    "method.basis": "normal",
    "method.server_step": 0.5,
    "method.scales": "curvature",
    "method.seeds": "shared",
    "aggregation.name": "trimmed-mean",
    "aggregation.weights": "equal",
    "local.optimizer": "adam",
    "local.learning_rate": 0.1,
    "local.weight_decay": 0.1,
    "local.clip": 2.0,
    "local.clip_by": "tensor",
    "local.steps": 3,
    "local.precision": "bfloat16",
    "local.schedule": "linear",
    "local.warmup_rounds": 1,
    "local.warmup_steps": 1,
    "local.optimizer_state": "kept",
    "local.micro_batch_size": 1,
    "local.batch_size": 3,
    "local.arguments.nesterov": True,
    "memory.optimizer_in_backward": True,
    "memory.frozen": "int8",
    "evaluation.metrics": ["loss", "rouge_l"],
    "evaluation.generation_samples": 5,
    "evaluation.max_new_tokens": 5,
    "simulation.failures": 0.1,
}


def put(folder: Path, key: str, value: Any) -> None:
    """Change one key of a run's recipe."""
    tables = tomllib.loads((folder / "recipe.toml").read_text())
    *parents, last = key.split(".")
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value
    if key == "model.rounding":
        tables["model"]["dtype"] = "bfloat16"
    if key == "memory.optimizer_in_backward":
        tables["local"]["clip_by"] = "tensor"
    (folder / "recipe.toml").write_text(tomli_w.dumps(tables))


class Notices(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_notice(self, text: str) -> None:
        self.texts.append(text)


def test_every_key_of_a_recipe_is_bound_or_free(finished: Path) -> None:
    """A key that is added is bound, and this test wants its example."""
    keys = flat(tomllib.loads((finished / "recipe.toml").read_text())).keys()
    assert keys - set(FREE) - {"method.name"} <= BOUND.keys()
    assert not BOUND.keys() & set(FREE)


@pytest.mark.parametrize("key", BOUND)
def test_a_key_that_the_log_depends_on_is_refused_by_name(copied: Path, key: str) -> None:
    put(copied, key, BOUND[key])
    before = {path: path.read_bytes() for path in copied.iterdir()}
    with pytest.raises(UserError, match=rf"recipe\.toml: .*{key} was .* and is .*put that back"):
        RunFolder(copied).recipe()
    assert {path: path.read_bytes() for path in copied.iterdir()} == before


READERS: dict[str, Callable[[Path, Path], object]] = {
    "resume": lambda out, target: run.resume(out),
    "verify": lambda out, target: verify(RunFolder(out)),
    "export": lambda out, target: export(RunFolder(out), target),
    "evaluate": lambda out, target: measure(str(out), RunFolder(out).recipe()),
    "plot": lambda out, target: plot_runs({"a": RunFolder(out)}, target),
    "summary": lambda out, target: RunFolder(out).summary(),
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_a_run_compares_its_recipe(copied: Path, tmp_path: Path, reader: str) -> None:
    put(copied, "local.learning_rate", 0.1)
    put(copied, "federation.seed", 1)
    both = r"federation\.seed was 0 and is 1; local\.learning_rate was 0\.2 and is 0\.1"
    with pytest.raises(UserError, match=both):
        READERS[reader](copied, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def free_values(copied: Path, ingredients: Path) -> dict[str, Any]:
    moved = shutil.copytree(ingredients, copied.parent / "moved")
    return {
        "model.path": str(moved / "model"),
        "model.device": "cpu",
        "data.train": str(moved / "train.jsonl"),
        "federation.snapshot_every": 3,
        "memory.checkpoint_activations": True,
        "evaluation.batch_size": 16,
        "evaluation.best_by": "loss",
        "evaluation.patience": 9,
        "simulation.threads": 1,
        "deployment.quorum": 0.7,
        "deployment.deadline_seconds": 5.0,
    }


def test_what_the_log_does_not_depend_on_may_change_and_is_told(
    copied: Path, ingredients: Path, finished: Path
) -> None:
    """All at once: the run ends as it would have. Rounds and evaluations: the next test."""
    stop_after(copied, 1)
    (copied / "snapshot.safetensors").unlink()
    values = free_values(copied, ingredients)
    elsewhere = {"data.test", "federation.rounds", "evaluation.every"}
    elsewhere |= {"data.sources.*.path"}  # test_sources.py
    elsewhere |= {"memory.cache_inputs"}  # nothing is to be cached of a method that trains all
    elsewhere |= {"check.data", "check.trusted"}  # test_checking.py
    elsewhere |= {"simulation.workers"}  # test_workers.py
    elsewhere |= {"federation.keep_updates"}  # test_snapshots.py
    assert {*values, *elsewhere} == set(FREE)
    for key, value in values.items():
        put(copied, key, value)
    notices = Notices()
    run.resume(copied, [notices])
    told = [text for text in notices.texts if text.startswith("the recipe is not quite")]
    assert [key for key in values if any(f" {key} was" in text for text in told)] == [*values]
    assert (copied / "updates.log").read_bytes() == (finished / "updates.log").read_bytes()
    put(copied, "federation.rounds", 3)
    put(copied, "evaluation.every", 1)
    assert verify(RunFolder(copied)) == 5, "and the hash beside the snapshot of version 3"


def test_a_run_without_its_base_is_not_begun_anew(copied: Path) -> None:
    """Or deleting it would be the way around all of this."""
    put(copied, "local.learning_rate", 0.1)
    for name in ("base.json", "metrics.jsonl", "account.json", "snapshot.safetensors"):
        (copied / name).unlink()
        with pytest.raises(UserError, match=r"base\.json: the file is missing"):
            run.resume(copied)


@pytest.mark.parametrize(
    "name", ["base.json", "metrics.jsonl", "account.json", "summary.json", "snapshot.safetensors"]
)
def test_a_file_of_another_run_is_refused(
    copied: Path, ingredients: Path, tmp_path: Path, name: str
) -> None:
    """Of one of the same recipe but for its seed; and account.json where it is needed."""
    run.start(recipe(ingredients, federation={"seed": 1}), tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, copied / name)
    if name == "account.json":
        lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
        (copied / "metrics.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=name if name != "base.json" else r"federation\.seed"):
        RunFolder(copied).summary() if name == "summary.json" else run.resume(copied)


def test_the_members_of_a_run_are_bound(ingredients: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe(ingredients))
    (folder.path / "members.json").write_text("a run's name and its clients")
    folder.write_base({"model_hash": "0"})
    assert folder.base()["model_hash"] == "0"
    (folder.path / "members.json").write_text("another run's name")
    with pytest.raises(UserError, match=r"members\.json: the file was changed"):
        folder.recipe()
    (folder.path / "members.json").unlink()
    with pytest.raises(UserError, match=r"members\.json"):
        folder.recipe()


def test_a_machine_that_adds_up_otherwise_is_told(copied: Path, finished: Path) -> None:
    notices = Notices()
    run.resume(copied, [notices])
    assert notices.texts == []
    with computing_in(7):
        run.resume(copied, [notices])
    [text] = notices.texts
    assert "threads was 1 and is 7" in text
    assert_same_run(copied, finished)
    assert RunFolder(copied).base()["arithmetic"]["threads"] == 1


def test_a_run_that_began_before_a_key_was_there_goes_on(copied: Path) -> None:
    """What it did not say then is the default now."""
    stop_after(copied, 1)
    base = json.loads((copied / "base.json").read_text())
    del base["recipe"]["local"]["warmup_rounds"]
    del base["recipe"]["data"]["answers"]
    folder = RunFolder(copied)
    recipe = load_recipe(copied / "recipe.toml")
    check_bound(recipe, base["recipe"], folder.recipe_file)
    other = load_recipe(copied / "recipe.toml", ["local.warmup_rounds=2"])
    with pytest.raises(UserError, match=r"local\.warmup_rounds was 0 and is 2"):
        check_bound(other, base["recipe"], folder.recipe_file)
