"""What each partner's node may ask of the server in a minute: the limits in federation.toml.

A node's key is known from its requests, and only those count that Flower has let in: nobody can use
up another's share. What is under way when a share is used up is still let through.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fullfed.config_values import Bytes, Positive
from fullfed.files import write_json

LIMITS = "limits.json"  # in Flower's home
_MINUTE = 60.0  # seconds


class PartnerLimits(BaseModel):
    """What a partner's node may ask of the server.

    requests_a_minute: its calls; an idle node makes 72. bytes_a_minute: in them; it has to be more
    than a report has, or the node never gets one through.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_a_minute: Positive = 6000
    bytes_a_minute: Bytes = 16 << 30


class Meter:
    """Counts what nodes ask for.

    Args:
        limits: of each key (PEM).
        others: of keys that are not among them.
    """

    def __init__(
        self,
        limits: Mapping[str, PartnerLimits],
        others: PartnerLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._others, self._clock = limits, others, clock
        self._minute = -1
        self._spent: dict[str, tuple[int, int]] = {}  # (requests, bytes) of each key in the minute

    def allows(self, key: str) -> bool:
        """Whether a node has something left of this minute."""
        requests, nbytes = self._spent_by(key)
        limits = self._limits.get(key, self._others)
        return requests < limits.requests_a_minute and nbytes < limits.bytes_a_minute

    def count(self, key: str, nbytes: int) -> None:
        """A request of so many bytes was let in."""
        requests, before = self._spent_by(key)
        self._spent[key] = requests + 1, before + nbytes

    def _spent_by(self, key: str) -> tuple[int, int]:
        """In this minute."""
        minute = int(self._clock() // _MINUTE)
        if minute != self._minute:
            self._minute, self._spent = minute, {}
        return self._spent.get(key, (0, 0))

    def write(self, file: Path) -> None:
        """Keep the limits in a file."""
        limits = {key: one.model_dump() for key, one in self._limits.items()}
        write_json(file, {"limits": limits, "others": self._others.model_dump()})

    @staticmethod
    def read(file: Path) -> Meter:
        """One with the limits in a file that ``write`` has written."""
        tables = json.loads(file.read_bytes())
        limits = {key: PartnerLimits(**table) for key, table in tables["limits"].items()}
        return Meter(limits, PartnerLimits(**tables["others"]))


def key_in(header: bytes) -> str:
    """The key (PEM) that a request's header says it is signed by; empty if that is none."""
    try:
        return base64.b64decode(header, validate=True).decode("ascii")
    except ValueError:
        return ""
