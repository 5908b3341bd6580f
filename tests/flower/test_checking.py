"""The server's held-out check over Flower is that of a run in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from flower.real import LOOSE, PARTNERS
from flower.standin import Dictionary, carry_out, recipe_of
from fullfed.deployment.node_task import TaskLoader
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_limits import Limits
from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.assembly import assemble_server
from fullfed.runs.folder import RunFolder
from runs.small import write_model
from runs.test_checking import CLIENTS, LIAR, checked, climb, write_parts

pytestmark = pytest.mark.usefixtures("flower_process")


def test_the_log_is_that_of_a_run_in_one_process(tmp_path: Path) -> None:
    """With a client that does harm, and is left out for good after two rounds."""
    write_model(tmp_path / "model")
    write_parts(tmp_path)
    recipe = checked(tmp_path, patience=2)
    limits = Limits(**{**LOOSE, "fewest_samples_a_visit": 2})
    nodes = []
    for client in range(CLIENTS):
        data, model = str(tmp_path / f"parts/{client}.jsonl"), str(tmp_path / "model")
        load = TaskLoader(data, model, "cpu", limits, trainer=climb)
        nodes.append(NodeWorker(tmp_path / f"state-{client}", load, limits))
    flowers, ours = RunFolder(tmp_path / "flowers"), RunFolder(tmp_path / "ours")
    carry_out(recipe, Dictionary.of(nodes), flowers.path)
    run.start(recipe, ours.path, trainer=climb)
    assert flowers.log_file.read_bytes() == ours.log_file.read_bytes()
    found = [[record["check"] for record in each.metrics()] for each in (flowers, ours)]
    assert found[0] == found[1]
    assert [one["left_out"] for one in found[0]] == [[LIAR], [LIAR], [], []]
    assert [one["excluded"] for one in found[0]] == [[], [], [LIAR], [LIAR]]
    for node in nodes:
        node.leave()


def test_a_server_has_no_training_data_to_hold_samples_out_of(folder: Path) -> None:
    with pytest.raises(UserError, match="the server of a federation has no training"):
        assemble_server(recipe_of(folder, 1, check={}), len(PARTNERS))
