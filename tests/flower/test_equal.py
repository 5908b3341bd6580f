"""One recipe, in one process and on a real federation: the same log, for the bytes accounted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from flower.real import PARTNERS, Federation, write_recipe
from fullfed.deployment.starting import start
from fullfed.federation.recipe import load_recipe
from fullfed.runs import run

METHODS = {
    "ferret": {"name": "ferret", "coordinates": 300},
    "fedavg": {"name": "fedavg"},
}  # FedCyBGD: test_kill.py
MESSAGE = 24 << 10  # bytes that a visit may cost beyond its pieces, each way
NODE_SECOND = 2 << 10  # bytes a second that a node may cost by asking for messages, each way


@pytest.mark.parametrize("method", METHODS)
def test_log_and_traffic_are_those_of_a_run_in_one_process(
    federation: Federation, tmp_path: Path, method: str
) -> None:
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method=METHODS[method],
        federation={"rounds": 2, "clients_per_round": 3},
    )
    logs = {name: _worker_log(federation, name) for name in PARTNERS}
    passed, began = _passed(federation), time.monotonic()
    out = tmp_path / "real"
    start(federation.server_folder, load_recipe(recipe), out, print)
    passed = {way: total - passed[way] for way, total in _passed(federation).items()}
    _check_traffic(_lines(out), passed, time.monotonic() - began)
    summary = run.start(load_recipe(recipe), tmp_path / "simulated")
    simulated = tmp_path / "simulated"
    assert (out / "updates.log").read_bytes() == (simulated / "updates.log").read_bytes()
    assert json.loads((out / "summary.json").read_text())["model_hash"] == summary["model_hash"]
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


def _passed(federation: Federation) -> dict[str, int]:
    """Bytes at the server's socket, TLS and all."""
    return {"up": federation.proxy.up, "down": federation.proxy.down}


def _check_traffic(records: list[dict[str, Any]], passed: dict[str, int], seconds: float) -> None:
    """What passes the server's socket is what the accounts say, and a little more."""
    visits = sum(len(record["cohort"]) for record in records)
    constant = visits * MESSAGE + len(PARTNERS) * seconds * NODE_SECOND
    for way, total in passed.items():
        accounted = sum(record["bytes"][way] for record in records)
        print(f"{way}: {accounted} accounted, {total} passed, {visits} visits, {seconds:.0f} s")
        assert accounted <= total <= 1.05 * accounted + constant


def _account(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("round", "cohort", "merged", "refused", "loss", "bytes")}


def _worker_log(federation: Federation, name: str) -> str:
    return (federation.partner(name) / "worker.log").read_text()


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
