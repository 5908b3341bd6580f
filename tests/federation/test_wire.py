"""The bytes of messages: as docs/messages.md has them, and in one form only."""

from __future__ import annotations

import math
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from federation.test_messages import MESSAGES
from fullfed.federation import wire
from fullfed.federation.messages import MessageError, Plan, Report, Update, decode, encode
from fullfed.federation.wire import HEADER_LIMIT, join

HEX = {
    "plan": (
        Plan(3, 300, {"block": 2, "dropped": [0, 5]}),
        "02 1a 95 00 03 cd012c"
        "82 a5626c6f636b 02 a764726f70706564 92 00 05"  # block, dropped
        "80",
    ),
    "report": (
        Report(
            *(70_000, 5, 40, 2.5, {"signs": bytes(range(8)), "gain": 0.1}),
            {"scales": torch.tensor([0.5]), "codes": torch.tensor([7, 255], dtype=torch.uint8)},
        ),
        "02 41 97 01 ce00011170 05 28 ca40200000"
        "82 a46761696e cb3fb999999999999a a57369676e73 c4080001020304050607"  # gain, signs
        "82 a5636f646573 92 08 02 a67363616c6573 92 00 01"  # codes, scales
        "07ff 0000003f",
    ),
    "update": (
        Update(
            *(200, {"ok": True, "no": -1, "so": [{"far": -129}]}),
            {"b": torch.tensor([[True], [False]]), "a": torch.tensor(-2, dtype=torch.int16)},
        ),
        "02 24 94 02 ccc8"
        "83 a26e6f ff a26f6b c3 a2736f 91 81 a3666172 d1ff7f"  # no, ok, so, far
        "82 a161 91 06 a162 93 09 02 01"
        "feff 01 00",
    ),
}


@pytest.mark.parametrize("kind", HEX)
def test_the_bytes_of_one_message_of_each_kind(kind: str) -> None:
    message, due = HEX[kind]
    assert encode(message).hex() == bytes.fromhex(due).hex()


# --- a reader of its own, in plain Python, as docs/messages.md describes the format -------------

CODES = ["f", "d", ".", "e", "q", "i", "h", "b", "B", "?"]  # of struct; bfloat16 has none
WIDTHS = (4, 8, 2, 2, 8, 4, 2, 1, 1, 1)
LONG = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
PLAIN = {0xC2: False, 0xC3: True}
SIZED = {  # how many bytes a length has, and what of
    **{0xC4: (1, bytes), 0xC5: (2, bytes), 0xC6: (4, bytes)},
    **{0xD9: (1, str), 0xDA: (2, str), 0xDB: (4, str)},
    **{0xDC: (2, list), 0xDD: (4, list), 0xDE: (2, dict), 0xDF: (4, dict)},
}


