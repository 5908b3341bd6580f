"""What passes between a server and a node: orders, answers, and the settings of a run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fullfed.config import Recipe, parse_recipe
from fullfed.errors import MessageError, UserError
from fullfed.payloads import Payload
from fullfed.strict_json import check_keys, parse_json

Frames = Mapping[str, Payload]

_DESCRIPTION = "description"
_SETTINGS = "settings"
_OPTIONAL = (_SETTINGS, "scales", "snapshot", "last", "static_weights", "submodel")
_RUN = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXT_LIMIT = 500  # characters of a failure's text
_DESCRIPTION_LIMIT = 1 << 16  # bytes
_SETTINGS_LIMIT = 1 << 20  # bytes
_VERSION_LIMIT = 2**32
# Of the recipe, what nodes are told; a method with a codec of its own has no table for one.
_TABLES = (
    *("federation", "local", "memory", "method", "codec", "aggregation", "trainer"),
    "privacy",
)
_DATA = ("template", "answers", "max_length", "date")  # of its table data
_SETTINGS_KEYS = (
    *("clients", "base_hash", "scales_hash", "dtype", "rounding", "tables"),
    *_DATA,
)


@dataclass(frozen=True)
class Order:
    """Server to node.

    Attributes:
        run: names the run; 16 hexadecimal digits.
        plan: the encoded plan.
        settings: the encoded TaskSettings, or empty if the node has been told.
        scales: the bytes of the codec's scales, or empty if there are none or the node has them.
        updates: encoded updates in their order ...
        first: ... and the version that the first of them starts from.
        snapshot: a snapshot of the replica instead of updates, or empty.
        last: with a snapshot, the update that led to it, without its tensors.
        submodel: what a node without a replica trains on, in the place of updates and snapshot.
        static_weights: the weights that such a node is sent once, or empty.
        aggregated: for such a node, the last round whose update has its report in it; -1 for none.
        rollbacks: the versions that the run was taken back to, in their order.
    """

    run: str
    plan: Payload
    settings: Payload = b""
    scales: Payload = b""
    updates: tuple[Payload, ...] = ()
    first: int = 0
    snapshot: Payload = b""
    last: Payload = b""
    submodel: Payload = b""
    static_weights: Payload = b""
    aggregated: int = -1
    rollbacks: tuple[int, ...] = ()

    def frames(self) -> dict[str, Payload]:
        named = {"plan": self.plan, **{name: getattr(self, name) for name in _OPTIONAL}}
        named |= {f"update-{number}": update for number, update in enumerate(self.updates)}
        description = {
            "run": self.run,
            "first": self.first,
            "updates": len(self.updates),
            "aggregated": self.aggregated,
            "rollbacks": list(self.rollbacks),
        }
        sent = {name: frame for name, frame in named.items() if frame}
        return {_DESCRIPTION: _encode(description), **sent}

    @property
    def message_bytes(self) -> int:
        """Bytes of the federation's messages in the order, which is all but what describes it."""
        described = (_DESCRIPTION, _SETTINGS)
        return sum(len(frame) for name, frame in self.frames().items() if name not in described)

    @staticmethod
    def of(frames: Frames) -> Order:
        """The order in ``frames``.

        Raises:
            MessageError: they are not one.
        """
        kinds = {"run": str, "first": int, "updates": int, "aggregated": int, "rollbacks": list}
        description = _decode(frames, kinds)
        run, first, count, aggregated, rollbacks = (description[name] for name in kinds)
        sound = 0 <= first < _VERSION_LIMIT and 0 <= count <= len(frames)
        sound = sound and -1 <= aggregated < _VERSION_LIMIT
        sound = sound and all(type(v) is int and 0 <= v < _VERSION_LIMIT for v in rollbacks)
        if not _RUN.fullmatch(run) or not sound:
            raise MessageError("the order's description is out of range")
        names = [f"update-{number}" for number in range(count)]
        for name in ("plan", *names):
            if name not in frames:
                raise MessageError(f"the order has no frame {name!r}")
        if unknown := frames.keys() - {_DESCRIPTION, "plan", *names, *_OPTIONAL}:
            raise MessageError(f"the order has a frame {min(unknown)[:40]!r} that none is due for")
        plan, updates = frames["plan"], tuple(frames[name] for name in names)
        optional = {name: frames.get(name, b"") for name in _OPTIONAL}
        return Order(
            run,
            plan,
            updates=updates,
            first=first,
            aggregated=aggregated,
            rollbacks=tuple(rollbacks),
            **optional,
        )


# What the description of an answer holds.
_ANSWER_KINDS = {"version": int, "failure": str, "train_seconds": float, "encode_seconds": float}


@dataclass(frozen=True)
class Answer:
    """Node to server.

    Attributes:
        version: of the node's replica; -1 if it does not know the task's settings.
        report: the encoded report, or empty.
        failure: why there is no report; empty if the node only lacks updates or settings.
        train_seconds, encode_seconds: as the node measured them.
    """

    version: int
    report: Payload = b""
    failure: str = ""
    train_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def lacks(self) -> bool:
        """Whether the node asks for what it lacks instead of reporting."""
        return not self.report and not self.failure

    def frames(self) -> dict[str, Payload]:
        description = {name: getattr(self, name) for name in _ANSWER_KINDS}
        description["failure"] = self.failure[:_TEXT_LIMIT]
        report = {"report": self.report} if self.report else {}
        return {_DESCRIPTION: _encode(description), **report}

    @staticmethod
    def of(frames: Frames) -> Answer:
        """The answer in ``frames``.

        Raises:
            MessageError: they are not one.
        """
        description = _decode(frames, _ANSWER_KINDS)
        if not -1 <= description["version"] < _VERSION_LIMIT:
            raise MessageError("the answer's version is out of range")
        if not math.isfinite(description["train_seconds"] + description["encode_seconds"]):
            raise MessageError("the answer's seconds are not finite")
        if frames.keys() - {_DESCRIPTION, "report"}:
            raise MessageError("the answer has a frame that is not a report")
        text = short_line(description.pop("failure"))
        return Answer(report=frames.get("report", b""), failure=text, **description)


