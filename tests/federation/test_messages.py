"""Messages: what is sent is what arrives, and what is hostile never gets further than decode."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fullfed.federation.messages import (
    MessageError,
    Plan,
    Report,
    Update,
    decode,
    encode,
    number,
)

NUMBER = st.integers(0, 2**32 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALAR = st.booleans() | st.integers() | FINITE | st.text(max_size=8)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
VALUES = st.dictionaries(st.text(max_size=8), VALUE, max_size=4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    numbers = draw(
        st.lists(st.integers(0, 255), min_size=math.prod(shape), max_size=math.prod(shape))
    )
    return torch.tensor(numbers).reshape(shape).to(draw(st.sampled_from(DTYPES)))


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
TENSORS = st.dictionaries(NAMES, tensors(), max_size=3)
MESSAGES = st.one_of(
    st.builds(Plan, NUMBER, NUMBER, VALUES, TENSORS),
    st.builds(Report, NUMBER, NUMBER, NUMBER, FINITE, VALUES, TENSORS),
    st.builds(Update, NUMBER, VALUES, TENSORS),
)


def test_tensors_arrive_in_the_order_of_their_names() -> None:
    names = [f"layer.{n}" for n in range(9)]
    sent = Update(0, {}, {name: torch.zeros(1) for name in reversed(names)})
    assert list(decode(encode(sent), Update).tensors) == names


def fields(message: Plan | Report | Update) -> dict[str, Any]:
    return {name: value for name, value in vars(message).items() if name != "tensors"}


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message: Plan | Report | Update) -> None:
    received = decode(encode(message), type(message))
    assert fields(received) == fields(message)
    assert received.tensors.keys() == message.tensors.keys()
    for name, tensor in message.tensors.items():
        assert received.tensors[name].dtype == tensor.dtype
        assert received.tensors[name].shape == tensor.shape
        assert torch.equal(received.tensors[name], tensor)


def test_equal_messages_have_equal_bytes_whatever_order_their_parts_were_named_in() -> None:
    one, two = torch.ones(2), torch.zeros(3, dtype=torch.int64)
    forth = Update(1, {"a": 1, "b": [2.0]}, {"x": one, "y": two})
    back = Update(1, {"b": [2.0], "a": 1}, {"y": two, "x": one})
    assert encode(forth) == encode(back)


def test_the_bytes_are_a_safetensors_file() -> None:
    data = encode(Update(0, {}, {"x": torch.tensor([1.0, 2.0])}))
    assert torch.equal(safetensors.torch.load(data)["x"], torch.tensor([1.0, 2.0]))


def test_a_view_of_a_large_tensor_is_sent_alone() -> None:
    row = torch.arange(1_000_000.0).reshape(1000, 1000)[:, 7]
    data = encode(Update(0, {}, {"x": row}))
    assert len(data) < 5_000
    assert torch.equal(decode(data, Update).tensors["x"], row)


HONEST = encode(Report(3, 5, 40, 2.5, {"gain": 0.5}, {"coordinates": torch.arange(4.0)}))


def hostile(
    header: str | None = None, tensors: dict[str, Tensor] | None = None, **changes: Any
) -> bytes:
    """An honest report's bytes, but for some fields of the header or the tensors."""
    body = {
        "protocol": 1,
        "kind": "report",
        "round": 3,
        "client": 5,
        "samples": 40,
        "loss": 2.5,
        "values": {},
    }
    text = json.dumps(body | changes) if header is None else header
    return safetensors.torch.save(tensors or {"x": torch.ones(2)}, metadata={"fullfed": text})


def replaced(old: bytes, new: bytes) -> bytes:
    """An honest report's bytes with a part of its safetensors header replaced."""
    (length,) = struct.unpack("<Q", HONEST[:8])
    header = HONEST[8 : 8 + length]
    assert old in header
    header = header.replace(old, new)
    return struct.pack("<Q", len(header)) + header + HONEST[8 + length :]


def test_the_hostile_examples_are_honest_but_for_what_is_changed() -> None:
    decode(hostile(), Report)
    decode(replaced(b"F32", b"F32"), Report)


