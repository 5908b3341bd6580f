"""Messages in pieces: what Flower itself makes of them, and what a stranger makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from flwr.app import Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st

from fullfed import payloads
from fullfed.engines.flower_messages import content_of, frames_of
from fullfed.engines.flower_objects import LongMessageError, ObjectPullError, pull, push
from fullfed.payloads import joined

pytestmark = pytest.mark.usefixtures("flower_process")

MOST = 1 << 30, 9  # bytes of a message here, and objects
CHUNK = 5 << 20  # bytes, of Flower's
FRAMES = {"zeros": bytes(3 * CHUNK + 5), "few": b"few", "mixed": bytes(CHUNK) + b"x" * CHUNK}


def message(frames: Mapping[str, Any]) -> Message:
    return Message(content_of(frames), 1, message_type="train")


def pushed(sent: Message) -> tuple[str, dict[str, bytes]]:
    """The id of a message and its objects, as a server would hold them."""
    held: dict[str, bytes] = {}
    with no_object_id_recompute():
        name = sent.object_id
        push(sent, held.__setitem__, set(get_all_nested_objects(sent)))
    return name, held


@pytest.mark.parametrize("large", [1 << 40, 1 << 20])
def test_what_is_pushed_is_flowers_and_what_is_pulled_are_the_frames(
    monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    monkeypatch.setattr(payloads, "LARGE", large)
    frames = {name: joined([frame], len(frame)) for name, frame in FRAMES.items()}
    name, held = pushed(message(frames))
    assert all(get_object_id(content) == own for own, content in held.items())
    flowers = inflate_object_from_contents(name, dict(held))
    assert isinstance(flowers, Message)
    assert frames_of(flowers.content) == FRAMES
    found = frames_of(pull(name, held.__getitem__, *MOST).content)
    assert found == FRAMES
    assert isinstance(found["zeros"], memoryview) == (large == 1 << 20)


@given(st.dictionaries(st.text(max_size=5), st.binary(max_size=9), max_size=4))
def test_any_frames_arrive(frames: dict[str, bytes]) -> None:
    name, held = pushed(message(frames))
    assert frames_of(pull(name, held.__getitem__, *MOST).content) == frames


def of(kind: str, children: list[str], body: bytes, held: dict[str, bytes]) -> str:
    """Put an object of a stranger's among others; return its id."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    held[get_object_id(content)] = content
    return get_object_id(content)


def array(held: dict[str, bytes], body: bytes = b"0123456789", **about: Any) -> str:
    """A message whose only array is as a stranger describes it, ``body`` in its one chunk."""
    chunk = of(ArrayChunk.__qualname__, [], body, held)
    usual = {"dtype": "uint8", "shape": [10], "stype": "fullfed", "arraychunk_ids": [0]}
    own = of("Array", [chunk], json.dumps({**usual, **about}).encode(), held)
    record = of("ArrayRecord", [own], json.dumps({"a": own}).encode(), held)
    (name,) = (k for k, v in held.items() if v.startswith(b"Message"))
    return _with_record(name, record, held)


def _with_record(message_id: str, record: str, held: dict[str, bytes]) -> str:
    """The message with another record in the place of its own."""
    (records,) = (k for k, v in held.items() if v.startswith(b"RecordDict"))
    head, _, _ = held[records].partition(b"\0")
    old = head.split(b" ")[1].decode()
    own = of(
        "RecordDict",
        [record],
        held[records].partition(b"\0")[2].replace(old.encode(), record.encode()),
        held,
    )
    body = held[message_id].partition(b"\0")[2]
    return of("Message", [own], body, held)


def test_the_strangers_tools_make_a_message() -> None:
    _, held = pushed(message({"a": b"x"}))
    assert frames_of(pull(array(held), held.__getitem__, *MOST).content) == {"a": b"0123456789"}


