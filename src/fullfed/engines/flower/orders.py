"""What passes between the server's engine and a node's worker, as named pieces of bytes.

An Order asks a node for a visit and brings what the node lacks for it; an Answer is what came of
it. Pieces are all that the relay between them knows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fullfed.federation.messages import MessageError

Pieces = Mapping[str, bytes]

_ABOUT = "about"
_OTHERS = ("snapshot", "last", "terms", "equipment", "handout")
_RUN = re.compile(r"[0-9a-f]{16}")
_TEXT_LIMIT = 500  # characters of a failure's text
_VERSION_LIMIT = 2**32


@dataclass(frozen=True)
class Order:
    """Server to node.

    Attributes:
        run: names the run; 16 hexadecimal digits.
        plan: the encoded plan.
        updates: encoded updates in their order ...
        first: ... and the version that the first of them starts from.
        snapshot: a snapshot of the replica instead of updates, or empty.
        last: with a snapshot, the update that led to it, without its tensors.
        terms: what the node must know of the recipe, or empty if it has been told.
        equipment: with the terms, where nodes hold no replica (Method.equipment); else empty.
        handout: for such a node, in the place of updates and snapshot (Method.handout).
        merged: and the last round whose update has the node's report in it; -1 for none.
    """

    run: str
    plan: bytes
    updates: tuple[bytes, ...] = ()
    first: int = 0
    snapshot: bytes = b""
    last: bytes = b""
    terms: bytes = b""
    equipment: bytes = b""
    handout: bytes = b""
    merged: int = -1

    def pieces(self) -> dict[str, bytes]:
        named = {"plan": self.plan, **{name: getattr(self, name) for name in _OTHERS}}
        named |= {f"update-{number}": update for number, update in enumerate(self.updates)}
        about = {
            "run": self.run,
            "first": self.first,
            "updates": len(self.updates),
            "merged": self.merged,
        }
        return {_ABOUT: _encode(about), **{name: piece for name, piece in named.items() if piece}}

    @property
    def message_bytes(self) -> int:
        """Bytes of the federation's messages in the order: not of its description and the terms."""
        return sum(len(p) for name, p in self.pieces().items() if name not in (_ABOUT, "terms"))

    @staticmethod
    def of(pieces: Pieces) -> Order:
        """The order in ``pieces``.

        Raises:
            MessageError: they are not one.
        """
        about = _decode(pieces, {"run": str, "first": int, "updates": int, "merged": int})
        sound = 0 <= about["first"] < _VERSION_LIMIT and 0 <= about["updates"] <= len(pieces)
        sound = sound and -1 <= about["merged"] < _VERSION_LIMIT
        if not _RUN.fullmatch(about["run"]) or not sound:
            raise MessageError("the order's description is out of range")
        try:
            updates = tuple(pieces[f"update-{number}"] for number in range(about["updates"]))
            plan = pieces["plan"]
        except KeyError as error:
            raise MessageError(f"the order has no piece {error}") from error
        others = {name: pieces.get(name, b"") for name in _OTHERS}
        return Order(about["run"], plan, updates, about["first"], **others, merged=about["merged"])


@dataclass(frozen=True)
class Answer:
    """Node to server.

    Attributes:
        version: of the node's replica; -1 if it does not know the run's terms.
        report: the encoded report, or empty.
        failure: why there is no report; empty if the node only lacks updates or terms.
        train_seconds, encode_seconds: as the node measured them.
    """

    version: int
    report: bytes = b""
    failure: str = ""
    train_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def lacks(self) -> bool:
        """Whether the node asks for what it lacks instead of reporting."""
        return not self.report and not self.failure

    def pieces(self) -> dict[str, bytes]:
        about = {
            "version": self.version,
            "failure": self.failure[:_TEXT_LIMIT],
            "train_seconds": self.train_seconds,
            "encode_seconds": self.encode_seconds,
        }
        return {_ABOUT: _encode(about), **({"report": self.report} if self.report else {})}

    @staticmethod
    def of(pieces: Pieces) -> Answer:
        """The answer in ``pieces``.

        Raises:
            MessageError: they are not one.
        """
        about = _decode(
            pieces,
            {"version": int, "failure": str, "train_seconds": float, "encode_seconds": float},
        )
        if not -1 <= about["version"] < _VERSION_LIMIT:
            raise MessageError("the answer's version is out of range")
        if not all(math.isfinite(about[part]) for part in ("train_seconds", "encode_seconds")):
            raise MessageError("the answer's seconds are not finite")
        text = "".join(c if c.isprintable() else " " for c in about.pop("failure")[:_TEXT_LIMIT])
        return Answer(report=pieces.get("report", b""), failure=text, **about)


def _encode(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True, allow_nan=False).encode()


def _decode(pieces: Pieces, kinds: Mapping[str, type]) -> dict[str, Any]:
    try:
        about = json.loads(pieces[_ABOUT])
    except (KeyError, ValueError, RecursionError) as error:
        raise MessageError("the description of what was sent is malformed") from error
    if not isinstance(about, dict) or {k: type(v) for k, v in about.items()} != dict(kinds):
        raise MessageError("the description of what was sent does not have the due fields")
    return about