class Reader:
    """MessagePack, as far as messages have it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def value(self) -> Any:
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first in PLAIN:
            return PLAIN[first]
        if first in LONG:
            return struct.unpack(LONG[first], self.take(struct.calcsize(LONG[first])))[0]
        if first in SIZED:
            width, kind = SIZED[first]
            return self.several(kind, int.from_bytes(self.take(width), "big"))
        if first >= 0xA0:
            return self.several(str, first - 0xA0)
        return self.several(dict if first < 0x90 else list, first % 16)

    def several(self, kind: type, count: int) -> Any:
        if kind is bytes:
            return self.take(count)
        if kind is str:
            return self.take(count).decode()
        if kind is list:
            return [self.value() for _ in range(count)]
        return {self.value(): self.value() for _ in range(count)}


def independently(data: bytes) -> tuple[list[Any], dict[str, list[Any]]]:
    """Header, and the numbers of each tensor."""
    reader = Reader(data)
    assert reader.take(1) == b"\x02"
    end = reader.value() + reader.at
    header = reader.value()
    assert reader.at == end
    tensors = {}
    for name, (code, *shape) in header[-1].items():
        count = math.prod(shape)
        part = reader.take(count * WIDTHS[code])
        if CODES[code] == ".":  # the upper halves of float32
            part = b"".join(b"\0\0" + part[n : n + 2] for n in range(0, len(part), 2))
        kind = "f" if CODES[code] == "." else CODES[code]
        tensors[name] = list(struct.unpack(f"<{count}{kind}", part))
    assert reader.at == len(data)
    return header[:-1], tensors


@given(MESSAGES)
@example(HEX["plan"][0])
@example(HEX["report"][0])
@example(HEX["update"][0])
@example(Update(0, {"list": [0.5] * 65_536, "bytes": bytes(70_000), "text": "ü" * 70_000}))
@example(Update(0, {str(n): n for n in range(70_000)}, {"wide": torch.ones(70_000)}))
def test_an_independent_reader_finds_the_same(message: Plan | Report | Update) -> None:
    header, tensors = independently(encode(message))
    assert header[0] == ("plan", "report", "update").index(message.kind)
    *said, sent = vars(message).values()
    assert header[1:] == said
    assert tensors == {name: tensor.reshape(-1).tolist() for name, tensor in sent.items()}


# --- one form only -----------------------------------------------------------------------------

HONEST = encode(Report(3, 5, 40, 2.5, {"gain": 0.5, "list": [1, 2]}, {"x": torch.arange(4.0)}))
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "double"]), st.integers(0), st.binary()),
    min_size=1,
    max_size=3,
)


def mutated(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for what, number, more in changes:
        place = number % max(len(data), 1)
        match what:
            case "flip":
                changed = bytearray(data)
                for offset, bits in enumerate(more[: len(data) - place]):
                    changed[place + offset] ^= bits
                data = bytes(changed)
            case "cut":
                data = data[:place] + data[place + len(more) + 1 :]
            case "insert":
                data = data[:place] + more + data[place:]
            case _:
                data = data[:place] + data[place - len(more) :]
    return data


@given(MESSAGES, MUTATIONS)
def test_what_is_decoded_is_encoded_as_the_same_bytes(
    message: Plan | Report | Update, changes: list[tuple[str, int, bytes]]
) -> None:
    data = mutated(encode(message), changes)
    try:
        found = decode(data, type(message))
    except MessageError:
        return
    assert encode(found) == data


PACKED = msgpack.packb([1, 3, 5, 40])


def framed(header: bytes, body: bytes = b"") -> bytes:
    return b"\x02" + msgpack.packb(len(header)) + header + body


def report(values: bytes = b"\x80", tensors: bytes = b"\x80", body: bytes = b"") -> bytes:
    """A report whose values and tensors' kinds are these bytes."""
    return framed(b"\x97\x01\x03\x05\x28\xca\x40\x20\x00\x00" + values + tensors, body)


def x(*kind: Any) -> bytes:
    """The kind of a tensor called x."""
    return bytes(msgpack.packb({"x": [*kind]}))


TABLE = b"\x81\xa1a"  # a table with the key a, whose value is to follow
MOST = 2**19 - 10  # zeros in a list beside a report's other values, and the key


def many(zeros: int) -> bytes:
    """A list of more than 65,535 zeros."""
    return b"\xdd" + struct.pack(">I", zeros) + bytes(zeros)


def test_the_examples_below_are_honest_but_for_what_is_wrong() -> None:
    decode(report(), Report)
    decode(report(b"\x81\xa1a\x01"), Report)
    decode(report(TABLE + b"\x91" * 30 + b"\x01"), Report)
    decode(report(TABLE + many(MOST)), Report)
    decode(report(tensors=x(0, 2), body=bytes(8)), Report)
    decode(report(tensors=x(0, 0, 2**62)), Report)
    decode(report(tensors=x(8, *[1] * 16), body=b"\0"), Report)


