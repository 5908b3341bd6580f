"""What passes between a simulation and its worker processes.

A process is told pairs of messages: a kind, then bytes. ``UPDATE`` brings its replica one version
further, ``SNAPSHOT`` to the version of the run's snapshot (the bytes are the update that led to
it), and ``VISIT`` is a plan. A process says objects of the classes below.
"""

from __future__ import annotations

from dataclasses import dataclass

from fullfed.federation.inbox import Arrival
from fullfed.headway import Headway

SNAPSHOT, UPDATE, VISIT = b"snapshot", b"update", b"visit"


@dataclass(frozen=True)
class Ready:
    """The replica is at version 0, and the process waits for what it is told."""


@dataclass(frozen=True)
class Told:
    """How far a visit is.

    Attributes:
        headway: without its loss.
        loss: that; None where there is none yet.
    """

    headway: Headway
    loss: float | None


@dataclass(frozen=True)
class Visited:
    """A visit is over.

    Attributes:
        arrival: without the report.
        reported: whether the report's bytes are the next message.
        peak: bytes of memory that the process needed in the visit; None where the system does not
            tell.
        overall: the most bytes that it has needed so far.
    """

    arrival: Arrival
    reported: bool
    peak: int | None
    overall: int


@dataclass(frozen=True)
class Failed:
    """The process has ended its work.

    Attributes:
        text: what a UserError said there; where the fault is the program's, a traceback.
        is_users: which of the two.
    """

    text: str
    is_users: bool
