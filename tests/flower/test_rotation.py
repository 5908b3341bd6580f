"""New keys for partners' nodes: who may ask for one, and what becomes of the old one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from flower.real import free_port, open_to_others, refusal
from fullfed.cli import app
from fullfed.deployment import relay
from fullfed.deployment.audit import read_audit
from fullfed.deployment.flower_internals import TurnedAwayError
from fullfed.deployment.folders import NodeFolder, ServerFolder
from fullfed.deployment.identities import create_node_key, public_key_pem
from fullfed.deployment.members import fix_members
from fullfed.deployment.rotation import admit_key, request_key
from fullfed.errors import UserError


@pytest.fixture
def federation(tmp_path: Path) -> ServerFolder:
    folder = tmp_path / "fed"
    there = "127.0.0.1", free_port(), "127.0.0.1"
    return ServerFolder.create(folder, ["north", "south"], *there, "builtin")


@pytest.fixture
def north(federation: ServerFolder) -> NodeFolder:
    return NodeFolder(federation.federation / "partners" / "north")


def taken(node: NodeFolder) -> None:
    """What the node does once the server lets its next key in."""
    node.next_key.replace(node.key)


def test_a_key_is_asked_for_and_admitted_by_the_commands(
    federation: ServerFolder, north: NodeFolder, tmp_path: Path
) -> None:
    """Each side is told the fingerprint that ``ssh-keygen`` knows the new key by."""
    asked = CliRunner().invoke(app, ["federation", "keys", "rotate", str(north.path)])
    assert asked.exit_code == 0, asked.output
    request = north.path / "north.key-request.json"
    command = ["federation", "keys", "admit", str(federation.federation), str(request)]
    admitted = CliRunner().invoke(app, command)
    assert admitted.exit_code == 0, admitted.output
    known = federation.public_key("north")
    listed = subprocess.check_output(["ssh-keygen", "-lf", known], text=True).split()
    assert listed[:2][0] == "384"
    assert listed[1] in asked.output
    assert listed[1] in admitted.output
    derived = subprocess.check_output(["ssh-keygen", "-yf", north.next_key], text=True)
    assert derived.split()[:2] == known.read_text().split()[:2]
    assert open_to_others(federation.federation) == {}
    assert north.next_key.read_bytes().decode() not in request.read_text()
    *_, last = read_audit(federation.audit_file, federation.authority)
    assert (last.act, last.about) == ("rotate", {"partner": "north", "key": listed[1]})


def test_a_run_knows_its_members_by_the_keys_they_have_now(
    federation: ServerFolder, north: NodeFolder, tmp_path: Path
) -> None:
    members = fix_members(tmp_path, federation.partners(), anew=True)
    south = members.clients[1].key.encode()
    for _ in range(2):
        request, _ = request_key(north)
        admit_key(federation, request)
        taken(north)
    now = public_key_pem(federation.public_key("north")).encode()
    assert now != members.clients[0].key.encode()
    assert federation.keys_of(members.clients) == [now, south]
    federation.remove("north")
    federation.add("north")
    other = public_key_pem(federation.public_key("north")).encode()
    assert other not in federation.keys_of(members.clients), "a name alone takes nobody's place"


def test_admitting_twice_changes_nothing_more(federation: ServerFolder, north: NodeFolder) -> None:
    """As after a crash between the file and the running server."""
    request, fingerprint = request_key(north)
    assert admit_key(federation, request) == ("north", fingerprint)
    before = federation.audit_file.read_bytes()
    assert admit_key(federation, request) == ("north", fingerprint)
    assert federation.audit_file.read_bytes() == before


def test_a_key_that_is_or_was_in_use_is_not_taken_again(
    federation: ServerFolder, north: NodeFolder
) -> None:
    keys = [federation.public_key(name).read_bytes() for name in ("north", "south")]
    request, _ = request_key(north)
    admit_key(federation, request)
    for key in keys:
        with pytest.raises(UserError, match="the key is, or was, in use here; make a new one"):
            federation.replace_key("north", key, request)


def test_a_node_has_one_next_key_at_a_time(north: NodeFolder) -> None:
    """Another one would lock it out where the first is admitted."""
    request_key(north)
    with pytest.raises(UserError, match="a new key waits for the operator to admit"):
        request_key(north)


@pytest.mark.parametrize("field", ["partner", "key", "by_old", "by_new"])
def test_a_request_that_was_changed_is_refused(
    federation: ServerFolder, north: NodeFolder, field: str
) -> None:
    """By that of another partner, who asks at the same time."""
    request, _ = request_key(north)
    other, _ = request_key(NodeFolder(federation.federation / "partners" / "south"))
    theirs = json.loads(other.read_bytes())
    request.write_text(json.dumps({**json.loads(request.read_bytes()), field: theirs[field]}))
    keys = federation.public_key("north").read_bytes(), federation.public_key("south").read_bytes()
    text = refusal("federation", "keys", "admit", federation.federation, request)
    assert "the request is not signed by the" in text
    assert keys == tuple(federation.public_key(n).read_bytes() for n in ("north", "south"))
    assert federation.replacements() == {}


def test_who_has_not_the_old_key_gets_no_new_one(
    federation: ServerFolder, north: NodeFolder
) -> None:
    create_node_key(north.key, north.path / "other.pub")
    request, _ = request_key(north)
    with pytest.raises(UserError, match="not signed by the registered key of north; have the"):
        admit_key(federation, request)


def test_an_old_request_is_none_once_the_key_was_replaced(
    federation: ServerFolder, north: NodeFolder
) -> None:
    first, _ = request_key(north)
    kept = first.read_bytes()
    admit_key(federation, first)
    taken(north)
    second, _ = request_key(north)
    admit_key(federation, second)
    second.write_bytes(kept)
    with pytest.raises(UserError, match="not signed by the registered key"):
        admit_key(federation, second)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "this is no request for a new key"),
        (b"{}", "the key 'partner' is missing"),
        (
            b'{"partner": "north", "key": 1, "by_old": "", "by_new": ""}',
            "key: should be a text",
        ),
        (b'{"partner": "west", "key": "", "by_old": "", "by_new": ""}', "no such partner"),
        (b'{"partner": "north", "key": "x", "by_old": "", "by_new": ""}', "not a public key"),
        (b'{"partner": "../north", "key": "", "by_old": "", "by_new": ""}', "no such partner"),
        (b'{"partner": "' + b"n" * 70_000 + b'"}', "this is no request for a new key"),
    ],
)
def test_what_is_no_request_is_refused_in_one_sentence(
    federation: ServerFolder, tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "request.json"
    file.write_bytes(content)
    assert reason in refusal("federation", "keys", "admit", federation.federation, file)


class Server:
    """Stands in for a node's client of the server: lets in the keys that it is told to."""

    let_in: tuple[bytes, ...] = ()
    left = 0

    def __init__(self, server: str, authority: Path, key: Path) -> None:
        self.key = key.read_bytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def connect(self) -> int:
        if self.key not in Server.let_in:
            raise TurnedAwayError
        return 7

    def leave(self, node: int) -> None:
        Server.left += node == 7


def test_a_node_takes_its_next_key_when_the_server_lets_it_in(
    north: NodeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "Fleet", Server)
    assert not relay._takes_next_key(north, "there:1")
    request_key(north)
    old, new = north.key.read_bytes(), north.next_key.read_bytes()
    monkeypatch.setattr(Server, "let_in", (old,))
    assert not relay._takes_next_key(north, "there:1")
    assert north.key.read_bytes() == old
    monkeypatch.setattr(Server, "let_in", (new,))
    assert relay._takes_next_key(north, "there:1")
    assert north.key.read_bytes() == new
    assert not north.next_key.exists()
    assert Server.left == 1, "so that it can connect with it"
