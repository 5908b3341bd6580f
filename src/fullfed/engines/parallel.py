"""The simulation with clients' visits in several processes at once.

Each process has a replica and makes one visit at a time; a client is handed to the first that is
free. Which one it is and which visit ends first does not show in a run: a visit follows from its
plan, the model's version and what the client keeps on disk.
"""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fullfed.engines.simulation import Simulation
from fullfed.engines.worker_messages import SNAPSHOT, UPDATE, VISIT, Failed, Ready, Told, Visited
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import Log
from fullfed.federation.messages import Plan, decode
from fullfed.federation.replica import snapshot_version
from fullfed.payloads import Payload

_TRIES = 2  # of a visit, or of starting a process, in which a process ends

# Starts the process of a place, from 0 on, and returns our end of a connection to it.
StartWorker = Callable[[int], tuple[Connection, BaseProcess]]
# Is told a process's place, the bytes that it needed in a visit, and the most so far.
OnPeak = Callable[[int, int | None, int], None]


@dataclass(eq=False)
class _Process:
    """A worker process.

    Attributes:
        place: among those that there are at once.
        version: of its replica; None until it is ready.
        client: whose visit it makes; None while it waits.
    """

    connection: Connection
    process: BaseProcess
    place: int
    version: int | None = None
    client: int | None = None


@dataclass(kw_only=True)
class ParallelSimulation(Simulation):
    """A Simulation whose visits are made in other processes.

    A process that ends in a visit is replaced, and the visit made once more. The processes start
    when there is a visit for them, and end with the context that this is, or with this process.

    Args:
        log: of the run, from which replicas are brought up to date.
        snapshot: where the run keeps its newest.
        workers: how many processes there are at most.
        start: starts one.
        on_peak: is told of their memory.
    """

    log: Log
    snapshot: Path
    workers: int
    start: StartWorker
    on_peak: OnPeak
    _processes: list[_Process] = field(default_factory=list)
    _failed_starts: int = 0

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        """Have the clients visited, begun in increasing order; arrivals are in any."""
        due, suffered = deque[int](), dict[int, Arrival]()
        for client in sorted(plans):
            plan = plans[client]
            suffered[client] = self.suffered(client, plan, self.worker.submodel(plan))
            if suffered[client].failure:
                yield suffered[client]
            elif (answer := self.worker.answer(decode(plan, Plan))) is not None:
                yield replace(answer, down=suffered[client].down)
            else:
                due.append(client)
        for arrival in self._visits(plans, due):
            order = decode(plans[arrival.sender], Plan)
            finished = self.worker.finish(order, arrival)
            yield replace(finished, down=suffered[arrival.sender].down)

    def _visits(self, plans: Mapping[int, Payload], due: deque[int]) -> Iterator[Arrival]:
        ended = Counter[int]()  # processes, in a client's visit
        while due or any(one.client is not None for one in self._processes):
            self._hand_out(plans, due)
            for connection in wait([one.connection for one in self._processes]):
                one = next(p for p in self._processes if p.connection is connection)
                try:
                    arrival = self._heard(one, one.connection.recv())
                except (EOFError, OSError):
                    reason, client = self._buried(one), one.client
                    if client is None:
                        continue
                    ended[client] += 1
                    if ended[client] < _TRIES:
                        due.appendleft(client)
                        continue
                    failure = f"the worker process of its visit {reason}, {_TRIES} times"
                    arrival = Arrival(client, None, failure=failure)
                if arrival is not None:
                    yield arrival

    def _hand_out(self, plans: Mapping[int, Payload], due: deque[int]) -> None:
        """Start processes as far as there are visits for them, and give those that wait one."""
        busy = sum(one.client is not None for one in self._processes)
        for place in range(min(self.workers, busy + len(due))):
            if all(one.place != place for one in self._processes):
                self._processes.append(_Process(*self.start(place), place))
        for one in self._processes:
            waits = one.version is not None and one.client is None
            if due and waits and one.process.is_alive():
                one.client = due.popleft()
                try:
                    self._bring_up_to_date(one)
                    self._tell(one, VISIT, plans[one.client])
                except OSError:
                    pass  # it has ended, as is heard when it is listened to

    def _bring_up_to_date(self, one: _Process) -> None:
        assert one.version is not None
        replica = self.worker.replica
        missed = range(one.version, replica.version)
        if replica.method.cumulative:
            missed = missed[-1:]
        elif len(missed) > 1 and self.snapshot.exists():
            newest = snapshot_version(self.snapshot)
            if one.version < newest <= replica.version:
                self._tell(one, SNAPSHOT, self.log.read(newest - 1))
                missed = range(newest, replica.version)
        for version in missed:
            self._tell(one, UPDATE, self.log.read(version))
        one.version = replica.version

    def _tell(self, one: _Process, kind: bytes, content: Payload) -> None:
        one.connection.send_bytes(kind)
        one.connection.send_bytes(content)

    def _heard(self, one: _Process, said: Any) -> Arrival | None:
        """Take in what a process says; return the arrival if its visit is over.

        Raises:
            UserError: it cannot go on, and neither could we.
            RuntimeError: the same, where the fault is the program's.
        """
        match said:
            case Ready():
                one.version, self._failed_starts = 0, 0
            case Told(headway, loss):
                self.worker.observer(replace(headway, loss=None if loss is None else lambda: loss))
            case Visited(arrival, reported, peak, overall):
                payload = one.connection.recv_bytes() if reported else None
                one.client, self._failed_starts = None, 0
                self.on_peak(one.place, peak, overall)
                return replace(arrival, payload=payload)
            case Failed(text, is_users):
                raise UserError(text) if is_users else RuntimeError(f"in a worker process:\n{text}")
        return None

    def _buried(self, one: _Process) -> str:
        """Forget a process that has ended; return how it did, as the end of a sentence.

        Raises:
            UserError: it is the second that ended before it was ready, with no visit made between.
        """
        self._processes.remove(one)
        one.connection.close()
        one.process.join()
        reason = _how_it_ended(one.process.exitcode or 0)
        if one.version is None:
            self._failed_starts += 1
            if self._failed_starts == _TRIES:
                raise UserError(
                    f"simulation.workers: a worker process {reason} before it was ready, {_TRIES} "
                    "times; what it wrote to standard error, if anything, says why. Take fewer "
                    "workers if it is for want of memory."
                )
        return reason

    def __enter__(self) -> ParallelSimulation:
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes; a visit that one is making counts for nothing."""
        for one in self._processes:
            one.process.kill()
            one.connection.close()
            one.process.join()
        self._processes.clear()


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
