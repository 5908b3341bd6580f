"""The three messages of a federation and their bytes.

A message is named tensors plus plain values, encoded in the safetensors format:
the values travel as one JSON string in the header's metadata. Nothing in a
message is executed, and nothing is trusted before it is decoded and checked.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fullfed.errors import MessageError as MessageError
from fullfed.sketch.checks import is_finite
from fullfed.strict_json import check_keys, parse_json

Value = bool | int | float | str | list["Value"] | dict[str, "Value"]

PROTOCOL = 1
SKIPPED = "skipped"  # the value that marks an update which changes nothing: of how many in a row
HEADER_LIMIT = 16 << 20
_METADATA = "fullfed"
_DTYPES = {
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


@dataclass(frozen=True)
class Plan:
    """Server to one client: what to do in this visit.

    Attributes:
        round: number of the round, from 0; also the model version to start from.
        client: number of the client in the federation.
        values, tensors: what the method needs beyond the recipe.
    """

    kind: ClassVar[str] = "plan"
    round: int
    client: int
    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Client to server: what came of a plan.

    Attributes:
        round, client: those of the plan.
        samples: training samples the client used; its weight in the aggregation.
        loss: mean training loss over the visit, nats per answer token.
        values, tensors: what the method makes of the change.
    """

    kind: ClassVar[str] = "report"
    round: int
    client: int
    samples: int
    loss: float
    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """Server to everyone: takes every replica from version ``round`` to ``round + 1``."""

    kind: ClassVar[str] = "update"
    round: int
    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """The last of how many rounds in a row it is that left the model as it was; 0 if it
        changes the model."""
        return int(number(self, SKIPPED)) if SKIPPED in self.values else 0


Message = TypeVar("Message", Plan, Report, Update)


def encode(message: Plan | Report | Update) -> bytes:
    """The bytes of a message; equal messages have equal bytes."""
    body = {f.name: getattr(message, f.name) for f in fields(message) if f.name not in ("tensors",)}
    header = {"protocol": PROTOCOL, "kind": message.kind, **body}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    tensors = {name: t.detach().cpu().contiguous() for name, t in message.tensors.items()}
    return safetensors.torch.save(tensors, metadata={_METADATA: text})


def decode(data: bytes, expected: type[Message], limit: int | None = None) -> Message:
    """The message in ``data``.

    Args:
        data: what ``encode`` produced, or what a stranger claims it did.
        expected: the kind of message that is due.
        limit: the most bytes it may have; None for what a log holds, or a client's own server sent.

    Raises:
        MessageError: it is too long, malformed, of another protocol or kind, or holds a
            number that is not finite.
    """
    if limit is not None and len(data) > limit:
        raise MessageError(f"the message has {len(data)} bytes, more than the {limit} allowed")
    header = header_of(data)
    if header.pop("protocol", None) != PROTOCOL:
        raise MessageError(f"the message does not follow protocol {PROTOCOL}")
    if header.pop("kind", None) != expected.kind:
        raise MessageError(f"the message is not a {expected.kind}")
    try:
        loaded = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise MessageError("the message's tensors are malformed") from error
    tensors = dict(sorted(loaded.items()))  # they come in a random order, and sums are to have one
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise MessageError(f"the message's tensor {name!r} is of {tensor.dtype}")
        if not is_finite(tensor):
            raise MessageError(f"the message's tensor {name!r} holds a number that is not finite")
    return expected(tensors=tensors, **_checked_fields(header, expected))


def header_of(data: bytes) -> dict[str, Any]:
    """What a message says of itself, without its tensors; nothing of it is checked but its form.

    Raises:
        MessageError: it has no header.
    """
    if len(data) < 8:
        raise MessageError("the message is shorter than its header")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(HEADER_LIMIT, len(data) - 8):
        raise MessageError("the message is shorter than its header says")
    try:
        header = read_metadata(data[8 : 8 + length])
    except ValueError as error:
        raise MessageError("the message's header is malformed") from error
    return header


_TENSOR_KEYS = ("dtype", "shape", "data_offsets")


def read_metadata(header: bytes) -> dict[str, Any]:
    """What a message or a snapshot says of itself, in the header of its safetensors format.

    Raises:
        ValueError: the header has not the one meaning that it should have.
    """
    entries = parse_json(header)
    if not isinstance(entries, dict) or not isinstance(entries.get("__metadata__"), dict):
        raise ValueError("it is not a safetensors header with metadata")
    metadata = entries.pop("__metadata__")
    check_keys(metadata, [_METADATA])
    for entry in entries.values():
        if not isinstance(entry, dict):
            raise ValueError("a tensor is not described by a table")
        check_keys(entry, _TENSOR_KEYS)
    if not isinstance(metadata[_METADATA], str):
        raise ValueError("its metadata are not text")
    about = parse_json(metadata[_METADATA])
    if not isinstance(about, dict):
        raise ValueError("its metadata are not a table")
    return about


def _checked_fields(header: dict[str, Any], expected: type[Message]) -> dict[str, Any]:
    names = {f.name for f in fields(expected)} - {"tensors"}
    if set(header) != names:
        raise MessageError(
            f"the {expected.kind} does not have exactly the fields {', '.join(sorted(names))}"
        )
    for name in names - {"values", "loss"}:
        if type(header[name]) is not int or not 0 <= header[name] < 2**32:
            raise MessageError(f"the {expected.kind}'s field {name!r} is not a 32-bit number")
    if "loss" in names and not is_finite_number(header["loss"]):
        raise MessageError(f"the {expected.kind}'s field 'loss' is not a finite number")
    if not isinstance(header["values"], dict):
        raise MessageError(f"the {expected.kind}'s field 'values' is not a table")
    return header


def check_values(message: Plan | Report | Update, due: Iterable[str]) -> None:
    """
    Raises:
        MessageError: the message does not hold exactly the values that are due.
    """
    try:
        check_keys(message.values, due)
    except ValueError as error:
        raise MessageError(f"the {message.kind}'s values are not those due: {error}") from error


def number(message: Plan | Report | Update, name: str) -> float:
    """The finite number called ``name`` among a message's values.

    Raises:
        MessageError: it is missing or not a number.
    """
    value = message.values.get(name)
    if not is_finite_number(value):
        raise MessageError(f"the {message.kind}'s value {name!r} is not a finite number")
    return float(value)  # type: ignore[arg-type]


def numbers(message: Plan | Report | Update, name: str) -> list[float]:
    """The finite numbers in the list called ``name`` among a message's values.

    Raises:
        MessageError: it is missing, or not a list of numbers.
    """
    found = message.values.get(name)
    if not isinstance(found, list) or not all(map(is_finite_number, found)):
        raise MessageError(f"the {message.kind}'s value {name!r} is not a list of finite numbers")
    return [float(value) for value in found]  # type: ignore[arg-type]


def is_finite_number(value: object) -> bool:
    """Whether a value is a number that a float can hold; true and false are none."""
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return type(value) is float and math.isfinite(value)
