"""Messages: what is sent is what arrives, and what is hostile never gets further than decode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullfed import payloads
from fullfed.federation.messages import (
    MessageError,
    Plan,
    Report,
    Update,
    decode,
    encode,
    fields_of,
    number,
)
from fullfed.federation.wire import join

NUMBER = st.integers(0, 2**32 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHOLE = st.integers(-(2**63), 2**64 - 1)
SCALAR = st.booleans() | WHOLE | FINITE | TEXT | st.binary(max_size=8)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner),
    max_leaves=5,
)
VALUES = st.dictionaries(TEXT, VALUE, max_size=4)
DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    numbers = draw(
        st.lists(st.integers(0, 255), min_size=math.prod(shape), max_size=math.prod(shape))
    )
    return torch.tensor(numbers).reshape(shape).to(draw(st.sampled_from(DTYPES)))


NAMES = TEXT
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


@pytest.fixture
def _long_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages are treated as large ones are."""
    monkeypatch.setattr(payloads, "LARGE", -1)


@pytest.mark.usefixtures("_long_messages")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MESSAGES)
def test_large_messages_are_the_same_bytes_and_numbers(message: Plan | Report | Update) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payloads, "LARGE", 1 << 40)
        short = encode(message)
    data = encode(message)
    assert isinstance(data, memoryview)
    assert data == short
    test_what_is_encoded_is_decoded.hypothesis.inner_test(message)


@pytest.mark.usefixtures("_long_messages")
def test_a_large_messages_tensors_are_read_anew_and_checked_at_once() -> None:
    received = decode(holding(torch.ones(2)), Report).tensors
    received["x"].zero_()
    assert torch.equal(received["x"], torch.ones(2))
    with pytest.raises(KeyError):
        received["y"]
    with pytest.raises(MessageError, match="not finite"):
        decode(holding(torch.tensor([1.0, math.nan])), Report)
    truths = bytearray(holding(torch.tensor([True, False])))
    truths[-1] = 2
    with pytest.raises(MessageError, match="neither true nor false"):
        decode(bytes(truths), Report)


def test_equal_messages_have_equal_bytes_whatever_order_their_parts_were_named_in() -> None:
    one, two = torch.ones(2), torch.zeros(3, dtype=torch.int64)
    forth = Update(1, {"a": 1, "b": [2.0]}, {"x": one, "y": two})
    back = Update(1, {"b": [2.0], "a": 1}, {"y": two, "x": one})
    assert encode(forth) == encode(back)


def test_a_view_of_a_large_tensor_is_sent_alone() -> None:
    row = torch.arange(1_000_000.0).reshape(1000, 1000)[:, 7]
    data = encode(Update(0, {}, {"x": row}))
    assert len(data) < 5_000
    assert torch.equal(decode(data, Update).tensors["x"], row)


HONEST = encode(Report(3, 5, 40, 2.5, {"gain": 0.5}, {"coordinates": torch.arange(4.0)}))


def hostile(place: int, value: Any) -> bytes:
    """An honest report's bytes, but for one item of its header."""
    header = [1, 3, 5, 40, 2.5, {"gain": 0.5}]
    header[place] = value
    return join(header, {"x": torch.ones(2)})


def holding(tensor: Tensor) -> bytes:
    return encode(Report(3, 5, 40, 2.5, {}, {"x": tensor}))


def test_the_hostile_examples_are_honest_but_for_what_is_changed() -> None:
    assert decode(hostile(1, 4), Report).round == 4
    decode(holding(torch.ones(2)), Report)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (hostile(0, 2), "is not a report"),
        (hostile(0, 3), "is not a report"),
        (hostile(0, True), "is not a report"),
        (hostile(0, "report"), "is not a report"),
        (encode(Plan(3, 5)), "is not a report"),
        (join([1, 3, 5, 40, 2.5], {}), "does not have the fields round, client"),
        (join([1, 3, 5, 40, 2.5, {}, {}], {}), "does not have the fields round, client"),
        (hostile(1, -1), "field 'round' is not a 32-bit number"),
        (hostile(1, 2**32), "field 'round' is not a 32-bit number"),
        (hostile(1, 1.0), "field 'round' is not a 32-bit number"),
        (hostile(2, True), "field 'client' is not a 32-bit number"),
        (hostile(3, "40"), "field 'samples' is not a 32-bit number"),
        (hostile(4, "2.5"), "field 'loss' is not a finite number"),
        (hostile(4, False), "field 'loss' is not a finite number"),
        (hostile(5, []), "field 'values' is not a table"),
        (holding(torch.tensor([1.0, math.nan])), "'x' holds a number that is not"),
        (holding(torch.tensor([math.inf])), "'x' holds a number that is not"),
        (
            encode(Report(3, 5, 40, 2.5, {}, {"\n" * 9999: torch.tensor([math.nan])})),
            r"tensor '(\\n){40}' holds a number that is not",
        ),
        (holding(torch.tensor([-math.inf]).bfloat16()), "'x' holds a number that is not"),
    ],
)
def test_hostile_messages_are_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason) as caught:
        decode(data, Report)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", range(len(HONEST)))
def test_a_message_cut_short_anywhere_is_refused(end: int) -> None:
    with pytest.raises(MessageError):
        decode(HONEST[:end], Report)


@given(st.binary(max_size=200))
@example(b"\2" * 8)
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
    assert encode(received) == bytes(data)


def test_a_message_longer_than_its_limit_is_refused_before_it_is_read() -> None:
    assert decode(HONEST, Report, limit=len(HONEST)).round == 3
    with pytest.raises(MessageError, match=f"{len(HONEST)} bytes, more than the 50 allowed"):
        decode(HONEST, Report, limit=50)


@pytest.mark.parametrize("value", ["1", None, True, [1.0], pytest.param(10**400, id="huge")])
def test_a_value_that_is_not_a_number_is_refused_where_one_is_due(value: Any) -> None:
    with pytest.raises(MessageError, match="update's value 'step' is not a finite number"):
        number(Update(0, {"step": value}), "step")


def test_its_fields_are_read_without_its_tensors() -> None:
    said = fields_of(HONEST, Report)
    assert (said["samples"], said["loss"]) == (40, 2.5)
    with pytest.raises(MessageError, match="is not a plan"):
        fields_of(HONEST, Plan)


def test_a_number_is_read_from_a_messages_values() -> None:
    assert number(Update(0, {"step": 3}), "step") == 3.0
    with pytest.raises(MessageError, match="'rank'"):
        number(Update(0, {"step": 3}), "rank")
