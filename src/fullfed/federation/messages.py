"""The three messages of a federation and what is checked of them.

A message is named tensors plus plain values; wire.py makes bytes of it. Nothing in a message is
executed, and nothing is trusted before it is decoded and checked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from fullfed.errors import MessageError as MessageError
from fullfed.federation.wire import Value as Value
from fullfed.federation.wire import join, split, tensors_of
from fullfed.payloads import Payload
from fullfed.sketch.checks import is_finite
from fullfed.strict_json import check_keys

VERSION = "version"  # the value of a plan that names the model version to start from
SKIPPED = "skipped"  # the value that marks an update which changes nothing: of how many in a row


@dataclass(frozen=True)
class Plan:
    """Server to one client: what to do in this visit.

    Attributes:
        round: number of the round, from 0, that the report is for.
        client: number of the client in the federation.
        values, tensors: what the method needs beyond the recipe.
    """

    kind: ClassVar[str] = "plan"
    round: int
    client: int
    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """The model version to start from: the round's own, unless the plan names an older one.

        Raises:
            MessageError: what it names is none.
        """
        version = self.values.get(VERSION, self.round)
        if type(version) is not int or version < 0:
            raise MessageError("the plan does not name a model version")
        return version


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


_KINDS: tuple[type[Plan | Report | Update], ...] = (Plan, Report, Update)


def encode(message: Plan | Report | Update) -> Payload:
    """The bytes of a message; equal messages have equal bytes."""
    *said, tensors = (getattr(message, f.name) for f in fields(message))
    return join([_KINDS.index(type(message)), *said], tensors)


def decode(data: Payload, expected: type[Message], limit: int | None = None) -> Message:
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
    header, body = split(data)
    said = _by_field(header, expected)
    _check_fields(said, expected)
    tensors = tensors_of(said.pop("tensors"), body)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise MessageError(
                f"the message's tensor {name[:40]!r} holds a number that is not finite"
            )
    return expected(tensors=tensors, **said)


def fields_of(data: Payload, expected: type[Message]) -> dict[str, Any]:
    """What a message says in its fields, tensors apart; nothing of it is checked but its form.

    Raises:
        MessageError: it is malformed, or of another protocol or kind.
    """
    header, _ = split(data)
    return _by_field(header, expected)


def _by_field(header: list[Any], expected: type[Message]) -> dict[str, Any]:
    kind, *said = header
    if type(kind) is not int or kind != _KINDS.index(expected):
        raise MessageError(f"the message is not a {expected.kind}")
    names = [f.name for f in fields(expected)]
    if len(said) != len(names):
        raise MessageError(f"the {expected.kind} does not have the fields {', '.join(names)}")
    return dict(zip(names, said, strict=True))


def _check_fields(said: Mapping[str, Any], expected: type[Message]) -> None:
    for name, value in said.items():
        counted = name not in ("loss", "values", "tensors")
        if counted and not (type(value) is int and 0 <= value < 2**32):
            raise MessageError(f"the {expected.kind}'s field {name!r} is not a 32-bit number")
    if "loss" in said and not is_finite_number(said["loss"]):
        raise MessageError(f"the {expected.kind}'s field 'loss' is not a finite number")
    if not isinstance(said["values"], dict):
        raise MessageError(f"the {expected.kind}'s field 'values' is not a table")


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
