"""A stand-in for Flower's Grid that is a dictionary, and a server's run over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.app import Message

from flower.real import PARTNERS, write_recipe
from flower.small import RUN
from fullfed.config import Recipe
from fullfed.engines.flower import FlowerEngine
from fullfed.engines.flower_messages import content_of, frames_of
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Order, encode_settings
from fullfed.federation.client import Worker
from fullfed.federation.log import Log
from fullfed.federation.server import Traffic
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.assembly import assemble_server
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.rollback import targets

Handle = Callable[[Mapping[str, bytes]], Mapping[str, bytes] | None]
KEYS = [name.encode() for name in PARTNERS]


@dataclass
class Node:
    """What the SuperLink would know of a node.

    Attributes:
        handle: gives None where no answer ever comes; a ConnectionError is a loss of Flower's.
        since: when it connected.
        there: whether it is connected now.
        silent: whether what it has answered is held up on its way now.
        speaks_as: the node that its answers are said to come from.
    """

    handle: Handle
    since: str = "once"
    there: Callable[[], bool] = lambda: True
    silent: Callable[[], bool] = lambda: False
    speaks_as: int | None = None


@dataclass
class Dictionary:
    """A Grid without a network.

    Attributes:
        nodes: by client; the Flower node of client n is 100 + n.
        orders: (client, order) of all that was sent.
        pulled: the client of each reply that was fetched.
    """

    nodes: dict[int, Node]
    orders: list[tuple[int, Order]] = field(default_factory=list)
    pulled: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._replies: dict[str, tuple[int, Any]] = {}
        self._numbers = itertools.count()

    @staticmethod
    def of(workers: Iterable[NodeWorker]) -> Dictionary:
        return Dictionary({n: Node(node.handle) for n, node in enumerate(workers)})

    def sent_to(self, client: int) -> list[Order]:
        return [order for to, order in self.orders if to == client]

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
        node, frames = self.nodes[client], frames_of(message.content)
        self.orders.append((client, Order.of(frames)))
        try:
            answer = node.handle(frames)
        except ConnectionError:
            error = SimpleNamespace(code=8)
            self._replies[name] = client, SimpleNamespace(has_error=lambda: True, error=error)
            return name
        if answer is not None:
            source = message.metadata.dst_node_id if node.speaks_as is None else node.speaks_as
            self._replies[name] = (
                client,
                SimpleNamespace(
                    has_error=lambda: False,
                    metadata=SimpleNamespace(src_node_id=source),
                    content=content_of(answer),
                ),
            )
        return name

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        return [reply for name in names for reply in self._pull(name)]

    def _pull(self, name: str) -> list[Any]:
        if name not in self._replies or self.nodes[self._replies[name][0]].silent():
            return []
        client, reply = self._replies.pop(name)
        self.pulled.append(client)
        return [reply]


def recipe_of(folder: Path, rounds: int, **changes: Any) -> Recipe:
    tables: dict[str, Any] = {
        "federation": {"rounds": rounds, "clients_per_round": 4},
        "deployment": {"quorum": 0.5},
        **changes,
    }
    return load_recipe(write_recipe(folder, **tables))


def carry_out(
    recipe: Recipe, grid: Dictionary, out: Path, callbacks: Sequence[Callback] = ()
) -> RunFolder:
    """The run of a ServerApp, without Flower."""
    assembly = assemble_server(recipe, len(PARTNERS))
    folder = RunFolder(out)
    if not folder.recipe_file.exists():
        folder.create(assembly.recipe)

    def connect(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> FlowerEngine:
        hashes = folder.base()["model_hash"], folder.scales_hash
        settings, table = encode_settings(recipe, len(PARTNERS), *hashes), recipe.deployment
        back = targets(folder)
        return FlowerEngine(grid, RUN, lambda: KEYS, settings, worker, log, traffic, table, back)  # type: ignore[arg-type]

    quorum = recipe.deployment.quorum
    run.carry_out(folder, assembly, callbacks, connect, quorum, name=RUN)
    return folder
