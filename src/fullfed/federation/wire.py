"""The bytes of messages: the protocol's number, a header in MessagePack, tensors as in memory.

docs/messages.md has the format. A message has one form only: what is read is written again and must
come out the same, so that equal keys, long forms of numbers and another order are refused.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping
from itertools import accumulate, chain
from typing import Any

import msgpack
import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.tensors import Computed
from fullfed.payloads import Payload, is_large, joined

Value = bool | int | float | str | bytes | list["Value"] | dict[str, "Value"]

PROTOCOL = 2
HEADER_LIMIT = 8 << 20  # bytes of a header
_MOST = 1 << 19  # values in one, and keys, so that a stranger's is not long to look through
_DEEPEST = 32  # lists and tables, the header too, that a value may lie in
_DIMENSIONS = 16  # of a tensor, at most
_DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_LISTS = frozenset([*range(0x90, 0xA0), 0xDC, 0xDD])  # first bytes of MessagePack's arrays ...
_TABLES = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])  # ... and maps
_SHORT, _LONG = msgpack.Packer(use_single_float=True), msgpack.Packer()

Kind = tuple[torch.dtype, torch.Size]  # of a tensor


def join(header: list[Value], tensors: Mapping[str, Tensor]) -> Payload:
    """The bytes of a header and tensors, of which one is looked at at a time.

    Raises:
        ValueError: ``split`` or ``tensors_of`` would refuse them.
        UserError: there is no room for them.
    """
    kinds: dict[str, Value] = {}
    nbytes = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.ndim > _DIMENSIONS:
            raise ValueError(f"a tensor has more than {_DIMENSIONS} dimensions")
        kinds[name] = [_DTYPES.index(tensor.dtype), *tensor.shape]
        nbytes += tensor.numel() * tensor.element_size()
    begin = _framed([*header, kinds])
    rest = (_memory(tensors[name].detach().cpu().contiguous()) for name in kinds)
    return joined(chain([begin], rest), len(begin) + nbytes)


def split(data: Payload) -> tuple[list[Any], memoryview]:
    """The header, with the kinds of tensors as its last item, and the bytes of the tensors.

    Raises:
        MessageError: it is of another protocol, or has no header or another form of it.
    """
    if data[:1] != bytes([PROTOCOL]):
        earlier = "is an earlier fullfed's and " if data[8:9] == b"{" else ""  # safetensors
        raise MessageError(f"the message {earlier}does not follow protocol {PROTOCOL}")
    start, end = _header_place(data)
    try:
        header = _unpacked(data[start:end])
        clean = type(header) is list and len(header) > 1 and _framed(header) == data[:end]
    except (ValueError, msgpack.OutOfData) as error:
        raise MessageError("the message's header is malformed") from error
    if not clean:
        raise MessageError("the message's header is malformed")
    return header, memoryview(data)[end:]


def tensors_of(kinds: Any, body: memoryview) -> Mapping[str, Tensor]:
    """The tensors, in memory of their own, in the order of their names. Those of a large message
    are copied from its bytes each time that they are looked at, and not kept.

    Args:
        kinds: the last item of a header.
        body: the bytes after it.

    Raises:
        MessageError: a kind is none, or they do not take as many bytes as there are.
    """
    if type(kinds) is not dict:
        raise MessageError("the message's tensors are malformed")
    known = {name: _kind(name, kind) for name, kind in kinds.items()}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in known.items()}
    if (due := sum(sizes.values())) != len(body):
        raise MessageError(f"the message's tensors have {len(body)} bytes, not {due}")
    ends = dict(zip(known, accumulate(sizes.values()), strict=True))

    def copied(name: str) -> Tensor:
        return _copied(name, *known[name], body[ends[name] - sizes[name] : ends[name]])

    if is_large(len(body)):
        return Computed(known, copied)
    return {name: copied(name) for name in known}


def _header_place(data: Payload) -> tuple[int, int]:
    """Where the header begins and ends."""
    reader = msgpack.Unpacker(max_buffer_size=5)  # and no list or text is longer
    reader.feed(data[1:6])
    try:
        length = reader.unpack()
    except (ValueError, msgpack.OutOfData) as error:
        raise MessageError("the message's header has no length") from error
    start = 1 + reader.tell()
    if type(length) is not int or not 0 < length <= min(HEADER_LIMIT, len(data) - start):
        raise MessageError("the message is shorter than its header says")
    return start, start + length


def _unpacked(packed: Payload) -> Any:
    """The value that bytes begin with, in whatever form."""
    reader = msgpack.Unpacker(max_buffer_size=len(packed), max_ext_len=0)
    reader.feed(packed)
    return _next(packed, reader, iter(range(_MOST)))


def _next(packed: Payload, reader: msgpack.Unpacker, room: Iterator[int], depth: int = 0) -> Any:
    """The next value.

    Lists and tables are read item by item. By itself msgpack makes room for as many items as a list
    says it has before it sees one, and makes all values before they can be counted.

    Args:
        room: as for ``_packed``.

    Raises:
        ValueError, msgpack.OutOfData: there is none, or there are too many.
    """
    _take_room(room, depth)
    first = packed[reader.tell()] if reader.tell() < len(packed) else None
    if first in _LISTS:
        count = reader.read_array_header()
        return [_next(packed, reader, room, depth + 1) for _ in range(count)]
    if first in _TABLES:
        table: dict[str, Any] = {}
        for _ in range(reader.read_map_header()):
            key = _next(packed, reader, room, depth + 1)
            if type(key) is not str:
                raise ValueError("a key is not text")
            table[key] = _next(packed, reader, room, depth + 1)
        return table
    return reader.unpack()


def _take_room(room: Iterator[int], depth: int) -> None:
    if depth > _DEEPEST or next(room, None) is None:
        raise ValueError("it is nested too deeply, or too much")


def _framed(header: list[Value]) -> bytes:
    """What stands before the tensors."""
    packed = _packed(header, iter(range(_MOST)))
    if len(packed) > HEADER_LIMIT:
        raise ValueError(f"a header has {len(packed)} bytes, more than {HEADER_LIMIT}")
    return b"".join([bytes([PROTOCOL]), _LONG.pack(len(packed)), packed])


def _packed(value: Value, room: Iterator[int], depth: int = 0) -> bytes:
    """A value in the one form that it has.

    Args:
        room: an item for each value and key that a header may still have.

    Raises:
        ValueError: it is none, or there are too many.
    """
    _take_room(room, depth)
    match value:
        case bool() | int() | str() | bytes():
            return bytes(_LONG.pack(value))
        case float():
            return _packed_float(value)
        case list():
            items = [_packed(item, room, depth + 1) for item in value]
            return b"".join([_LONG.pack_array_header(len(items)), *items])
        case dict():
            if not all(type(key) is str for key in value):
                raise ValueError("a key is not text")
            parts = chain.from_iterable((k, value[k]) for k in sorted(value))
            items = [_packed(part, room, depth + 1) for part in parts]
            return b"".join([_LONG.pack_map_header(len(value)), *items])
    raise ValueError(f"{type(value)} is not a message's")


def _packed_float(value: float) -> bytes:
    """In 32 bits where these are exact."""
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    exact = ctypes.c_float(value).value == value
    return bytes((_SHORT if exact else _LONG).pack(value))


def _kind(name: str, kind: Any) -> Kind:
    """What a header says of a tensor.

    Raises:
        MessageError: there is no such tensor.
    """
    whole = type(kind) is list and all(type(n) is int and n >= 0 for n in kind)
    if not whole or not 1 <= len(kind) <= 1 + _DIMENSIONS or kind[0] >= len(_DTYPES):
        raise MessageError(f"the message's tensor {name[:40]!r} is of an impossible kind")
    code, *shape = kind
    if math.prod(max(length, 1) for length in shape) >= 2**63:
        raise MessageError(f"the message's tensor {name[:40]!r} is of an impossible shape")
    return _DTYPES[code], torch.Size(shape)


def _copied(name: str, dtype: torch.dtype, shape: torch.Size, part: memoryview) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    _memory(tensor)[:] = part
    if dtype == torch.bool and part.nbytes and tensor.view(torch.uint8).max() > 1:
        raise MessageError(f"the message's tensor {name[:40]!r} is neither true nor false")
    return tensor


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, where they are."""
    return tensor.view(-1).view(torch.uint8).numpy().data
