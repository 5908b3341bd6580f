"""A run that keeps only the updates since its newest snapshot."""

from __future__ import annotations

import multiprocessing
import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors.torch import load_file

from fullfed.config import NamedTable, Recipe
from fullfed.errors import UserError
from fullfed.federation.log import MAGIC, first_record
from fullfed.federation.replica import content_hash, snapshot_version
from fullfed.runs import run
from fullfed.runs.best import version_of
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay, verify
from fullfed.runs.rollback import finish_rollback, roll_back
from runs.small import go, go_until_operation, recipe
from trials.subjects import StopAfter, StopError

SINCE = {"keep_updates": "since-snapshot"}


def small(ingredients: Path, **federation: Any) -> Recipe:
    """FedAvg, measured after every round."""
    return recipe(
        ingredients,
        method={"name": "fedavg"},
        federation={"rounds": 5, **federation},
        evaluation={"every": 1},
    )


@pytest.fixture(scope="module")
def whole(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("whole") / "run"
    run.start(small(ingredients), out)
    return RunFolder(out)


@pytest.fixture(scope="module")
def cut(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run without its older updates."""
    out = tmp_path_factory.mktemp("cut") / "run"
    run.start(small(ingredients, **SINCE), out)
    return RunFolder(out)


def model_hash(folder: RunFolder, version: int | None) -> str:
    model, _ = replay(folder, version)
    return content_hash(dict(model.named_parameters()))


def test_it_is_the_same_run_in_less_space(whole: RunFolder, cut: RunFolder) -> None:
    assert first_record(whole.log_file) == 0
    assert first_record(cut.log_file) == 3, "the snapshot is of version 4"
    assert cut.summary()["model_hash"] == whole.summary()["model_hash"]
    assert [r["log"] for r in cut.metrics()] == [r["log"] for r in whole.metrics()]
    assert whole.log_file.read_bytes().endswith(cut.log_file.read_bytes()[14 + 8 + 32 :])
    assert cut.log_file.stat().st_size < 0.42 * whole.log_file.stat().st_size


def test_what_is_kept_is_verified(cut: RunFolder, copy: RunFolder) -> None:
    assert verify(cut) == 4, "base, snapshot, last version and summary"
    for file in (copy.snapshot_file, copy.log_file):
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(UserError, match=file.name):
            verify(copy)
        file.write_bytes(before)
    verify(copy)


@pytest.fixture
def copy(cut: RunFolder, tmp_path: Path) -> RunFolder:
    """The run without its older updates, in a folder that a test may change."""
    return RunFolder(Path(shutil.copytree(cut.path, tmp_path / "copy")))


def test_models_are_had_as_far_as_there_are_updates(whole: RunFolder, cut: RunFolder) -> None:
    best = version_of(whole, "best")
    assert best is not None
    for version in (0, best, 4, 5, None):
        assert model_hash(cut, version) == model_hash(whole, version)
    gone = next(version for version in (1, 2, 3) if version != best)
    with pytest.raises(UserError, match=r"name one of the rounds 0, .*4, or one from 4 to 5"):
        replay(cut, gone)


def test_the_best_model_is_kept(ingredients: Path, tmp_path: Path) -> None:
    best = small(ingredients, **SINCE)
    folder = RunFolder(tmp_path / "run")
    run.start(best, folder.path)
    losses = {0: folder.base()["loss"], **{r["round"] + 1: r["loss"] for r in folder.metrics()}}
    version = min(losses, key=lambda version: losses[version])
    assert version_of(folder, "best") == version
    if version:
        assert snapshot_version(folder.best_file) == version
    assert load_file(folder.snapshot_file).keys() == load_file(folder.best_file).keys()


def test_it_is_taken_back_as_far_as_it_can(whole: RunFolder, copy: RunFolder) -> None:
    with pytest.raises(UserError, match="cannot go back to 3; name a version from 4 to 4"):
        roll_back(copy, 3)
    roll_back(copy, 4)
    verify(copy)
    run.resume(copy.path)
    assert copy.summary()["model_hash"] == whole.summary()["model_hash"]


def test_a_damaged_beginning_is_seen_before_anything_is_cut(copy: RunFolder) -> None:
    """How many records were left out is not in the chain of digests."""
    with mock.patch("fullfed.runs.rollback.finish_rollback"):
        roll_back(copy, 4)
    log = bytearray(copy.log_file.read_bytes())
    log[len(MAGIC)] ^= 1
    copy.log_file.write_bytes(log)
    with pytest.raises(UserError, match="is not the one that the run wrote"):
        finish_rollback(copy)
    assert copy.log_file.read_bytes() == log


def test_without_its_snapshot_it_says_so(copy: RunFolder) -> None:
    snapshot = copy.snapshot_file.read_bytes()
    copy.snapshot_file.unlink()
    for act in (
        verify,
        replay,
        lambda copy: roll_back(copy, 4),
        lambda copy: run.resume(copy.path),
    ):
        with pytest.raises(UserError, match=r"snapshot\.safetensors: the file is missing"):
            act(copy)  # type: ignore[operator]
    copy.snapshot_file.write_bytes(snapshot)
    run.resume(copy.path)


def test_a_run_may_begin_to_keep_less(whole: RunFolder, cut: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(Path(shutil.copytree(whole.path, tmp_path / "copy")))
    text = folder.recipe_file.read_text()
    longer = text.replace("rounds = 5", "rounds = 6").replace(
        'keep_updates = "all"', 'keep_updates = "since-snapshot"'
    )
    folder.recipe_file.write_text(longer)
    run.resume(folder.path)
    assert first_record(folder.log_file) == 5
    verify(folder)


BEST = 1  # the version that these runs measure best


def keep(folder: RunFolder, updates: str, rounds: int) -> None:
    """Have a run keep other updates from here on, for so many rounds in all."""
    text = folder.recipe_file.read_text()
    text = re.sub(r"^rounds = \d+", f"rounds = {rounds}", text, flags=re.MULTILINE)
    text = re.sub(r'keep_updates = "[a-z-]+"', f'keep_updates = "{updates}"', text)
    folder.recipe_file.write_text(text)
    run.resume(folder.path)


def test_a_crash_does_not_lose_the_best_model(
    ingredients: Path, whole: RunFolder, tmp_path: Path
) -> None:
    """Between the line that says it is the best and the file that has it."""
    assert version_of(whole, "best") == BEST
    folder = RunFolder(tmp_path / "run")
    with suppress(StopError):
        run.start(small(ingredients, **SINCE), folder.path, [StopAfter(BEST)])
    assert not folder.best_file.exists()
    run.resume(folder.path)
    assert first_record(folder.log_file) > BEST
    assert model_hash(folder, BEST) == model_hash(whole, BEST)


@pytest.mark.parametrize("method", ["fedavg", "fedkseed"])
def test_a_run_that_begins_to_keep_less_keeps_its_best_model(
    method: str, ingredients: Path, tmp_path: Path
) -> None:
    """That is older than the snapshot that it resumes from; also where updates are cumulative."""
    folder = RunFolder(tmp_path / "run")
    before = small(ingredients, rounds=4, seed=2, snapshot_every=1)
    rate = {"learning_rate": before.local.learning_rate if method == "fedavg" else 1e-3}
    changes = {"method": NamedTable(name=method), "local": before.local.model_copy(update=rate)}
    run.start(before.model_copy(update=changes), folder.path)
    best = version_of(folder, "best")
    assert best is not None
    assert 0 < best < 4
    kept = model_hash(folder, best)
    keep(folder, "since-snapshot", 5)
    assert first_record(folder.log_file) == 4
    assert version_of(folder, "best") == best
    assert model_hash(folder, best) == kept
    verify(folder)


def test_a_run_that_keeps_more_again_has_its_best_model(ingredients: Path, tmp_path: Path) -> None:
    """Its log does not begin at the base model, so it has not what is older than the snapshot."""
    folder = RunFolder(tmp_path / "run")
    run.start(small(ingredients, **SINCE, rounds=6), folder.path)
    keep(folder, "all", 9)
    best = version_of(folder, "best")
    assert best == 7, "newer than what was left out, older than the snapshot"
    assert snapshot_version(folder.snapshot_file) == 8
    model_hash(folder, best)
    verify(folder)


def test_killed_anywhere_it_goes_on_to_the_same_end(
    ingredients: Path, whole: RunFolder, tmp_path: Path
) -> None:
    """At every durable operation of the round that leaves updates out."""
    spawn = multiprocessing.get_context("fork")
    begun = tmp_path / "begun"
    run.start(small(ingredients, **SINCE, rounds=3), begun)
    text = (begun / "recipe.toml").read_text()
    (begun / "recipe.toml").write_text(text.replace("rounds = 3", "rounds = 5"))
    firsts = Counter[int]()
    for number in range(1, 200, 3):
        out = Path(shutil.copytree(begun, tmp_path / f"killed-{number}"))
        process = spawn.Process(target=go_until_operation, args=(ingredients, out, number))
        process.start()
        process.join()
        folder = RunFolder(out)
        if process.exitcode == 0:
            break
        go(ingredients, out)
        assert folder.summary()["model_hash"] == whole.summary()["model_hash"], number
        firsts[first_record(folder.log_file)] += 1
        verify(folder)
    # A round whose snapshot a crash prevented has none; the next one that is due does.
    assert firsts.keys() == {1, 3}
    assert firsts[3] > firsts[1]
