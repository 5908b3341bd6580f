"""Workers and a stand-in Grid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from flower.real import PARTNERS, write_ingredients
from flower.small import node_worker
from fullfed.engines import flower as engine
from fullfed.engines.node import NodeWorker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What partners and server bring along."""
    folder = tmp_path_factory.mktemp("ingredients")
    write_ingredients(folder)
    return folder


@pytest.fixture
def workers(folder: Path, tmp_path: Path) -> Iterator[list[NodeWorker]]:
    """Each partner's worker."""
    nodes = [node_worker(folder, n, tmp_path / f"state-{n}") for n in range(len(PARTNERS))]
    yield nodes
    for node in nodes:
        node.leave()


@pytest.fixture
def flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower sets in a ServerApp's process, and no pauses."""
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    monkeypatch.setattr(engine, "_PAUSE", 0.001)
    monkeypatch.setattr(engine, "_NODES_PAUSE", 0.0)
    monkeypatch.setattr(engine, "_RETRY_SECONDS", (0.0, 0.0))
