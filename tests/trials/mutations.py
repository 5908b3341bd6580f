"""Spoils honest bytes: their structure (JSON, safetensors) or the bytes as they are.

Every mutation follows from a ``random.Random``, so that a message is known by its number.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

METADATA = "__metadata__"
TYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "C64",
    "?",
]
LITERALS = [
    *(
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "2",
        "0.5",
        "-0.0",
        "7",
        "1e308",
        "-1e308",
        "5e-324",
    ),
    *("1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e39", "1e100", "4294967295"),
    *("4294967296", "9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "1" * 5000),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"../../etc"', '"all"', '"0"', '"' + "f" * 3000 + '"'),
    *("[]", "{}", "[0]", "[0, 0]", "[null]", '{"a": 1}', "[" * 50 + "]" * 50),
    *("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "", "]", '"'),
]
NUMBERS = [
    *(0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e10, 1e20, 1e30, 3.4e38, -3.4e38),
    *(float("nan"), float("inf"), float("-inf")),
]


@dataclass(frozen=True)
class Raw:
    """What stands as it is: JSON text, or bytes of MessagePack."""

    text: Any


Table = list[tuple[Any, Any]]  # of a JSON object: in its order, and with keys that may be equal


def parse(text: str) -> Any:
    """JSON whose objects are ``Pairs``."""
    return json.loads(text, object_pairs_hook=Pairs)


class Pairs(list[tuple[Any, Any]]):
    """A JSON object as pairs."""


def dump(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{dump(key)}:{dump(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


def _nodes(value: Any) -> list[tuple[Any, int]]:
    """(container, place) of everything inside a value."""
    found: list[tuple[Any, int]] = []
    if isinstance(value, list):
        for place, item in enumerate(value):
            found.append((value, place))
            found += _nodes(item[1] if isinstance(value, Pairs) else item)
    return found


def spoil_json(text: str, random: Random) -> str:
    """One change of a JSON text."""
    value = parse(text)
    return dump(value) if spoil_value(value, LITERALS, random) else random.choice(LITERALS)


def spoil_value(value: Any, literals: Sequence[Any], random: Random) -> bool:
    """One change inside a list or a table; False if there is nothing in it.

    Args:
        literals: what may stand in an item's place.
    """
    nodes = _nodes(value)
    if not nodes:
        return False
    container, place = random.choice(nodes)
    if not isinstance(container, Pairs):
        _spoil_list(container, place, literals, random)
        return True
    key, item = container[place]
    match random.randrange(7):
        case 0:
            del container[place]
        case 1:
            container.append((key, Raw(random.choice(literals))))
        case 2:
            container.insert(0, (key, item))
        case 3:
            container[place] = (random.choice(["more", "", key.upper() + "x", "__proto__"]), item)
        case 4:
            other = random.randrange(len(container))
            container[place], container[other] = (
                (key, container[other][1]),
                (container[other][0], item),
            )
        case _:
            container[place] = (key, _near(item, literals, random))
    return True


def _spoil_list(items: list[Any], place: int, literals: Sequence[Any], random: Random) -> None:
    match random.randrange(4):
        case 0:
            del items[place]
        case 1:
            items.insert(place, items[place])
        case _:
            items[place] = _near(items[place], literals, random)


def _near(item: Any, literals: Sequence[Any], random: Random) -> Any:
    """Something else; of a number often one beside it."""
    if isinstance(item, int | float) and not isinstance(item, bool) and random.random() < 0.4:
        return random.choice([item + 1, item - 1, -item, item * 2, item * 1000, float(item)])
    return Raw(random.choice(literals))


def spoil_bytes(data: bytes, random: Random) -> bytes:
    """Bytes flipped, cut, doubled or strewn in."""
    if not data:
        return random.randbytes(random.randrange(1, 9))
    place, end = sorted((random.randrange(len(data)), random.randrange(len(data) + 1)))
    match random.randrange(7):
        case 0:
            return data[:place]
        case 1:
            return data + random.randbytes(random.randrange(1, 9))
        case 2:
            return data[:place] + data[end:]
        case 3:
            return data[:end] + data[place:]
        case 4:
            return data[:place] + random.randbytes(random.randrange(1, 9)) + data[place:]
        case _:
            changed = bytearray(data)
            for _ in range(random.choice([1, 1, 1, 2, 8])):
                changed[random.randrange(len(data))] ^= random.randrange(1, 256)
            return bytes(changed)


def spoil_snapshot(data: bytes, random: Random) -> bytes:
    """Safetensors with JSON in its header."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = parse(data[8 : 8 + length].decode()), bytearray(data[8 + length :])
    tensors = [place for place, (name, _) in enumerate(header) if name != METADATA]
    kind = random.random()
    if kind < 0.35:
        _spoil_about(header, random)
    elif kind < 0.6 and tensors:
        _spoil_numbers(header[random.choice(tensors)][1], body, random)
    elif kind < 0.8 and tensors:
        _spoil_tensor(header, random.choice(tensors), random)
    elif kind < 0.85:
        claimed = random.choice([0, length - 1, length + 1, length * 2, 1 << 24, 1 << 63])
        return struct.pack("<Q", claimed) + data[8:]
    else:
        return spoil_bytes(data, random)
    text = dump(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def _spoil_about(header: Any, random: Random) -> None:
    """What the snapshot says of itself, and the table around it."""
    for place, (name, item) in enumerate(header):
        if name == METADATA:
            if random.random() < 0.1:
                header[place] = (name, Raw(spoil_json(dump(item), random)))
                return
            [(key, text)] = item
            header[place] = (name, Pairs([(key, spoil_json(text, random))]))
            return


def _spoil_numbers(entry: Any, body: bytearray, random: Random) -> None:
    """Other numbers in a tensor, or other bits."""
    about = dict(entry)
    begin, end = about["data_offsets"]
    if begin == end:
        return
    size = {"F32": 4, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "BF16": 2, "F16": 2}
    places = range(begin, end, size.get(about["dtype"], 1))
    spoil_places(body, places, about["dtype"], random)


def spoil_places(body: bytearray, places: range, dtype: str, random: Random) -> None:
    """Another number in one of the places, or in all, or other bits."""
    chosen = places if random.random() < 0.2 else [random.choice(places)]
    number = random.choice(NUMBERS)
    for place in chosen:
        if dtype == "F32" and random.random() < 0.8:
            body[place : place + 4] = struct.pack("<f", number)
        elif dtype == "BF16" and random.random() < 0.8:
            body[place : place + 2] = struct.pack("<f", number)[2:]
        else:
            body[place : place + places.step] = random.randbytes(places.step)


def _spoil_tensor(header: Any, place: int, random: Random) -> None:
    """A tensor's name, type, shape or place."""
    name, entry = header[place]
    shape = next(item for key, item in entry if key == "shape")
    changes: list[Callable[[], None]] = [
        lambda: header.__delitem__(place),
        lambda: header.insert(place, (name, entry)),
        lambda: header.__setitem__(place, (name + "x", entry)),
        lambda: header.append(("more", Pairs(entry))),
        lambda: _set(entry, "dtype", random.choice(TYPES)),
        lambda: _set(entry, "shape", [*shape, 1]),
        lambda: _set(entry, "shape", [1, *shape]),
        lambda: _set(entry, "shape", shape[::-1]),
        lambda: _set(entry, "shape", [-n for n in shape] or [0]),
        lambda: _set(entry, "shape", [n * 2 for n in shape]),
        lambda: _set(entry, "shape", Raw(random.choice(LITERALS))),
        lambda: _set(
            entry, "data_offsets", Raw(random.choice(["[0,4]", "[4,0]", "[0]", "[-4,4]"]))
        ),
        lambda: entry.append(("more", 1)),
        lambda: entry.append(entry[0]),
    ]
    random.choice(changes)()
    if random.random() < 0.2 and len(header) > 2:
        one, other = (random.randrange(len(header)) for _ in range(2))
        header[one], header[other] = (
            (header[one][0], header[other][1]),
            (header[other][0], header[one][1]),
        )


def _set(entry: Any, key: str, value: Any) -> None:
    for place, (name, _) in enumerate(entry):
        if name == key:
            entry[place] = (key, value)


def spoil_frames(
    frames: Mapping[str, bytes],
    spoil: Mapping[str, Callable[[bytes, Random], bytes]],
    random: Random,
) -> dict[str, bytes]:
    """One frame of an exchange spoilt as its kind is, or left out, added or exchanged.

    Args:
        spoil: by the beginning of a frame's name; otherwise its bytes are spoilt.
    """
    names, changed = list(frames), dict(frames)
    name, other = random.choice(names), random.choice(names)
    match random.randrange(12):
        case 0:
            del changed[name]
        case 1:
            changed["more"] = frames[name]
        case 2:
            changed[name], changed[other] = frames[other], frames[name]
        case _:
            kinds = [own for start, own in spoil.items() if name.startswith(start)]
            changed[name] = (kinds or [spoil_bytes])[0](frames[name], random)
    return changed


def spoil_text(data: bytes, random: Random) -> bytes:
    """A JSON document, as JSON mostly."""
    if random.random() < 0.15:
        return spoil_bytes(data, random)
    return spoil_json(data.decode(), random).encode("utf-8", "surrogatepass")