def short_line(text: str) -> str:
    """Text from another side as it may be shown: short, printable and of one line."""
    return "".join(c if c.isprintable() else " " for c in text[:_TEXT_LIMIT])


def _encode(description: Mapping[str, Any]) -> bytes:
    return json.dumps(description, sort_keys=True, allow_nan=False).encode()


def _decode(frames: Frames, kinds: Mapping[str, type]) -> dict[str, Any]:
    data = frames.get(_DESCRIPTION, b"")
    try:
        description = parse_json(bytes(data)) if len(data) <= _DESCRIPTION_LIMIT else None
    except ValueError as error:
        raise MessageError("the description of what was sent is malformed") from error
    if not isinstance(description, dict) or {
        name: type(value) for name, value in description.items()
    } != dict(kinds):
        raise MessageError("the description of what was sent does not have the due fields")
    return description


@dataclass(frozen=True)
class TaskSettings:
    """What a node must know of a run.

    The server cannot name files on a node: which model folder and which data are used is the
    node's own configuration, and whether the model is the right one shows in its hash.

    Attributes:
        recipe: with the model and the data that the node itself names.
        clients: how many there are in the federation.
        base_hash: of the base model.
        scales_hash: the SHA-256 of the codec's scales; None where it has none.
        recipe_hash: see there.
    """

    recipe: Recipe
    clients: int
    base_hash: str
    scales_hash: str | None
    recipe_hash: str

    def check_scales(self, scales: bytes) -> None:
        """
        Raises:
            UserError: these are not the run's.
        """
        found = hashlib.sha256(scales).hexdigest() if scales else None
        if found != self.scales_hash:
            raise UserError("the scales that the server sent are not those of its settings.")


def encode_settings(
    recipe: Recipe, clients: int, base_hash: str, scales_hash: str | None = None
) -> bytes:
    """The settings of a run as the server sends them: the recipe without its data."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    settings = {
        "clients": clients,
        "base_hash": base_hash,
        "scales_hash": scales_hash,
        "dtype": recipe.model.dtype,
        "rounding": recipe.model.rounding,
        "template": recipe.data.template,
        "answers": recipe.data.answers,
        "max_length": recipe.data.max_length,
        "date": recipe.data.date and recipe.data.date.isoformat(),
        "tables": {name: tables[name] for name in _TABLES if name in tables},
    }
    return _canonical(settings)


def recipe_hash(settings: bytes) -> str:
    """What owners of nodes can agree on: SHA-256, in hex, of encoded settings but for the base
    model's hash, which has a limit of its own, that of the scales, which follow from the model, and
    the date, which is the day the run begins. They are written as JSON in UTF-8, keys sorted,
    without spaces, what is not ASCII escaped.

    Raises:
        ValueError: these are no settings.
    """
    table = parse_json(settings)
    known_later = {"base_hash": "", "scales_hash": None, "date": None}
    return hashlib.sha256(_canonical({**table, **known_later})).hexdigest()


def named(run: str, settings: bytes) -> str:
    """How clients and server call a run, where all must have been told the same of it.

    Args:
        run: its name.
        settings: encoded.
    """
    scales = parse_json(settings)["scales_hash"]
    with_scales = "" if scales is None else f" and scales {scales}"
    return f"{run} with settings {recipe_hash(settings)}{with_scales}"


def _canonical(settings: Mapping[str, Any]) -> bytes:
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_settings(data: bytes, model: str, device: str, train: str) -> TaskSettings:
    """The settings of a run as a node takes them.

    Args:
        data: what a server sent.
        model, device, train: the node's own.

    Raises:
        UserError: what the server sent are not settings.
    """
    try:
        if len(data) > _SETTINGS_LIMIT:
            raise ValueError("they are too long")
        sent = parse_json(data)
        check_keys(sent, _SETTINGS_KEYS)
        tables: dict[str, Any] = dict(sent["tables"])
        if unknown := tables.keys() - set(_TABLES):
            raise ValueError(f"there is no table {min(unknown)[:40]!r}")
        tables["model"] = {name: sent[name] for name in ("dtype", "rounding")}
        tables["model"] |= {"path": model, "device": device}
        tables["data"] = {name: sent[name] for name in _DATA}
        tables["data"] |= {"train": train}
        clients, base_hash, scales = sent["clients"], sent["base_hash"], sent["scales_hash"]
        if type(clients) is not int or not 0 < clients < 2**32:
            raise ValueError("the number of clients is out of range")
        if not isinstance(base_hash, str) or not _SHA256.fullmatch(base_hash):
            raise ValueError("the base model's hash is none")
        if scales is not None and not (isinstance(scales, str) and _SHA256.fullmatch(scales)):
            raise ValueError("the hash of the scales is none")
    except (ValueError, TypeError) as error:
        raise UserError(
            "the server's task settings are malformed; use one version everywhere."
        ) from error
    recipe = parse_recipe(tables, "the server's task settings")
    return TaskSettings(recipe, clients, base_hash, scales, recipe_hash(data))
