"""What a server would send and what nodes would answer, from rounds in one process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flower.real import LOOSE, PARTNERS, write_recipe
from fullfed.config import Recipe
from fullfed.deployment.node_task import TaskLoader
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_limits import Limits
from fullfed.engines.node_messages import Order, encode_settings
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import encode
from fullfed.federation.replica import Replica
from fullfed.federation.server import run_round
from fullfed.payloads import Payload
from fullfed.privacy.summing import Owner
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import assemble
from fullfed.runs.curvature import with_scales

RUN = "0123456789abcdef"


@dataclass
class Reference:
    """Rounds in one process.

    Attributes:
        recipe: what was carried out.
        settings: of the run.
        scales: of the codec, empty where it has none.
        updates: one a round.
        plans, reports: by (round, client).
        snapshots: with the update that led to each, without its tensors; by version.
    """

    recipe: Recipe
    settings: bytes
    scales: bytes
    updates: list[bytes] = field(default_factory=list)
    plans: dict[tuple[int, int], bytes] = field(default_factory=dict)
    reports: dict[tuple[int, int], bytes | None] = field(default_factory=dict)
    snapshots: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def order(self, round: int, client: int, since: int = 0) -> Order:
        """The plan of a round for a client that holds version ``since``."""
        updates = tuple(self.updates[since:round])
        plan = self.plans[round, client]
        return Order(RUN, plan, self.settings, self.scales, updates=updates, first=since)


class _Listening:
    """An engine in this process that keeps what passes."""

    def __init__(self, worker: Worker, heard: Reference) -> None:
        self._worker, self._heard = worker, heard

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        for client, plan in sorted(plans.items()):
            arrival = self._worker.visit(plan)
            key = (self._worker.replica.version, client)
            self._heard.plans[key], self._heard.reports[key] = plan, arrival.payload
            yield arrival


def reference(folder: Path, rounds: int, method: dict[str, Any], **tables: Any) -> Reference:
    """Rounds of all partners with a method, and other tables of the recipe."""
    federation = {"rounds": rounds, "clients_per_round": len(PARTNERS), "snapshot_every": 2}
    assembly = assemble(
        load_recipe(write_recipe(folder, federation=federation, method=method, **tables))
    )
    clients = {n: client.examples for n, client in enumerate(assembly.data.clients)}
    made = with_scales(assembly.method, assembly.model)
    replica = Replica(assembly.model, made)
    worker = Worker(replica, made, clients)
    scales_hash = hashlib.sha256(made.scales).hexdigest() if made.scales else None
    settings = encode_settings(assembly.recipe, len(clients), replica.content_hash(), scales_hash)
    heard = Reference(assembly.recipe, settings, made.scales)
    for number in range(rounds):
        engine = _Listening(worker, heard)
        result = run_round(made, engine, number, worker.last, replica.model)
        heard.updates.append(encode(result.update))
        worker.deliver(heard.updates[-1])
        last = encode(replace(result.update, tensors={}))
        heard.snapshots[number + 1] = (replica.snapshot(), last)
    return heard


def node_worker(
    folder: Path,
    client: int,
    state: Path,
    model: str = "model",
    owner: Owner | None = None,
    **limits: Any,
) -> NodeWorker:
    """A partner's worker, without the processes around it.

    Its limits let the small rounds here pass, or are ``limits``; ``owner`` is what it brings into
    secure sums.
    """
    data, allowed = str(folder / f"{PARTNERS[client]}.jsonl"), Limits(**{**LOOSE, **limits})
    load = TaskLoader(data, str(folder / model), limits=allowed)
    return NodeWorker(state, load, allowed, owner)
