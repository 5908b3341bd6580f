"""kill -9 at any moment, resume, and nothing tells the run from one that was never stopped."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fullfed.errors import UserError
from fullfed.federation.log import Log, read_log
from fullfed.federation.messages import Update, decode
from fullfed.federation.replica import Replica
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import load_base, verify
from runs.small import ROUNDS, go_and_tell, go_until_operation, recipe

# Children are forked from a server that has loaded everything already, so that a test can kill
# many of them; each is a process of its own and dies by SIGKILL.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fullfed.runs.run", "fullfed.quickstart", "transformers"])

TIMED = ("seconds", "peak_memory_bytes", "peak_memory_by_part", "checksum")


def records(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, but for times and memory, and the checksums of these."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMED} for record in found]


def summary(out: Path) -> dict[str, Any]:
    found = json.loads((out / "summary.json").read_text())
    return {k: v for k, v in found.items() if k not in TIMED}


def assert_same_run(out: Path, finished: Path) -> None:
    assert (out / "updates.log").read_bytes() == (finished / "updates.log").read_bytes()
    assert [record["round"] for record in records(out)] == list(range(ROUNDS))
    assert records(out) == records(finished)
    assert summary(out) == summary(finished)
    verify(RunFolder(out))
    assert not list(out.glob("*.partial"))


def killed(target: Callable[..., None], *arguments: object) -> bool:
    """Whether the process died by SIGKILL, which is the only other thing it may do."""
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_around_each_durable_operation(
    ingredients: Path, finished: Path, tmp_path: Path
) -> None:
    """The nth process dies at its nth operation, so that every kind of operation is met."""
    out = tmp_path / "run"
    number = 1
    while killed(go_until_operation, ingredients, out, number):
        number += 1
        assert number < 60
    assert number > 15
    assert_same_run(out, finished)


@pytest.mark.parametrize("seed", range(2))
def test_killed_around_random_durable_operations(
    ingredients: Path, finished: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    out = tmp_path / "run"
    attempts = 0
    while killed(go_until_operation, ingredients, out, chance.randint(5, 30)):
        attempts += 1
        assert attempts < 60
    assert attempts >= 1
    assert_same_run(out, finished)


def test_killed_at_random_moments(ingredients: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    chance = random.Random(time.time_ns())
    started = time.monotonic()
    assert not killed(go_and_tell, ingredients, tmp_path / "whole", PROCESSES.Event())
    whole = time.monotonic() - started
    kills = 0
    while True:
        ready = PROCESSES.Event()
        process = PROCESSES.Process(target=go_and_tell, args=(ingredients, out, ready))
        process.start()
        assert ready.wait(300)
        # Later and later, so that the run comes to its end.
        process.join(chance.uniform(0, whole) * (1 + kills / 8) if kills < 30 else 300)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    print(f"killed {kills} times within runs of {whole:.1f} s")
    assert_same_run(out, finished)


def test_resuming_a_finished_run_changes_nothing_but_its_times(
    copied: Path, finished: Path
) -> None:
    run.resume(copied)
    assert_same_run(copied, finished)


def stop_after(copied: Path, rounds: int) -> None:
    """Leave the folder as if it had been killed right after so many rounds."""
    kept = list(read_log(copied / "updates.log"))[:rounds]
    (copied / "updates.log").unlink()
    with Log(copied / "updates.log") as log:
        for record in kept:
            log.append(record)
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:rounds]))
    (copied / "summary.json").unlink()


def test_a_snapshot_shortens_the_replay(
    copied: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one of version 2, the first two updates are not applied again."""
    (copied / "snapshot.safetensors").unlink()
    stop_after(copied, 2)
    folder = RunFolder(copied)
    replica, _, _ = load_base(folder)
    for payload in read_log(folder.log_file):
        replica.apply(decode(payload, Update))
    replica.save_snapshot(folder.snapshot_file, folder.run())
    applied: list[int] = []
    real = Replica.apply

    def apply(self: Replica, update: Update) -> None:
        applied.append(update.round)
        real(self, update)

    monkeypatch.setattr(Replica, "apply", apply)
    run.resume(copied)
    assert applied == [2, 3]
    monkeypatch.undo()
    assert_same_run(copied, finished)


def test_without_its_snapshot_a_run_is_replayed_from_the_base(copied: Path, finished: Path) -> None:
    (copied / "snapshot.safetensors").unlink()
    stop_after(copied, 3)
    run.resume(copied)
    assert_same_run(copied, finished)


def test_a_snapshot_ahead_of_the_log_is_refused(copied: Path) -> None:
    stop_after(copied, 1)
    with pytest.raises(UserError, match="the snapshot is ahead of the log; delete it"):
        run.resume(copied)


def test_a_damaged_snapshot_is_refused_and_can_be_deleted(copied: Path, finished: Path) -> None:
    snapshot = copied / "snapshot.safetensors"
    damaged = bytearray(snapshot.read_bytes())
    damaged[-1] ^= 1
    snapshot.write_bytes(damaged)
    with pytest.raises(UserError, match="the snapshot's content was changed, or is another"):
        run.resume(copied)
    snapshot.unlink()
    run.resume(copied)
    assert_same_run(copied, finished)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_rounds_missing_from_the_metrics_are_not_passed_over(copied: Path, kept: int) -> None:
    """All but the last could never be made up for."""
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:kept]))
    with pytest.raises(UserError, match=r"metrics\.jsonl: rounds of the log are missing here"):
        run.resume(copied)
    assert (copied / "metrics.jsonl").read_text() == "".join(lines[:kept])


def test_the_last_rounds_line_is_made_up_for(copied: Path, finished: Path) -> None:
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    run.resume(copied)
    assert_same_run(copied, finished)


def test_a_missing_account_is_named(copied: Path) -> None:
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:-1]))
    (copied / "account.json").unlink()
    with pytest.raises(UserError, match=r"account\.json: the file is missing"):
        run.resume(copied)


def test_a_damaged_log_is_not_resumed(copied: Path) -> None:
    log = bytearray((copied / "updates.log").read_bytes())
    log[20] ^= 1
    (copied / "updates.log").write_bytes(log)
    with pytest.raises(UserError, match="damaged at byte"):
        run.resume(copied)
    assert (copied / "updates.log").read_bytes() == log


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="there is no run here; name the folder of a run"):
            run.resume(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_resumed_twice_at_a_time(copied: Path) -> None:
    with (
        Log(copied / "updates.log"),
        pytest.raises(UserError, match="another process is writing this run"),
    ):
        run.resume(copied)


def test_a_finished_run_goes_on_when_its_recipe_asks_for_more(
    ingredients: Path, finished: Path, tmp_path: Path
) -> None:
    """Its model is the one of a run that had asked for as many rounds from the start."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    text = (out / "recipe.toml").read_text()
    (out / "recipe.toml").write_text(text.replace(f"rounds = {ROUNDS}", f"rounds = {ROUNDS + 2}"))
    longer = run.resume(out)
    asked = recipe(ingredients, federation={"rounds": ROUNDS + 2})
    assert longer["model_hash"] == run.start(asked, tmp_path / "asked")["model_hash"]
    assert longer["rounds"] == ROUNDS + 2
