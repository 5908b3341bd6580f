"""The engine over a Grid that is a dictionary: who is waited for, sent what, and let in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from flower.real import PARTNERS, write_ingredients, write_recipe
from flower.small import RUN, resident
from fullfed.deployment.resident import Resident
from fullfed.deployment.terms import encode_terms
from fullfed.engines.flower import engine as engine_module
from fullfed.engines.flower.engine import FlowerEngine, Membership
from fullfed.engines.flower.orders import Answer, Order
from fullfed.engines.flower.records import content_of, pieces_of
from fullfed.errors import UserError
from fullfed.federation.log import Log
from fullfed.federation.messages import Report, decode, encode
from fullfed.federation.recipe import Recipe, load_recipe
from fullfed.federation.traffic import Traffic
from fullfed.federation.worker import Worker
from fullfed.runs import run
from fullfed.runs.assembly import assemble_server
from fullfed.runs.folder import RunFolder

Handle = Callable[[Mapping[str, bytes]], Mapping[str, bytes] | None]
KEYS = [name.encode() for name in PARTNERS]


@dataclass
class Node:
    """What the SuperLink would know of a node; ``handle`` gives None where no answer comes."""

    handle: Handle
    since: str = "once"
    there: Callable[[], bool] = lambda: True
    speaks_as: int | None = None


@dataclass
class Dictionary:
    """A Grid without a network."""

    nodes: dict[int, Node]
    orders: list[tuple[int, Order]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._replies: dict[str, Any] = {}
        self._numbers = itertools.count()

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(node_id=100 + n, public_key=KEYS[n], last_activated_at=node.since)
            for n, node in self.nodes.items()
            if node.there()
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        client, name = message.metadata.dst_node_id - 100, str(next(self._numbers))
        node, pieces = self.nodes[client], pieces_of(message.content)
        self.orders.append((client, Order.of(pieces)))
        try:
            answer = node.handle(pieces)
        except ConnectionError:
            error = SimpleNamespace(code=8)
            self._replies[name] = SimpleNamespace(has_error=lambda: True, error=error)
            return name
        if answer is not None:
            source = message.metadata.dst_node_id if node.speaks_as is None else node.speaks_as
            self._replies[name] = SimpleNamespace(
                has_error=lambda: False,
                metadata=SimpleNamespace(src_node_id=source),
                content=content_of(answer),
            )
        return name

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        return [self._replies.pop(name) for name in names if name in self._replies]


@pytest.fixture(autouse=True)
def flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower sets in a ServerApp's process, and no pauses."""
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    monkeypatch.setattr(engine_module, "_PAUSE", 0.001)
    monkeypatch.setattr(engine_module, "_NODES_PAUSE", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    write_ingredients(folder)
    return folder


@pytest.fixture
def residents(folder: Path, tmp_path: Path) -> Iterator[list[Resident]]:
    nodes = [resident(folder, n, tmp_path / f"state-{n}") for n in range(len(PARTNERS))]
    yield nodes
    for node in nodes:
        node.leave()


def recipe_of(folder: Path, rounds: int, **changes: Any) -> Recipe:
    tables: dict[str, Any] = {
        "federation": {"rounds": rounds, "clients_per_round": 4},
        "deployment": {"quorum": 0.5},
        **changes,
    }
    return load_recipe(write_recipe(folder, **tables))


def carry_out(recipe: Recipe, grid: Dictionary, out: Path) -> RunFolder:
    """The run of a ServerApp, without Flower."""
    assembly = assemble_server(recipe, len(PARTNERS))
    folder = RunFolder(out)
    if not folder.recipe_file.exists():
        folder.create(assembly.recipe)

    def connect(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> FlowerEngine:
        terms = encode_terms(recipe, len(PARTNERS), folder.base()["model_hash"])
        membership = Membership(RUN, KEYS, terms)
        return FlowerEngine(grid, membership, worker, log, traffic, recipe.deployment)  # type: ignore[arg-type]

    run.carry_out(folder, assembly, connect=connect, quorum=recipe.deployment.quorum)
    return folder


@pytest.mark.parametrize("method", ["ferret", "fedavg"])
def test_a_node_that_was_away_is_caught_up_by_what_is_smaller(
    folder: Path, tmp_path: Path, residents: list[Resident], method: str
) -> None:
    options = {"coordinates": 300} if method == "ferret" else {}
    recipe = recipe_of(folder, 5, method={"name": method, **options})
    grid = Dictionary({n: Node(node.handle) for n, node in enumerate(residents)})
    grid.nodes[2].there = lambda: len(RunFolder(tmp_path / "run").metrics()) in (0, 4)
    grid.nodes[3].there = lambda: False
    done = carry_out(recipe, grid, tmp_path / "run")
    absent = [[r["client"] for r in record["refused"]] for record in done.metrics()]
    assert absent == [[3], [2, 3], [2, 3], [2, 3], [3]]
    back = [order for client, order in grid.orders if client == 2][-1]
    if method == "fedavg":
        assert back.snapshot
        assert not back.updates
    else:
        assert len(back.updates) == 4
        assert not back.snapshot
    assert len(done.metrics()[4]["merged"]) == 3


def test_a_restarted_server_sends_what_each_node_lacks_and_no_more(
    folder: Path, tmp_path: Path, residents: list[Resident]
) -> None:
    recipe, stop = recipe_of(folder, 3), [False]

    def stopping(pieces: Mapping[str, bytes]) -> Mapping[str, bytes] | None:
        stop[0] = len(RunFolder(tmp_path / "run").metrics()) == 2 and not stop[0]
        if stop[0]:
            raise KeyboardInterrupt
        return residents[0].handle(pieces)

    grid = Dictionary({n: Node(node.handle) for n, node in enumerate(residents)})
    grid.nodes[0].handle = stopping
    with pytest.raises(KeyboardInterrupt):
        carry_out(recipe, grid, tmp_path / "run")
    grid.orders.clear()
    carry_out(recipe, grid, tmp_path / "run")
    assert sorted(client for client, _ in grid.orders) == [0, 1, 2, 3]
    assert all(len(order.updates) == 1 for _, order in grid.orders)


def spoiled(node: Resident, spoil: Callable[[Answer], Mapping[str, bytes]]) -> Handle:
    return lambda pieces: spoil(Answer.of(node.handle(pieces)))


def _not_finite(answer: Answer) -> Mapping[str, bytes]:
    report = decode(answer.report, Report)
    for tensor in report.tensors.values():
        tensor.view(-1)[0] = float("nan")
    return Answer(answer.version, encode(report)).pieces()


def _another_clients(answer: Answer) -> Mapping[str, bytes]:
    report = decode(answer.report, Report)
    fields = {name: getattr(report, name) for name in ("round", "samples", "loss", "values")}
    return Answer(
        answer.version, encode(Report(client=0, tensors=report.tensors, **fields))
    ).pieces()


SPOILERS: dict[str, tuple[Callable[[Answer], Mapping[str, bytes]], str]] = {
    "not ours": (lambda answer: {"x": b"y"}, "malformed"),
    "no report": (lambda answer: Answer(0, b"nonsense").pieces(), "shorter than its header"),
    "oversized": (lambda answer: Answer(0, bytes(1 << 20)).pieces(), "more than the"),
    "not finite": (_not_finite, "not finite"),
    "another client's": (_another_clients, "claims to be client 0's"),
    "failure": (lambda answer: Answer(0, failure="no\nway").pieces(), "no way"),
    "never content": (lambda answer: Answer(-1).pieces(), "does not keep what it is sent"),
}


@pytest.mark.parametrize("kind", SPOILERS)
def test_a_bad_answer_is_refused_and_recorded_and_the_round_goes_on(
    folder: Path, tmp_path: Path, residents: list[Resident], kind: str
) -> None:
    spoil, reason = SPOILERS[kind]
    grid = Dictionary({n: Node(node.handle) for n, node in enumerate(residents)})
    grid.nodes[1].handle = spoiled(residents[1], spoil)
    [record] = carry_out(recipe_of(folder, 1), grid, tmp_path / "run").metrics()
    assert record["merged"] == [0, 2, 3]
    [refused] = record["refused"]
    assert refused["client"] == 1
    assert reason in refused["reason"]


def test_an_answer_from_another_node_than_was_asked_changes_nothing(
    folder: Path, tmp_path: Path, residents: list[Resident]
) -> None:
    recipe = recipe_of(folder, 1, deployment={"deadline_seconds": 3.0, "quorum": 0.5})
    grid = Dictionary({n: Node(node.handle) for n, node in enumerate(residents)})
    grid.nodes[1].speaks_as = 100
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["merged"] == [0, 2, 3]
    assert record["refused"] == [{"client": 1, "reason": "no report before the round ended"}]


def test_a_node_that_comes_back_is_asked_again_and_answers(
    folder: Path, tmp_path: Path, residents: list[Resident]
) -> None:
    grid = Dictionary({n: Node(node.handle) for n, node in enumerate(residents)})

    def lost(pieces: Mapping[str, bytes]) -> None:
        residents[1].handle(pieces)
        grid.nodes[1] = Node(residents[1].handle, since="later")

    grid.nodes[1].handle = lost
    [record] = carry_out(recipe_of(folder, 1), grid, tmp_path / "run").metrics()
    assert record["merged"] == [0, 1, 2, 3]
    assert [client for client, _ in grid.orders].count(1) == 2


def test_flowers_own_errors_are_tried_again_a_few_times(
    folder: Path, tmp_path: Path, residents: list[Resident]
) -> None:
    grid = Dictionary({n: Node(node.handle) for n, node in enumerate(residents)})
    fails = itertools.chain([True], itertools.repeat(False))

    def once(pieces: Mapping[str, bytes]) -> Mapping[str, bytes]:
        if next(fails):
            raise ConnectionError
        return residents[1].handle(pieces)

    def always(pieces: Mapping[str, bytes]) -> Mapping[str, bytes]:
        raise ConnectionError

    grid.nodes[1].handle, grid.nodes[2].handle = once, always
    [record] = carry_out(recipe_of(folder, 1), grid, tmp_path / "run").metrics()
    assert record["merged"] == [0, 1, 3]
    assert record["refused"] == [{"client": 2, "reason": "Flower's error 8 on the node"}]


def test_without_a_quorum_at_the_deadline_the_run_stops_and_can_go_on(
    folder: Path, tmp_path: Path, residents: list[Resident]
) -> None:
    recipe = recipe_of(folder, 1, deployment={"deadline_seconds": 1.0, "quorum": 0.75})
    grid = Dictionary({n: Node(node.handle) for n, node in enumerate(residents)})
    grid.nodes[1].handle = grid.nodes[2].handle = lambda pieces: None
    with pytest.raises(UserError, match="only 2 clients sent a usable report"):
        carry_out(recipe, grid, tmp_path / "run")
    assert RunFolder(tmp_path / "run").metrics() == []
    for n in (1, 2):
        grid.nodes[n].handle = residents[n].handle
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["merged"] == [0, 1, 2, 3]
