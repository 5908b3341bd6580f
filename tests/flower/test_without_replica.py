"""Nodes without weights: they have a configuration and a tokenizer, and orders bring the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from flower.real import PARTNERS, write_recipe
from flower.small import node_worker
from flower.standin import Dictionary, carry_out
from fullfed.config import Recipe
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Answer, Order
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("flower_process")

ROUNDS = 6  # with four clients in turn, two come to their block again
LAYERS = 5


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    """Of a model of five layers, of which a client gets three; its folder is "whole"."""
    weak = folder / "model"
    if not (folder / "whole").exists():
        config = LlamaConfig.from_pretrained(weak)
        config.num_hidden_layers = LAYERS
        weak.rename(folder / "whole")
        LlamaForCausalLM(config).save_pretrained(folder / "whole")
        weak.mkdir()
        for file in (folder / "whole").iterdir():
            if file.suffix == ".json":
                (weak / file.name).write_bytes(file.read_bytes())
    path = write_recipe(
        folder,
        model={"path": str(folder / "whole")},
        federation={"rounds": ROUNDS, "clients_per_round": 1},
        memory={"optimizer_in_backward": True},
        local={"optimizer": "adamw", "clip_by": "tensor"},
        method={"name": "fedcybgd", "blocks": 4, "surrogate": 0.3},
        codec={"name": "dense", "precision": "int8", "error_feedback": True},
    )
    return load_recipe(path)


@pytest.fixture
def weak(recipe: Recipe, folder: Path, tmp_path: Path) -> Iterator[list[NodeWorker]]:
    assert not list((folder / "model").glob("*.safetensors"))
    nodes = [node_worker(folder, n, tmp_path / f"state-{n}") for n in range(len(PARTNERS))]
    yield nodes
    for node in nodes:
        node.leave()


def test_the_log_is_that_of_a_run_in_one_process(
    recipe: Recipe, tmp_path: Path, weak: list[NodeWorker]
) -> None:
    ours, grid = RunFolder(tmp_path / "ours"), Dictionary.of(weak)
    flowers = carry_out(recipe, grid, tmp_path / "flowers")
    run.start(recipe, ours.path)
    assert flowers.log_file.read_bytes() == ours.log_file.read_bytes()
    assert [record["refused"] for record in flowers.metrics()] == [[]] * ROUNDS
    assert all(order.submodel and not order.updates for _, order in grid.orders)
    for client in range(4):
        first, *later = grid.sent_to(client)
        assert first.static_weights
        assert not any(order.static_weights for order in later)
    sent = [len(o.plan) + len(o.submodel) + len(o.static_weights) for _, o in grid.orders]
    for folder in (flowers, ours):
        assert [record["bytes"]["down"] for record in folder.metrics()] == sent


def test_a_killed_worker_goes_on_from_its_disk(
    recipe: Recipe, folder: Path, tmp_path: Path, weak: list[NodeWorker]
) -> None:
    grid = Dictionary.of(weak)
    carry_out(recipe, grid, tmp_path / "run")
    _, second = grid.sent_to(0)
    remembered = ask(weak[0], second)
    weak[0].leave()
    assert remembered.report
    assert ask(node_worker(folder, 0, tmp_path / "state-0"), second) == remembered


@pytest.mark.parametrize("aggregated", [True, False])
def test_what_a_visit_left_counts_if_the_server_says_that_it_was_merged(
    recipe: Recipe, folder: Path, tmp_path: Path, weak: list[NodeWorker], aggregated: bool
) -> None:
    grid = Dictionary.of(weak)
    carry_out(recipe, grid, tmp_path / "run")
    first, second = grid.sent_to(0)
    assert (first.aggregated, second.aggregated) == (-1, 0)
    second = replace(second, settings=first.settings, static_weights=first.static_weights)
    fresh = ask(node_worker(folder, 0, tmp_path / "fresh"), second)
    node = node_worker(folder, 0, tmp_path / "again")
    ask(node, first)
    answer = ask(node, second if aggregated else replace(second, aggregated=-1))
    assert fresh.report
    assert (answer.report == fresh.report) != aggregated


def ask(node: NodeWorker, order: Order) -> Answer:
    answer = Answer.of(node.handle(order.frames()))
    return replace(answer, train_seconds=0.0, encode_seconds=0.0)


def test_an_order_without_a_handout_is_refused(
    recipe: Recipe, tmp_path: Path, weak: list[NodeWorker]
) -> None:
    grid = Dictionary.of(weak)
    carry_out(recipe, grid, tmp_path / "run")
    first, _ = grid.sent_to(0)
    answer = ask(weak[0], replace(first, submodel=b""))
    assert answer.failure.endswith("the order brings no submodel for a node without a replica")


def test_a_restarted_server_sends_static_weights_only_to_whom_they_are_new(
    recipe: Recipe, folder: Path, tmp_path: Path, weak: list[NodeWorker]
) -> None:
    """Client 0 had its visit and has lost its disk since; client 1 had its visit."""
    short = recipe.model_copy(
        update={"federation": recipe.federation.model_copy(update={"rounds": 4})}
    )
    out, grid = tmp_path / "run", Dictionary.of(weak)
    carry_out(short, grid, out)
    (out / "summary.json").unlink()
    tables = (out / "recipe.toml").read_text()
    (out / "recipe.toml").write_text(tables.replace("rounds = 4", f"rounds = {ROUNDS}"))
    weak[0].leave()
    grid = Dictionary.of([node_worker(folder, 0, tmp_path / "fresh"), *weak[1:]])
    records = carry_out(recipe, grid, out).metrics()
    known, again = grid.sent_to(0)
    assert known.settings
    assert not known.static_weights
    assert again.settings
    assert again.static_weights
    [other] = grid.sent_to(1)
    assert other.settings
    assert not other.static_weights
    down = [record["bytes"]["down"] for record in records[4:]]
    assert down == [known.message_bytes + again.message_bytes, other.message_bytes]
    assert [record["refused"] for record in records] == [[]] * ROUNDS
