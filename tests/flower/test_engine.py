"""What becomes of what nodes answer: bad answers are refused, recorded, and cost nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flower.standin import Dictionary, Handle, carry_out, recipe_of
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Answer
from fullfed.errors import UserError
from fullfed.federation.messages import Report, decode, encode
from fullfed.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("flower_process")


def spoiled(node: NodeWorker, spoil: Callable[[Answer], Mapping[str, bytes]]) -> Handle:
    return lambda frames: spoil(Answer.of(node.handle(frames)))


def _not_finite(answer: Answer) -> Mapping[str, bytes]:
    report = decode(answer.report, Report)
    for tensor in report.tensors.values():
        tensor.view(-1)[0] = float("nan")
    return Answer(answer.version, encode(report)).frames()


def _another_clients(answer: Answer) -> Mapping[str, bytes]:
    report = decode(answer.report, Report)
    fields = {name: getattr(report, name) for name in ("round", "samples", "loss", "values")}
    return Answer(
        answer.version, encode(Report(client=0, tensors=report.tensors, **fields))
    ).frames()


SPOILERS: dict[str, tuple[Callable[[Answer], Mapping[str, bytes]], str]] = {
    "not ours": (lambda answer: {"x": b"y"}, "malformed"),
    "no report": (lambda answer: Answer(0, b"nonsense").frames(), "does not follow protocol 2"),
    "oversized": (lambda answer: Answer(0, bytes(1 << 20)).frames(), "more than the"),
    "not finite": (_not_finite, "not finite"),
    "another client's": (_another_clients, "claims to be client 0's"),
    "failure": (lambda answer: Answer(0, failure="no\nway").frames(), "no way"),
    "never content": (lambda answer: Answer(-1).frames(), "does not keep what it is sent"),
}


@pytest.mark.parametrize("kind", SPOILERS)
def test_a_bad_answer_is_refused_and_recorded_and_the_round_goes_on(
    folder: Path, tmp_path: Path, workers: list[NodeWorker], kind: str
) -> None:
    spoil, reason = SPOILERS[kind]
    grid = Dictionary.of(workers)
    grid.nodes[1].handle = spoiled(workers[1], spoil)
    [record] = carry_out(recipe_of(folder, 1), grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 2, 3]
    [refused] = record["refused"]
    assert refused["client"] == 1
    assert reason in refused["reason"]


def test_an_answer_from_another_node_than_was_asked_changes_nothing(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    grid = Dictionary.of(workers)
    grid.nodes[1].speaks_as = 100
    [record] = carry_out(recipe_of(folder, 1), grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 2, 3]
    assert record["refused"] == [{"client": 1, "reason": "another node answered in its place"}]


def test_a_refusal_ends_the_round_where_it_leaves_no_quorum(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    """Though the deadline is far and a node that is there has not answered yet."""
    grid = Dictionary.of(workers)
    grid.nodes[1].handle = lambda frames: Answer(-1, failure="this is another model").frames()
    grid.nodes[2].silent = lambda: True
    recipe = recipe_of(folder, 1, deployment={"quorum": 1.0, "deadline_seconds": 1e6})
    with pytest.raises(
        UserError, match=r"only 2 clients sent .* \(client 1: this is another model"
    ):
        carry_out(recipe, grid, tmp_path / "run")
    assert RunFolder(tmp_path / "run").metrics() == []
