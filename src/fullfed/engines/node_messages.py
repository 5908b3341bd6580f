"""What passes between a server, a node's relay and its worker: orders, answers, the channel."""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, PositiveInt, TypeAdapter

from fullfed.config import Recipe, parse_recipe
from fullfed.errors import MessageError, UserError
from fullfed.files import write_atomically

Frames = Mapping[str, bytes]

_DESCRIPTION = "description"
_SETTINGS = "settings"
_OPTIONAL = (_SETTINGS, "snapshot", "last", "static_weights", "submodel")
_RUN = re.compile(r"[0-9a-f]{16}")
_TEXT_LIMIT = 500  # characters of a failure's text
_VERSION_LIMIT = 2**32
# Of the recipe, what nodes are told; a method with a codec of its own has no table for one.
_TABLES = ("federation", "local", "memory", "method", "codec", "aggregation")


@dataclass(frozen=True)
class Order:
    """Server to node.

    Attributes:
        run: names the run; 16 hexadecimal digits.
        plan: the encoded plan.
        settings: the encoded TaskSettings, or empty if the node has been told.
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
    plan: bytes
    settings: bytes = b""
    updates: tuple[bytes, ...] = ()
    first: int = 0
    snapshot: bytes = b""
    last: bytes = b""
    submodel: bytes = b""
    static_weights: bytes = b""
    aggregated: int = -1
    rollbacks: tuple[int, ...] = ()

    def frames(self) -> dict[str, bytes]:
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
        try:
            updates = tuple(frames[f"update-{number}"] for number in range(count))
            plan = frames["plan"]
        except KeyError as error:
            raise MessageError(f"the order has no frame {error}") from error
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
    report: bytes = b""
    failure: str = ""
    train_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def lacks(self) -> bool:
        """Whether the node asks for what it lacks instead of reporting."""
        return not self.report and not self.failure

    def frames(self) -> dict[str, bytes]:
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
        failure = description.pop("failure")[:_TEXT_LIMIT]
        text = "".join(c if c.isprintable() else " " for c in failure)
        return Answer(report=frames.get("report", b""), failure=text, **description)


def _encode(description: Mapping[str, Any]) -> bytes:
    return json.dumps(description, sort_keys=True, allow_nan=False).encode()


def _decode(frames: Frames, kinds: Mapping[str, type]) -> dict[str, Any]:
    try:
        description = json.loads(frames[_DESCRIPTION])
    except (KeyError, ValueError, RecursionError) as error:
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
    """

    recipe: Recipe
    clients: int
    base_hash: str


def encode_settings(recipe: Recipe, clients: int, base_hash: str) -> bytes:
    """The settings of a run as the server sends them: the recipe without its data."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    settings = {
        "clients": clients,
        "base_hash": base_hash,
        "dtype": recipe.model.dtype,
        "rounding": recipe.model.rounding,
        "template": recipe.data.template,
        "max_length": recipe.data.max_length,
        "date": recipe.data.date and recipe.data.date.isoformat(),
        "tables": {name: tables[name] for name in _TABLES if name in tables},
    }
    return json.dumps(settings, sort_keys=True).encode()


def decode_settings(data: bytes, model: str, device: str, train: str) -> TaskSettings:
    """The settings of a run as a node takes them.

    Args:
        data: what a server sent.
        model, device, train: the node's own.

    Raises:
        UserError: what the server sent are not settings.
    """
    try:
        sent = json.loads(data)
        tables: dict[str, Any] = {
            name: table for name, table in sent["tables"].items() if name in _TABLES
        }
        tables["model"] = {name: sent[name] for name in ("dtype", "rounding")}
        tables["model"] |= {"path": model, "device": device}
        tables["data"] = {name: sent[name] for name in ("template", "max_length", "date")}
        tables["data"] |= {"train": train}
        clients, base_hash = int(sent["clients"]), str(sent["base_hash"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            "the server's task settings are malformed; use one version everywhere."
        ) from error
    return TaskSettings(parse_recipe(tables, "the server's task settings"), clients, base_hash)


# Before the frames of an exchange goes a list of their names and sizes in bytes.
_SIZES = TypeAdapter(list[tuple[str, PositiveInt]], config=ConfigDict(strict=True))
_SIZES_LIMIT = 1 << 20  # bytes of the list
_TOTAL_LIMIT = 1 << 36  # bytes of an exchange: 64 GiB, more than any model trained in full here


class ChannelError(Exception):
    """The other side is not there, went away, or does not follow the protocol."""


def serve(address_file: Path, handle: Callable[[Frames], Frames]) -> None:
    """Answer one request after another, for ever.

    Args:
        address_file: says where the socket is, and the secret; readable by this user alone.
        handle: from the frames of a request to those of its answer.
    """
    _clear(address_file)
    secret = secrets.token_bytes(32)
    with (
        tempfile.TemporaryDirectory(prefix="fullfed-", ignore_cleanup_errors=True) as folder,
        Listener(f"{folder}/worker", "AF_UNIX", backlog=8, authkey=secret) as listener,
    ):
        about = {"folder": folder, "secret": secret.hex()}
        write_atomically(address_file, json.dumps(about).encode(), mode=0o600)
        while True:
            with (
                suppress(OSError, EOFError, ValueError, AuthenticationError, ChannelError),
                listener.accept() as connection,
            ):
                _send(connection, handle(_receive(connection)))


def _clear(address_file: Path) -> None:
    """Remove the socket that a killed worker left behind."""
    with suppress(OSError, ValueError, KeyError):
        folder = Path(json.loads(address_file.read_bytes())["folder"])
        if folder.name.startswith("fullfed-"):
            shutil.rmtree(folder, ignore_errors=True)


def ask(address_file: Path, frames: Frames) -> dict[str, bytes]:
    """Send one request and wait for its answer.

    Raises:
        ChannelError: no worker answers at the address, or it went away meanwhile.
    """
    try:
        about = json.loads(address_file.read_bytes())
        address, secret = f"{about['folder']}/worker", bytes.fromhex(about["secret"])
        with Client(address, "AF_UNIX", authkey=secret) as connection:
            _send(connection, frames)
            return _receive(connection)
    except (OSError, EOFError, ValueError, KeyError, AuthenticationError) as error:
        raise ChannelError("the node's worker does not answer") from error


def _send(connection: Connection, frames: Frames) -> None:
    connection.send_bytes(_SIZES.dump_json([(name, len(frames[name])) for name in frames]))
    for frame in frames.values():
        connection.send_bytes(frame)


def _receive(connection: Connection) -> dict[str, bytes]:
    sizes = _SIZES.validate_json(connection.recv_bytes(_SIZES_LIMIT))
    if sum(size for _, size in sizes) > _TOTAL_LIMIT:
        raise ChannelError("what follows is too long")
    return {name: connection.recv_bytes(size) for name, size in sizes}