@pytest.mark.parametrize(
    "about",
    [
        {"shape": [9]},
        {"shape": [11]},
        {"shape": [-1]},
        {"shape": [10, 2]},
        {"shape": 10},
        {"shape": ["ten"]},
        {"shape": [10.0]},
        {"shape": [float("nan")]},
        {"arraychunk_ids": [1]},
        {"arraychunk_ids": [0] * 1_000_000},
        {"arraychunk_ids": None},
        {"dtype": 5},
    ],
)
def test_an_array_that_is_none_is_refused(about: dict[str, Any]) -> None:
    _, held = pushed(message({"a": b"x"}))
    name = array(held, **about)
    with pytest.raises(ValueError, match="array"):
        pull(name, held.__getitem__, *MOST)


def test_what_would_be_too_long_is_not_fetched() -> None:
    """One chunk, sent once, can be in an array any number of times."""
    _, held = pushed(message({"zeros": bytes(2 * CHUNK)}))
    name, chunks = array(held, shape=[50 << 20], arraychunk_ids=[0] * 5), 0

    def pull_object(object_id: str) -> bytes:
        nonlocal chunks
        chunks += held[object_id].startswith(b"ArrayChunk")
        return held[object_id]

    with pytest.raises(LongMessageError):
        pull(name, pull_object, (50 << 20) - 1, 9)
    assert chunks == 0


def test_an_array_in_ever_so_many_chunks_of_nothing_is_refused() -> None:
    _, held = pushed(message({"a": b"x"}))
    name = array(held, b"", shape=[0], arraychunk_ids=[0] * 1000)
    with pytest.raises(ValueError, match="too many chunks"):
        pull(name, held.__getitem__, *MOST)


def test_an_object_that_is_held_ever_so_often_is_not_fetched_as_often() -> None:
    _, held = pushed(message({"a": b"x"}))
    few = of("ConfigRecord", [], b"", held)
    for _ in range(2):
        few = of("RecordDict", [few] * 1000, b"{}", held)
    pulls = 0

    def pull_object(object_id: str) -> bytes:
        nonlocal pulls
        pulls += 1
        return held[object_id]

    with pytest.raises(ValueError, match="more objects"):
        pull(few, pull_object, *MOST)
    assert pulls == MOST[1]


def test_objects_that_hold_each_other_without_end_are_refused() -> None:
    _, held = pushed(message({"a": b"x"}))
    deep = of("ArrayRecord", [], b"{}", held)
    for _ in range(4):
        deep = of("RecordDict", [deep], b"{}", held)
    with pytest.raises(ValueError, match="no such object"):
        pull(deep, held.__getitem__, *MOST)
    with pytest.raises(ValueError, match="no such object"):
        pull(of("Surprise", [], b"", held), held.__getitem__, *MOST)


def _content(kind: str, body: bytes, held: dict[str, bytes]) -> str:
    """A message with this for its content."""
    own, head = of(kind, [], body, held), next(k for k, v in held.items() if v[:7] == b"Message")
    return of("Message", [own], held[head].partition(b"\0")[2], held)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("RecordDict", b"[]"),
        ("RecordDict", b"[" * 100_000 + b"]" * 100_000),
        ("RecordDict", b'{"fullfed": []}'),
        ("ConfigRecord", b""),
        ("ConfigRecord", b"\xff"),
        ("Message", b"\xff"),
    ],
)
def test_a_message_that_is_none_is_refused(kind: str, body: bytes) -> None:
    _, held = pushed(message({"a": b"x"}))
    with pytest.raises(ValueError, match="this is no message"):
        pull(_content(kind, body, held), held.__getitem__, *MOST)


def test_a_message_of_nothing_is_refused() -> None:
    _, held = pushed(message({"a": b"x"}))
    with pytest.raises(ValueError, match="this is no message"):
        pull(of("Message", [], b"", held), held.__getitem__, *MOST)


def test_a_missing_object_is_missed() -> None:
    name, held = pushed(message({"a": b"x"}))

    def pull_object(object_id: str) -> bytes:
        if held[object_id].startswith(b"ArrayChunk"):
            raise ObjectPullError(object_id, "gone")
        return held[object_id]

    with pytest.raises(ObjectPullError):
        pull(name, pull_object, *MOST)
