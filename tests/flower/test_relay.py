"""A node's link to the server: what it answers, and what it does and says when it is cut off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from flower.real import free_port
from fullfed.deployment import relay
from fullfed.deployment.flower_internals import LostConnectionError, TurnedAwayError
from fullfed.deployment.folders import NodeFolder, ServerFolder
from fullfed.deployment.processes import TOLD
from fullfed.engines.flower_messages import content_of, frames_of
from fullfed.engines.node_channel import ChannelError
from fullfed.errors import UserError


@pytest.mark.usefixtures("flower_process")
def test_an_order_is_the_workers_to_answer_also_one_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter([ChannelError("it is started again"), {"b": b"2"}])

    def ask(address: Path, frames: Mapping[str, bytes], seconds: float) -> Mapping[str, bytes]:
        assert (address, frames) == (tmp_path, {"a": b"1"})
        assert seconds > 0
        answer = next(tries)
        if isinstance(answer, ChannelError):
            raise answer
        return answer

    monkeypatch.setattr(relay, "ask", ask)
    monkeypatch.setattr(relay, "_WORKER_PAUSE", 0.0)
    asked = Message(content_of({"a": b"1"}), dst_node_id=1, message_type="train")
    assert frames_of(relay.answer(asked, tmp_path).content) == {"b": b"2"}


@pytest.mark.usefixtures("flower_process")
@pytest.mark.parametrize(
    "content", [RecordDict(), RecordDict({"fullfed": ConfigRecord({"run": "rm -rf"})})]
)
def test_what_is_no_order_is_answered_with_an_error(tmp_path: Path, content: RecordDict) -> None:
    reply = relay.answer(Message(content, dst_node_id=1, message_type="train"), tmp_path / "none")
    assert reply.has_error()
    assert reply.error.code == 7
    assert reply.error.reason == "this node carries out fullfed's orders, and no other app"


@pytest.mark.usefixtures("flower_process")
def test_a_full_disk_is_told_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*_: object) -> None:
        raise UserError("the disk is full; free some space.")

    monkeypatch.setattr(relay, "ask", ask)
    asked = Message(content_of({"a": b"1"}), dst_node_id=1, message_type="train")
    reply = relay.answer(asked, tmp_path)
    assert reply.error.reason == "the node has no room for its answer"
    assert capsys.readouterr().out == f"{TOLD}the disk is full; free some space.\n"


class _Server:
    """Stands in for Fleet: lets the node in or not, as the script says, and then is lost."""

    def __init__(self, script: list[int | str]) -> None:
        self.script = script
        self.left: list[int] = []

    def __call__(self, *_: object) -> _Server:
        return self

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def leave(self, node: int) -> None:
        self.left.append(node)

    def connect(self) -> int:
        event = self.script.pop(0)
        if event == "turned away":
            raise TurnedAwayError
        if event == "over":
            raise SystemExit
        if isinstance(event, str):
            raise LostConnectionError(event)
        return event

    def beat(self) -> None:
        pass

    def receive(self, most_bytes: int) -> None:
        raise LostConnectionError("cut off")


def test_a_link_that_is_cut_off_says_so_once_and_comes_back_as_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes leave of the server first, which would take the old one for alive otherwise."""
    ServerFolder.create(tmp_path / "f", ["north"], "127.0.0.1", free_port(), "127.0.0.1", "builtin")
    server = _Server(["turned away", "turned away", 7, "nobody listens", 8, "over"])
    monkeypatch.setattr(relay, "Fleet", server)
    monkeypatch.setattr(relay, "_RETRY_SECONDS", 0.0)
    with pytest.raises(SystemExit):
        relay.run(NodeFolder(tmp_path / "f" / "partners" / "north"), 5)
    assert server.left == [5, 5, 5, 7, 7, 8]
    said = [line.removeprefix(TOLD) for line in capsys.readouterr().out.splitlines()]
    assert [sentence.split("127.0.0.1:")[0] for sentence in said] == [
        "",  # the server turns this node away, once
        "connected to ",
        "no connection to ",
        "connected to ",
        "no connection to ",
    ]
    assert said[1].endswith("as north (node 7)")
    assert "(cut off); trying again" in said[2]
    assert said[3].endswith("as north (node 8), after 0 s")
