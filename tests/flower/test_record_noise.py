"""Record-level noise of nodes: that of a run in one process, accounted for on each node's disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flower.real import PARTNERS
from flower.small import RUN, node_worker
from flower.standin import Dictionary, Node, carry_out, recipe_of
from fullfed.config import Recipe
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_state import LedgerOnDisk
from fullfed.errors import UserError
from fullfed.methods.private_training import SPENT
from fullfed.privacy.keystream import derived
from fullfed.privacy.summing import Owner
from fullfed.runs import run
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify

pytestmark = pytest.mark.usefixtures("flower_process")
SECRET = b"what the clients' secrets follow from"[:32]
NOISY: dict[str, Any] = {"protects": "record", "noise": 1.0, "delta": 1e-3, "clip": 1.0}


def noisy(folder: Path, rounds: int = 2, **table: Any) -> Recipe:
    return recipe_of(folder, rounds, privacy={**NOISY, **table})


class Nodes:
    """The partners' workers, which can begin anew on the same disks."""

    def __init__(self, folder: Path, states: Path) -> None:
        self._folder, self._states = folder, states
        self.workers: dict[int, NodeWorker] = {}

    def grid(self) -> Dictionary:
        for client in range(len(PARTNERS)):
            owner = Owner(derived(SECRET, f"client {client}"))
            state = self._states / str(client)
            self.workers[client] = node_worker(self._folder, client, state, owner=owner)
        return Dictionary({n: Node(worker.handle) for n, worker in self.workers.items()})

    def ledger(self, client: int) -> LedgerOnDisk:
        return LedgerOnDisk(self._states / str(client) / f"{RUN}.ledger.json", RUN)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.leave()


@pytest.fixture
def nodes(folder: Path, tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(folder, tmp_path / "states")
    yield nodes
    nodes.close()


def test_the_log_is_that_of_a_run_in_one_process(
    folder: Path, tmp_path: Path, nodes: Nodes
) -> None:
    recipe = noisy(folder)
    real = carry_out(recipe, nodes.grid(), tmp_path / "real")
    assembly, whole = assemble(recipe), RunFolder(tmp_path / "whole")
    whole.create(assembly.recipe)
    whole.secret_file.write_bytes(SECRET)
    run.carry_out(whole, assembly, name=RUN)
    assert real.log_file.read_bytes() == whole.log_file.read_bytes()
    assert [line["train_loss"] for line in real.metrics()] == [None, None]
    verify(real)
    [(kind, steps)] = nodes.ledger(0).before(0).items()
    assert kind[0] == 1.0
    assert steps == 2 * assembly.method.steps(len(assembly.data.clients[0].examples))


def test_a_node_that_is_spent_refuses_whatever_the_server_does(
    folder: Path, tmp_path: Path, nodes: Nodes
) -> None:
    """The server begins the run anew, and comes with more noise; the nodes remember."""
    carry_out(noisy(folder, 1, epsilon=100.0), nodes.grid(), tmp_path / "one")
    spent = nodes.ledger(0).before(0)
    nodes.close()
    for client in range(len(PARTNERS)):
        for old in (tmp_path / "states" / str(client)).iterdir():
            if old.is_dir():
                old.rename(old.with_name("f" * 16))  # as if another run had been joined since
    again = noisy(folder, 1, epsilon=0.5, noise=50.0)
    with pytest.raises(UserError, match=SPENT):
        carry_out(again, nodes.grid(), tmp_path / "again")
    assert nodes.ledger(0).before(0) == spent
