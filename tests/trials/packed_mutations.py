"""Spoils honest messages: their header in MessagePack, their tensors, or the bytes as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack

from fullfed.federation.wire import _DTYPES, _MOST, _packed
from trials.mutations import Pairs, Raw, spoil_bytes, spoil_places, spoil_value

NAMES = ("F32", "F64", "BF16", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")  # as their codes are


def packed(value: Any) -> bytes:
    return _packed(value, iter(range(_MOST)))


LITERALS = [
    *map(packed, [True, False, 0, 1, -1, 2, 7, 2**32 - 1, 2**32, 2**63, -(2**63), 2**64 - 1]),
    *map(packed, [0.5, -0.0, 1e39, 1e100, 1e308, -1e308, 5e-324, [], {}, [0], [0, 0], {"a": 1}]),
    *map(packed, ["", "x", "../../etc", "all", "0", "f" * 3000, b"", bytes(8), b"\xff" * 300]),
    *map(msgpack.packb, [None, math.nan, math.inf, -math.inf, 0.5, msgpack.ExtType(1, b"")]),
    *(b"\xcc\x01", b"\xd3" + bytes(8), b"\xca\x7f\xc0\x00\x00", b"\xa3\xed\xa0\x80", b"\xa1\xff"),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc1", b""),
    *(b"\x91" * 50 + b"\x90", b"\x91" * 3000 + b"\x90", b"\x81\xa1a" * 3000 + b"\x01"),
]


def spoil_message(data: bytes, random: Random) -> bytes:
    """One change of a message."""
    header, start = _opened(data)
    body, kinds = bytearray(data[start:]), header[-1]
    kind = random.random()
    if kind < 0.35:
        said = header[:-1]
        spoil_value(said, LITERALS, random)
        header = [*said, kinds]
    elif kind < 0.6 and body:
        _spoil_numbers(kinds, body, random)
    elif kind < 0.8 and kinds:
        _spoil_kind(kinds, random.randrange(len(kinds)), random)
    elif kind < 0.85:
        claimed = random.choice([0, 1, start - 1, start + 1, start * 2, 1 << 24, 1 << 63])
        return data[:1] + msgpack.packb(claimed) + data[2:]
    else:
        return spoil_bytes(data, random)
    packed = _dumped(header, in_order=random.random() < 0.9)
    return data[:1] + msgpack.packb(len(packed)) + packed + bytes(body)


def _opened(data: bytes) -> tuple[list[Any], int]:
    """The header, with tables as pairs, and where the tensors begin."""
    reader = msgpack.Unpacker(object_pairs_hook=Pairs)
    reader.feed(data[1:])
    length = reader.unpack()
    start = 1 + reader.tell()
    return reader.unpack(), start + length


def _dumped(value: Any, in_order: bool) -> bytes:
    """MessagePack.

    Args:
        in_order: whether keys are sorted, as they should be.
    """
    if isinstance(value, Raw):
        return bytes(value.text)
    if isinstance(value, Pairs):
        pairs = sorted(value, key=lambda pair: str(pair[0])) if in_order else value
        items = [_dumped(part, in_order) for pair in pairs for part in pair]
        return b"".join([msgpack.Packer().pack_map_header(len(value)), *items])
    if isinstance(value, list):
        items = [_dumped(item, in_order) for item in value]
        return b"".join([msgpack.Packer().pack_array_header(len(value)), *items])
    try:
        return packed(value)
    except (ValueError, OverflowError):  # by a change it has become too large for a message
        return bytes(msgpack.packb(None))


def _spoil_numbers(kinds: Pairs, body: bytearray, random: Random) -> None:
    """Other numbers in a tensor, or other bits."""
    at, known = 0, []
    for _, (code, *shape) in kinds:
        width = _DTYPES[code].itemsize
        end = at + math.prod(shape) * width
        known.append((range(at, end, width), NAMES[code]))
        at = end
    places, dtype = random.choice([(places, dtype) for places, dtype in known if places])
    spoil_places(body, places, dtype, random)


def _spoil_kind(kinds: Pairs, place: int, random: Random) -> None:
    """A tensor's name, type or shape."""
    name, (code, *shape) = kinds[place]
    changes: list[Callable[[], Any]] = [
        lambda: name,
        lambda: [random.randrange(-1, 12), *shape],
        lambda: [code, *shape, 1],
        lambda: [code, 1, *shape],
        lambda: [code, *shape[::-1]],
        lambda: [code, *(-n for n in shape)],
        lambda: [code, *(n * 2 for n in shape)],
        lambda: [code, *shape, 0, 2**62],
        lambda: [code, *shape, 2**32, 2**32],
        lambda: [code, *[1] * random.choice([9, 16, 17, 40]), *shape],
        lambda: [float(code), *shape],
        lambda: Raw(random.choice(LITERALS)),
    ]
    match random.randrange(8):
        case 0:
            del kinds[place]
        case 1:
            kinds.append((name, kinds[place][1]))
        case 2:
            kinds[place] = (name + "x", kinds[place][1])
        case 3:
            kinds.append(("more", [code, *shape]))
        case 4 if len(kinds) > 1:
            other = random.randrange(len(kinds))
            one, two = kinds[place], kinds[other]
            kinds[place], kinds[other] = (one[0], two[1]), (two[0], one[1])
        case _:
            kinds[place] = (name, random.choice(changes)())
