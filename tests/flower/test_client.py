"""A loop in another thread than a node's worker trains as a function in the worker does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from flower.real import LOOSE, PARTNERS
from flower.standin import Dictionary, carry_out, recipe_of
from fullfed.data.client_dataset import ClientDataset
from fullfed.deployment.client import Handover
from fullfed.deployment.node_task import TaskLoader
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_limits import Limits
from fullfed.training.first_order import TrainingError
from fullfed.training.trainer import Trainer, VisitContext

pytestmark = pytest.mark.usefixtures("flower_process")


def train(
    model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
) -> dict[str, float]:
    loss = model(**dataset.collate(dataset[:4])).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=context.local.learning_rate).step()
    return {"loss": float(loss.detach())}


def worker(folder: Path, client: int, state: Path, trainer: Trainer | None = None) -> NodeWorker:
    data, model = str(folder / f"{PARTNERS[client]}.jsonl"), str(folder / "model")
    limits = Limits(**LOOSE)
    return NodeWorker(state, TaskLoader(data, model, "cpu", limits, trainer=trainer), limits)


def test_a_loop_trains_as_a_function_does(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    recipe = recipe_of(folder, 2)
    nodes = [*workers[:3], worker(folder, 3, tmp_path / "function", train)]
    function = carry_out(recipe, Dictionary.of(nodes), tmp_path / "run")
    handover = Handover()
    # Its round is carried out in another thread, as the worker of a Client is.
    others = [worker(folder, n, tmp_path / f"other-{n}") for n in range(3)]
    nodes = [*others, worker(folder, 3, tmp_path / "loop", handover)]
    ended = threading.Event()

    def server() -> None:
        try:
            carry_out(recipe, Dictionary.of(nodes), tmp_path / "again")
        finally:
            ended.set()

    threading.Thread(target=server, daemon=True).start()
    rounds = []
    for visit in handover.visits(lambda: not ended.is_set()):
        visit.finish(**train(visit.model, visit.dataset, visit.context), steps=1.0)
        rounds.append(visit.context.round)
    assert rounds == [0, 1]
    assert (tmp_path / "again/updates.log").read_bytes() == function.log_file.read_bytes()
    assert function.metrics()[0]["aggregated"] == [0, 1, 2, 3]


def test_a_visit_that_the_loop_does_not_finish_is_a_failure(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    handover = Handover()
    nodes = [*workers[:3], worker(folder, 3, tmp_path / "loop", handover)]

    def loop() -> None:
        for visit in handover.visits(lambda: True):
            with pytest.raises(ValueError, match="finite number, not nan"):
                visit.finish(float("nan"))

    threading.Thread(target=loop, daemon=True).start()
    [record] = carry_out(recipe_of(folder, 1), Dictionary.of(nodes), tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 1, 2]
    [refused] = record["refused"]
    assert refused == {"client": 3, "reason": "the node's own loop did not finish the visit"}


def test_a_program_that_leaves_its_loop_leaves_nobody_waiting() -> None:
    """By an error in the loop, say: its iterator is still there, and its visit unfinished."""
    handover, failures = Handover(), list[str]()

    def visit() -> None:
        try:
            handover(None, None, None)  # type: ignore[arg-type]
        except TrainingError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=visit, daemon=True) for _ in range(2)]
    threads[0].start()
    visits = handover.visits(lambda: True)
    next(visits)
    handover.close()
    threads[1].start()  # one that comes afterwards
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert failures == ["the node's own loop did not finish the visit"] * 2