SAFETENSORS = struct.pack("<Q", 56) + b'{"__metadata__":{"fullfed":"{}"}}'.ljust(56)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the message does not follow protocol 2"),
        (b"\x01", "the message does not follow protocol 2"),
        (SAFETENSORS, "is an earlier fullfed's and does not follow protocol 2"),
        (b"\x02", "header has no length"),
        (b"\x02\xcd\x01", "header has no length"),
        (b"\x02\xc1", "header has no length"),
        (b"\x02\xdd\x05\xf5\xe1\x00" + HONEST[2:], "header has no length"),
        (b"\x02\xdb\x05\xf5\xe1\x00" + HONEST[2:], "header has no length"),
        (b"\x02\xc3" + HONEST[2:], "shorter than its header says"),
        (b"\x02\xff" + HONEST[2:], "shorter than its header says"),
        (b"\x02\x00", "shorter than its header says"),
        (b"\x02\x7f" + HONEST[2:], "shorter than its header says"),
        (b"\x02\xce\xff\xff\xff\xff" + HONEST[2:], "shorter than its header says"),
        (framed(bytes(HEADER_LIMIT + 1)), "shorter than its header says"),
        (b"\x02\xcc" + HONEST[1:], "header is malformed"),
        (framed(b"\x80"), "header is malformed"),
        (framed(b"\x90"), "header is malformed"),
        (framed(b"\x91\x01"), "header is malformed"),
        (framed(b"\xc0"), "header is malformed"),
        (framed(HONEST[2 : 2 + HONEST[1]] + b"\x01"), "header is malformed"),
        (report(b"\x82\xa1a\x01\xa1a\x01"), "header is malformed"),
        (report(b"\x82\xa1b\x01\xa1a\x01"), "header is malformed"),
        (report(b"\xde\x00\x01\xa1a\x01"), "header is malformed"),
        (report(b"\x81\xd9\x01a\x01"), "header is malformed"),
        (report(b"\x81\xc4\x01a\x01"), "header is malformed"),
        (report(b"\x81\x01\x01"), "header is malformed"),
        (report(TABLE + b"\xc0"), "header is malformed"),
        (report(TABLE + b"\xcc\x01"), "header is malformed"),
        (report(TABLE + b"\xd0\x01"), "header is malformed"),
        (report(TABLE + b"\xd3" + b"\xff" * 8), "header is malformed"),
        (report(TABLE + b"\xcb" + struct.pack(">d", 0.5)), "header is malformed"),
        (report(TABLE + b"\xca" + struct.pack(">f", math.nan)), "header is malformed"),
        (report(TABLE + b"\xca" + struct.pack(">f", math.inf)), "header is malformed"),
        (report(TABLE + b"\xcb" + struct.pack(">d", -math.inf)), "header is malformed"),
        (report(TABLE + b"\x91\xcb" + struct.pack(">d", math.nan)), "header is malformed"),
        (report(TABLE + b"\xa1\xff"), "header is malformed"),
        (report(TABLE + b"\xa3\xed\xa0\x80"), "header is malformed"),  # half a character
        (report(TABLE + b"\xd4\x01\x00"), "header is malformed"),
        (report(TABLE + b"\xc7\x00\x01"), "header is malformed"),
        (report(TABLE + b"\xd6\xff" + bytes(4)), "header is malformed"),
        (report(TABLE + b"\xdd\xff\xff\xff\xff"), "header is malformed"),
        (report(TABLE + b"\xdf\xff\xff\xff\xff"), "header is malformed"),
        (report(TABLE + b"\xdb\xff\xff\xff\xff"), "header is malformed"),
        (report(TABLE + b"\xdd\x00\x0f\xff\xff" * 1000), "header is malformed"),
        (report(TABLE + many(MOST + 1)), "header is malformed"),
        (report(b"\x82\xa1a" + many(MOST - 1) + b"\xa1b\x00"), "header is malformed"),
        (report(b"\x81\x90\x01"), "header is malformed"),  # a key that no table can have
        (report(TABLE + b"\x92\x01"), "header is malformed"),
        (report(TABLE + b"\x91" * 31 + b"\x01"), "header is malformed"),
        (report(TABLE + b"\x91" * 100_000 + b"\x01"), "header is malformed"),
        (report(TABLE * 100_000 + b"\x01"), "header is malformed"),
        (report(tensors=b"\x90"), "tensors are malformed"),
        (report(tensors=b"\x81\xa1x\x80"), "'x' is of an impossible kind"),
        (report(tensors=x()), "'x' is of an impossible kind"),
        (report(tensors=x(10)), "'x' is of an impossible kind"),
        (report(tensors=x(-1, 2), body=bytes(8)), "'x' is of an impossible kind"),
        (report(tensors=x(True, 2), body=bytes(8)), "'x' is of an impossible kind"),
        (report(tensors=x(0, -2), body=bytes(8)), "'x' is of an impossible kind"),
        (report(tensors=x(0, -2, -1), body=bytes(8)), "'x' is of an impossible kind"),
        (report(tensors=x(0, True), body=bytes(4)), "'x' is of an impossible kind"),
        (
            report(tensors=b"\x81\xa1x\x92\x00\xca@\x00\x00\x00"),
            "'x' is of an impossible kind",
        ),
        (report(tensors=x(8, *[1] * 17), body=b"\0"), "'x' is of an impossible kind"),
        (report(tensors=x(8, 2**32, 2**32)), "'x' is of an impossible shape"),
        (report(tensors=x(8, 2**63, 2)), "'x' is of an impossible shape"),
        (report(tensors=x(8, 0, 2**40, 2**40)), "'x' is of an impossible shape"),
        (report(tensors=x(8, 2**62)), f"tensors have 0 bytes, not {2**62}"),
        (report(tensors=x(0, 2), body=bytes(7)), "tensors have 7 bytes, not 8"),
        (report(tensors=x(0, 2), body=bytes(9)), "tensors have 9 bytes, not 8"),
        (report(body=b"more"), "tensors have 4 bytes, not 0"),
        (report(tensors=x(9, 2), body=b"\x01\x02"), "'x' is neither true nor false"),
    ],
)
def test_any_other_form_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason) as caught:
        decode(data, Report)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        # msgpack by itself makes room for a list's items before it has seen them: 224 MB here ...
        b"\xdd\x00\x00\x70\x00" * 1000 + bytes(28_672),
        # ... and 64 bytes for each empty table: 4 MiB. Where these are too many, few are made.
        b"\xdd\x00\x01\x00\x00" + b"\x80" * 2**16,
    ],
)
def test_a_header_takes_little_more_memory_than_it_has_bytes(
    values: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_MOST", 1000)
    data = report(TABLE + values)
    tracemalloc.start()
    with pytest.raises(MessageError, match="header is malformed"):
        decode(data, Report)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Update(0, {"a": [0] * 2**19}), "too much"),
        (Update(0, {"a": bytes(HEADER_LIMIT)}), "a header has 8388620 bytes, more than 8388608"),
        (Update(0, {}, {"a": torch.zeros([1] * 17)}), "more than 16 dimensions"),
    ],
)
def test_what_nobody_would_read_is_not_written(message: Update, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode(message)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_not_sent(number: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        encode(Update(0, {"step": number}))


@pytest.mark.parametrize("number", [0.0, -0.0, 0.1, 1 / 3, 1e300, 5e-324, 1e-45, 3.4e38, 3.5e38])
def test_floats_arrive_to_the_bit_in_32_bits_where_these_are_exact(number: float) -> None:
    data = join([number], {})
    [sent], _ = independently(data)
    assert struct.pack("<d", sent) == struct.pack("<d", number)
    found = decode(encode(Update(0, {"step": number})), Update).values["step"]
    assert struct.pack("<d", found) == struct.pack("<d", number)
    narrow = abs(number) < 3.41e38 and struct.unpack("<f", struct.pack("<f", number))[0] == number
    assert data[3] == (0xCA if narrow else 0xCB)


def test_tensors_are_writable_and_own_their_memory() -> None:
    data = encode(Update(0, {}, {"a": torch.ones(3), "b": torch.ones(5, dtype=torch.int8)}))
    kept = bytes(bytearray(data))
    for tensor in decode(data, Update).tensors.values():
        assert tensor.data_ptr() % tensor.itemsize == 0
        tensor.zero_()
    assert data == kept
