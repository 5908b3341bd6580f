"""Runs whose visits last longer than a round: stopped, resumed, taken back, in several processes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.federation.log import read_log
from fullfed.federation.messages import Plan, Report, decode
from fullfed.federation.server import Traffic
from fullfed.methods.buffered import BufferedArrivals
from fullfed.methods.codecs.dense import Dense
from fullfed.runs import run
from fullfed.runs.assembly import assemble_server
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.runs.rollback import roll_back
from runs.small import recipe
from runs.test_resume import TIMED
from trials.subjects import StopAfter, StopError

ROUNDS = 7
COURSE = BufferedArrivals(seed=0, clients=4, at_once=3, buffer=2)
CODECS: dict[str, dict[str, Any]] = {
    "changes": {"name": "dense"},
    "residuals": {"name": "topk", "upload": 1605, "error_feedback": True},
    "own directions": {"name": "sketch", "coordinates": 300, "bits": 1},
    "shared directions": {"name": "sketch", "coordinates": 300, "seeds": "shared"},
}


def buffered(ingredients: Path, codec: str, **changes: Mapping[str, Any]) -> Recipe:
    """Three of four clients train at once, two reports fill the buffer."""
    federation = {"rounds": ROUNDS, "clients_per_round": 3, "snapshot_every": 2}
    federation |= dict(changes.pop("federation", {}))
    method = {"name": "fedbuff", "buffer": 2, "codec": CODECS[codec]}
    return recipe(ingredients, federation=federation, method=method, **changes)  # type: ignore[arg-type]


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in folder.metrics()]


def test_the_course_of_these_runs_has_visits_of_several_rounds() -> None:
    """Or the tests below would show nothing."""
    ages = [r - int(p["version"]) for r in range(ROUNDS) for p in COURSE.visits(r).values()]  # type: ignore[call-overload]
    assert max(ages) >= 2
    assert all(COURSE.ahead(version) for version in range(ROUNDS))


@pytest.mark.parametrize("codec", CODECS)
def test_a_stopped_and_resumed_run_is_the_same(
    codec: str, ingredients: Path, tmp_path: Path
) -> None:
    failing = {"failures": 0.2}
    ours = buffered(ingredients, codec, simulation=failing)
    run.start(ours, tmp_path / "whole")
    whole, again = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "again")
    with suppress(StopError):
        run.start(ours, again.path, [StopAfter(1)])
    for rounds in range(2, ROUNDS):
        with suppress(StopError):
            run.resume(again.path, [StopAfter(rounds)])
    run.resume(again.path)
    assert again.log_file.read_bytes() == whole.log_file.read_bytes()
    assert lines(again) == lines(whole)
    assert any(line["refused"] for line in lines(whole)), "some visits failed"
    assert verify(again)