ONCE = json.dumps(
    {
        **{"protocol": 1, "kind": "report", "round": 3, "client": 5, "samples": 40, "loss": 2.5},
        "values": {"gain": 1},
    }
)
DEEP = '{"a":' * 100_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "shorter than its header"),
        (b"1234567", "shorter than its header"),
        (struct.pack("<Q", 2**63) + b"{}", "shorter than its header says"),
        (struct.pack("<Q", 17 << 20) + bytes(18 << 20), "shorter than its header says"),
        (struct.pack("<Q", 2) + b"{}", "header is malformed"),
        (struct.pack("<Q", 2) + b"[]", "header is malformed"),
        (struct.pack("<Q", 4) + b"null", "header is malformed"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xff\xfe", "header is malformed"),
        (struct.pack("<Q", len(DEEP)) + DEEP.encode(), "header is malformed"),
        (hostile("[]"), "header is malformed"),
        (hostile("3"), "header is malformed"),
        (hostile(DEEP), "header is malformed"),
        (hostile(ONCE.replace('"round": 3', '"round": 3, "round": 4')), "header is malformed"),
        (hostile(ONCE.replace('"gain": 1', '"gain": 1, "gain": 2')), "header is malformed"),
        (hostile(ONCE.replace('"gain"', r'"\ud800"')), "header is malformed"),
        (replaced(b'"shape":[4]', b'"shape":[4],"shape":[4]'), "header is malformed"),
        (replaced(b'"shape":[4]', b'"shape":[4],"more":[4]'), "header is malformed"),
        (replaced(b',"coordinates":', b',"coordinates":{},"coordinates":'), "header is malformed"),
        (replaced(b'"__metadata__":{', b'"__metadata__":{"more":"",'), "header is malformed"),
        (hostile(protocol=2), "does not follow protocol 1"),
        (hostile(protocol=None), "does not follow protocol 1"),
        (hostile(kind="update"), "is not a report"),
        (hostile(kind=["report"]), "is not a report"),
        (hostile(code="import os"), "does not have exactly the fields"),
        (hostile('{"protocol": 1, "kind": "report"}'), "does not have exactly the fields"),
        (hostile(round=-1), "field 'round' is not a 32-bit number"),
        (hostile(round=2**32), "field 'round' is not a 32-bit number"),
        (hostile(round=1.0), "field 'round' is not a 32-bit number"),
        (hostile(client=True), "field 'client' is not a 32-bit number"),
        (hostile(samples="40"), "field 'samples' is not a 32-bit number"),
        (hostile(loss="2.5"), "field 'loss' is not a finite number"),
        (hostile(loss=False), "field 'loss' is not a finite number"),
        (hostile(loss=10**400), "field 'loss' is not a finite number"),
        (hostile(loss=math.nan), "header is malformed"),
        (hostile(loss=math.inf), "header is malformed"),
        (hostile(values=[]), "field 'values' is not a table"),
        (hostile(values={"gain": math.nan}), "header is malformed"),
        (hostile(values={"deep": [{"down": -math.inf}]}), "header is malformed"),
        (hostile(json.dumps({"loss": 0}).replace("0", "1e999")), "header is malformed"),
        (replaced(b"0.5", b"1e999"), "header is malformed"),
        (hostile(tensors={"x": torch.tensor([1.0, math.nan])}), "'x' holds a number that is not"),
        (hostile(tensors={"x": torch.tensor([math.inf])}), "'x' holds a number that is not"),
        (
            hostile(tensors={"x": torch.tensor([-math.inf], dtype=torch.bfloat16)}),
            "'x' holds a number that is not",
        ),
        (
            hostile(tensors={"x": torch.tensor([complex(0, math.nan)])}),
            "tensor 'x' is of",
        ),
        (hostile(tensors={"x": torch.zeros(2).to(torch.float8_e4m3fn)}), "tensor 'x' is of"),
        (replaced(b'"F32"', b'"F99"'), "tensors are malformed"),
        (replaced(b'"shape":[4]', b'"shape":[5]'), "tensors are malformed"),
        (replaced(b'"shape":[4]', b'"shape":[-4]'), "tensors are malformed"),
        (replaced(b"[0,16]", b"[0,99]"), "tensors are malformed"),
        (replaced(b"[0,16]", b"[4,16]"), "tensors are malformed"),
        (HONEST + b"more", "tensors are malformed"),
    ],
)
def test_hostile_bytes_are_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason) as caught:
        decode(data, Report)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", range(len(HONEST)))
def test_a_message_cut_short_anywhere_is_refused(end: int) -> None:
    with pytest.raises(MessageError):
        decode(HONEST[:end], Report)


@given(st.binary(max_size=200))
@example(b"\0" * 8)
def test_bytes_from_anywhere_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data, Report)


@given(st.integers(0, len(HONEST) - 1), st.integers(1, 255))
def test_one_wrong_byte_is_refused_or_makes_another_valid_message(place: int, flip: int) -> None:
    data = bytearray(HONEST)
    data[place] ^= flip
    try:
        received = decode(bytes(data), Report)
    except MessageError:
        return
    assert all(bool(torch.isfinite(t).all()) for t in received.tensors.values())
    assert math.isfinite(received.loss)


def test_a_message_longer_than_its_limit_is_refused_before_it_is_read() -> None:
    assert decode(HONEST, Report, limit=len(HONEST)).round == 3
    with pytest.raises(MessageError, match=f"{len(HONEST)} bytes, more than the 100 allowed"):
        decode(HONEST, Report, limit=100)


@pytest.mark.parametrize("value", ["1", None, True, [1.0], pytest.param(10**400, id="huge")])
def test_a_value_that_is_not_a_number_is_refused_where_one_is_due(value: Any) -> None:
    with pytest.raises(MessageError, match="update's value 'step' is not a finite number"):
        number(Update(0, {"step": value}), "step")


def test_a_number_is_read_from_a_messages_values() -> None:
    assert number(Update(0, {"step": 3}), "step") == 3.0
    with pytest.raises(MessageError, match="'rank'"):
        number(Update(0, {"step": 3}), "rank")
