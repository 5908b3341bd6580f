"""A node of several devices: a process each, all of which hold a part of the model.

The first process is the node: it takes orders and decides. Whatever it does with the model all do,
each with its own part: it says what comes, and the others follow. They answer nobody, and write
nothing.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from fullfed.engines.node_drift import Drift
from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Update, decode, encode
from fullfed.federation.method import Method
from fullfed.federation.replica import Replica
from fullfed.federation.tensors import Computed
from fullfed.files import write_atomically
from fullfed.payloads import Payload
from fullfed.sketch.shards import whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fullfed.engines.node import NodeTask

# What comes.
_LOAD, _APPLY, _VISIT = "load", "apply", "visit"
_HASH, _SNAPSHOT, _TAKE = "hash", "snapshot", "take"
_WATCH, _CHECK = "watch", "check"
_AS_LONG_AS_IT_TAKES = timedelta(days=3650)  # until the next order comes

Said = Mapping[str, Payload]


class Team:
    """The processes of a node, in their order.

    Args:
        device: the node's, as node.toml names it: "cpu"; or "cuda" or "auto", of which each process
            takes the GPU of its own number.

    Attributes:
        mesh: the processes, as torch shards tensors over them.
        device: of this process.
        leads: whether this is the first process.
    """

    def __init__(self, device: str) -> None:
        """
        Raises:
            UserError: there is no GPU for this process.
        """
        from torch.distributed.device_mesh import init_device_mesh

        self.device = _own_device(device)
        kind, backend = "cpu", "gloo"
        if self.device != "cpu":
            torch.cuda.set_device(self.device)
            kind, backend = "cuda", "cpu:gloo,cuda:nccl"
        distributed.init_process_group(backend, timeout=_AS_LONG_AS_IT_TAKES)
        self._rank, self._size = distributed.get_rank(), distributed.get_world_size()
        self.leads = self._rank == 0
        self.mesh: DeviceMesh = init_device_mesh(kind, (self._size,))

    def tell(self, what: str, **said: Payload) -> None:
        """Tell the others what comes; for the one that leads."""
        sizes = json.dumps([what, {name: len(data) for name, data in said.items()}]).encode()
        self.send(torch.tensor([len(sizes)]))
        self.send(_octets(sizes))
        for data in said.values():
            if data:
                self.send(_octets(data))

    def heard(self) -> tuple[str, Said]:
        """What comes; for the others, which wait for it."""
        length = int(self.send(torch.zeros(1, dtype=torch.int64)))
        what, sizes = json.loads(_bytes(self.send(torch.zeros(length, dtype=torch.uint8))))
        said = {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}
        return what, {name: _bytes(self.send(data)) for name, data in said.items()}

    def send(self, values: Tensor) -> Tensor:
        """The values of the one that leads, in the others' place of them; on the CPU."""
        if values.numel():
            distributed.broadcast(values, 0)
        return values

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What is inside one process does after the other, so that only one at a time needs the
        memory of a whole model."""
        for _ in range(self._rank):
            distributed.barrier()
        try:
            yield
        finally:
            for _ in range(self._rank, self._size):
                distributed.barrier()


def _own_device(device: str) -> str:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if device not in ("auto", "cuda"):
        raise UserError(f"node.toml: device = {device!r} is one; for several take 'cuda' or 'cpu'.")
    place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if place >= there:
        raise UserError(f"node.toml: devices is more than the {there} GPUs that there are here.")
    return f"cuda:{place}"


class LeadingReplica(Replica):
    """The replica of a team.

    Args:
        team: which this process leads; the rest as for ``Replica``.
    """

    def __init__(self, team: Team, model: PreTrainedModel, method: Method) -> None:
        super().__init__(model, method)
        self._team = team

    def apply(self, update: Update) -> None:
        self._team.tell(_APPLY, update=encode(update))
        super().apply(update)

    def content_hash(self) -> str:
        self._team.tell(_HASH)
        return super().content_hash()

    def save_snapshot(self, path: Path, run: str = "") -> None:
        """All of it is here before any is written: what stopped half-way would leave the others
        waiting."""
        write_atomically(path, self.snapshot(run))

    def snapshot(self, run: str = "") -> Payload:
        self._team.tell(_SNAPSHOT)
        return super().snapshot(run)

    def hold(self, state: Mapping[str, Tensor], version: int) -> None:
        self._team.tell(_TAKE, version=str(version).encode())
        super().hold({name: self._team.send(values) for name, values in state.items()}, version)


class LeadingDrift(Drift):
    """The drift of a team's replica.

    Args:
        team: which this process leads; the rest as for ``Drift``.
    """

    def __init__(
        self, team: Team, tensors: Mapping[str, Tensor], base: Collection[str], most: float
    ) -> None:
        self._team, seed = team, secrets.randbits(64)
        team.tell(_WATCH, seed=seed.to_bytes(8), most=repr(most).encode())
        super().__init__(tensors, base, most, seed)

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        self._team.tell(_CHECK)
        super().check(tensors)


class LeadingWorker(Worker):
    """The worker of a team.

    Args:
        team: which this process leads; the rest as for ``Worker``.
    """

    def __init__(self, team: Team, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._team = team

    def visit(self, plan: Payload, submodel: Payload | None = None) -> Arrival:
        last = b"" if self.last is None else encode(replace(self.last, tensors={}))
        self._team.tell(_VISIT, plan=plan, last=last)
        return super().visit(plan, submodel)


def tell_to_load(team: Team, settings: bytes, scales: bytes) -> None:
    """Have the others load the task that the one that leads is about to load."""
    team.tell(_LOAD, settings=settings, scales=scales)


def led(task: NodeTask, team: Team) -> NodeTask:
    """A task's part in one of a team's processes, which has loaded it."""
    if not team.leads:
        return task
    assert task.replica is not None
    replica = LeadingReplica(team, task.replica.model, task.replica.method)
    worker, drift = partial(LeadingWorker, team), partial(LeadingDrift, team)
    return replace(task, replica=replica, worker=worker, drift=drift)


def follow(team: Team, load: Callable[[bytes, bytes], NodeTask]) -> None:
    """Do what the process does that leads, until that ends.

    Args:
        load: makes a task of settings and scales, which the process that leads has checked.
    """
    follower: _Follower | None = None
    while True:
        try:
            what, said = team.heard()
        except RuntimeError:  # torch's, of a connection that was closed
            return
        try:
            if what == _LOAD:
                follower = None  # frees the other run's model first
                follower = _Follower(team, load(bytes(said["settings"]), bytes(said["scales"])))
            else:
                assert follower is not None  # or what it held here is not what the others have
                follower.do(what, said)
        except UserError:  # the one that leads has the same, says it, and loads anew
            follower = None


class _Follower:
    """A process's part of what its team does with a run's model."""

    def __init__(self, team: Team, task: NodeTask) -> None:
        assert task.replica is not None
        self._team, self._base, self._replica = team, task.base, task.replica
        self._worker = Worker(task.replica, task.method, task.by_client())

    def do(self, what: str, said: Said) -> None:
        """
        Raises:
            UserError: it cannot be done, by no process.
        """
        replica = self._replica
        if what == _APPLY:
            replica.apply(decode(said["update"], Update))
        elif what == _HASH:
            _gather(replica.state())
        elif what == _SNAPSHOT:
            _gather(replica.parameters())  # for their hash
            _gather(dict(replica.in_file_order()))
        elif what == _TAKE:
            replica.hold(_received(self._team, replica.parameters()), int(said["version"]))
        elif what == _WATCH:
            seed, most = int.from_bytes(said["seed"]), float(said["most"])
            self._drift = Drift(replica.parameters(), self._base, most, seed)
        elif what == _CHECK:
            self._drift.check(replica.parameters())
        elif what == _VISIT:
            self._worker.last = decode(said["last"], Update) if said["last"] else None
            self._worker.visit(said["plan"], submodel=b"")


def _gather(tensors: Mapping[str, Tensor]) -> None:
    """This process's part in bringing tensors together, one at a time, where they are wanted."""
    for tensor in tensors.values():
        whole(tensor)


def _received(team: Team, like: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Whole tensors that the process sends that leads, one at a time, each when it is asked for."""
    return Computed(
        like, lambda name: team.send(torch.empty(like[name].shape, dtype=like[name].dtype))
    )


def _octets(data: Payload) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(octets: Tensor) -> bytes:
    return octets.numpy().tobytes()
