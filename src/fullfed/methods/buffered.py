"""A schedule of visits that last differently long: who trains when, and on which version.

Some clients train at any time, each as long as it takes. When one ends, its report goes into the
buffer and another client begins, on the version that there is by then. The buffer makes an update
as soon as it is full. How long visits last is drawn, so all of it follows from the seed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from fullfed.errors import UserError
from fullfed.federation.messages import VERSION, Value
from fullfed.randomness import Purpose, Stream, uniforms

_DRAWS = 64  # of clients at a time, until one of them is free


@dataclass(frozen=True)
class BufferedArrivals:
    """A schedule whose rounds are the reports that a full buffer holds (Nguyen et al. 2022,
    FedBuff, arXiv 2106.06639, Algorithm 1).

    Who begins is uniformly random among the clients that are free: that do not train, and have no
    report in the buffer. Where nobody is, fewer train until the buffer is full.

    Attributes:
        seed: the recipe's.
        clients: how many there are in the federation.
        at_once: how many train at any time; the paper's concurrency.
        buffer: K, the reports of a round.
    """

    seed: int
    clients: int
    at_once: int
    buffer: int

    def visits(self, round: int) -> Mapping[int, Mapping[str, Value]]:
        """See ``Schedule``; plans say the version that a visit began from."""
        versions = self._course_to(round).rounds[round]
        return {client: {VERSION: version} for client, version in sorted(versions.items())}

    def ahead(self, version: int) -> Mapping[int, int]:
        """The clients that begin at a version and report after its round: in which round."""
        course = self._course_to(version)
        while math.inf in course.begun[version].values():
            course.fill()
        due = course.begun[version]
        return {client: int(due[client]) for client in sorted(due) if due[client] > version}

    def time(self, round: int) -> float:
        """When the round's buffer was full, from 0 on, in mean durations of a visit."""
        return self._course_to(round).times[round]

    @property
    def patience(self) -> int:
        return 0

    @property
    def fewest_together(self) -> int:
        return self.buffer

    def _course_to(self, round: int) -> _Course:
        """What happens up to the end of a round, and what began after it.

        Raises:
            UserError: there are too few clients.
        """
        if self.buffer > self.clients:
            raise UserError(
                f"method.buffer: {self.clients} clients never fill a buffer of {self.buffer} "
                "reports, each of another client; lower it."
            )
        while len(self._course.rounds) <= round:
            self._course.fill()
        return self._course

    @cached_property
    def _course(self) -> _Course:
        return _Course(self)


def duration(stream: Stream) -> float:
    """How long a visit lasts, in mean durations: half-normal, as in the paper (appendix).

    It is drawn from the stream's first number; see ``_drawn`` for the others.
    """
    u = float(uniforms(stream, 1)[0])
    return -NormalDist().inv_cdf((1 - u) / 2) * math.sqrt(math.pi / 2)


class _Course:
    """Everything that happens, in its order, as far as it has been reckoned.

    Attributes:
        rounds: the clients whose reports each round's buffer holds, with the versions that they
            began from.
        times: when each buffer was full.
        begun: of each version, the clients that began from it, with the round that their report
            is for; infinity where that is not known yet.
    """

    def __init__(self, schedule: BufferedArrivals) -> None:
        self._schedule = schedule
        self._training: list[tuple[float, int, int, int]] = []  # ends at, visit, client, version
        self._busy: set[int] = set()
        self._visits = 0
        self.rounds: list[dict[int, int]] = []
        self.times: list[float] = []
        self.begun: list[dict[int, float]] = [{}]
        self._begin(0.0)

    def fill(self) -> None:
        """Go on until the buffer is full once more."""
        buffered: dict[int, int] = {}
        round, now = len(self.rounds), 0.0
        while len(buffered) < self._schedule.buffer:
            if buffered:
                self._begin(now)
            now, _, client, version = heapq.heappop(self._training)
            buffered[client] = version
            self.begun[version][client] = round
        self.rounds.append(buffered)
        self.times.append(now)
        self.begun.append({})
        self._busy -= buffered.keys()
        self._begin(now)

    def _begin(self, now: float) -> None:
        """Have free clients begin on the newest version, until enough train."""
        schedule, version = self._schedule, len(self.rounds)
        while len(self._training) < schedule.at_once and len(self._busy) < schedule.clients:
            stream = Stream(schedule.seed, Purpose.ARRIVALS, round=self._visits)
            client = next(one for one in _drawn(stream, schedule.clients) if one not in self._busy)
            ends = now + duration(stream)
            heapq.heappush(self._training, (ends, self._visits, client, version))
            self._busy.add(client)
            self.begun[version][client] = math.inf
            self._visits += 1


def _drawn(stream: Stream, clients: int) -> Iterator[int]:
    """Clients at random, again and again; the stream's first number is the duration's."""
    start = 1
    while True:
        yield from (uniforms(stream, _DRAWS, start) * clients).astype(int).tolist()
        start += _DRAWS
