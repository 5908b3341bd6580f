"""One recipe, in one process and on a real federation: the same log, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flower.real import PARTNERS, Federation, write_recipe
from fullfed.federation.recipe import load_recipe
from fullfed.runs import run

METHODS = {
    "ferret": {"name": "ferret", "coordinates": 300},
    "fedavg": {"name": "fedavg"},
    "fedcybgd": {"name": "fedcybgd", "blocks": 3},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_log_is_that_of_a_run_in_one_process(
    federation: Federation, tmp_path: Path, method: str
) -> None:
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method=METHODS[method],
        federation={"rounds": 2, "clients_per_round": 3},
    )
    logs = {name: _worker_log(federation, name) for name in PARTNERS}
    out = tmp_path / "real"
    started = federation.start(recipe, out)
    assert started.code() == 0, started.said()
    summary = run.start(load_recipe(recipe), tmp_path / "simulated")
    simulated = tmp_path / "simulated"
    assert (out / "updates.log").read_bytes() == (simulated / "updates.log").read_bytes()
    assert _json(out / "summary.json")["model_hash"] == summary["model_hash"]
    assert [_account(r) for r in _lines(out)] == [_account(r) for r in _lines(simulated)]
    for name in PARTNERS:
        news = _worker_log(federation, name)[len(logs[name]) :]
        visits = sum(PARTNERS.index(name) in r["cohort"] for r in _lines(out))
        assert news.count(" as client ") == visits
        assert news.count(" loaded") == min(visits, 1), "the model stays in memory between rounds"


def test_nothing_on_the_server_names_a_nodes_data(federation: Federation) -> None:
    for name in PARTNERS:
        path = str(federation.folder / f"{name}.jsonl").encode()
        assert path in (federation.partner(name) / "node.toml").read_bytes()
        for file in federation.server_folder.path.rglob("*"):
            assert not file.is_file() or path not in file.read_bytes(), file


def _account(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("round", "cohort", "merged", "refused", "loss", "bytes")}


def _worker_log(federation: Federation, name: str) -> str:
    return (federation.partner(name) / "worker.log").read_text()


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
