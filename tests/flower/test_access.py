"""Who is let in, and what a person is told who is not."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower.real import Federation, free_port, running_processes, wait_until
from fullfed.cli import app
from fullfed.deployment.flower import check_server, registered
from fullfed.deployment.identities import certify_server, create_authority, create_node_key
from fullfed.deployment.joining import errors
from fullfed.deployment.processes import Child
from fullfed.deployment.server_folder import ServerFolder
from fullfed.errors import UserError

TURNED_AWAY = "the server turns this node away"


def refusal(*command: object) -> str:
    """The one sentence that a command ends in."""
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert isinstance(result.exception, UserError), result.output
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_a_node_whose_key_is_not_registered_is_turned_away(federation: Federation) -> None:
    stranger = federation.copy_of("red", "stranger")
    create_node_key(stranger / "node.key", stranger / "node.pub")
    node = federation.join(stranger, "red")
    node.says(TURNED_AWAY)
    assert "connected" not in node.said()
    node.stop()


def test_a_second_node_with_the_same_key_is_turned_away(federation: Federation) -> None:
    node = federation.join(federation.copy_of("red", "second"), "red")
    node.says(TURNED_AWAY)
    node.stop()


def test_a_server_of_another_authority_is_refused(federation: Federation) -> None:
    deceived = federation.copy_of("red", "deceived")
    create_authority(deceived / "ca.crt", deceived / "ca.key")
    text = refusal("join", deceived, "--data", federation.folder / "red.jsonl")
    assert "the server's certificate is refused" in text


def test_a_port_in_use_is_named(federation: Federation, tmp_path: Path) -> None:
    other = ServerFolder.create(
        tmp_path / "other", ["a"], "127.0.0.1", federation.port, "127.0.0.1", "builtin"
    )
    text = refusal("serve", other.federation)
    assert f"127.0.0.1:{federation.port}: the port cannot be used" in text


def test_a_join_that_is_killed_takes_its_processes_along_and_can_be_repeated(
    federation: Federation,
) -> None:
    first = federation.nodes["red"]
    members = set(first.members())
    first.kill_member("itself")
    assert first.code() == -9
    wait_until(lambda: not members & running_processes(), "the worker and the node to end")
    federation.nodes["red"] = federation.join(federation.partner("red"), "red")
    federation.nodes["red"].says("connected to")


def test_the_servers_own_tools_see_the_nodes(federation: Federation) -> None:
    assert len(registered(federation.server_folder)) == 4
    result = CliRunner().invoke(app, ["status", str(federation.directory)], env={"COLUMNS": "200"})
    assert result.output.count("online") == 4, result.output


def test_what_the_worker_cannot_do_is_told_where_the_node_runs(tmp_path: Path) -> None:
    output = tmp_path / "worker.log"
    child = Child(["worker"], output, {})
    line = "2026-01-01 00:00:00,000 {}: {}\n".format
    output.write_text(line("INFO", "round 0") + line("ERROR", "m: this is another model.") + "2026")
    assert errors(child.news()) == ["m: this is another model."]
    with output.open("a") as more:
        more.write(line("ERROR", "d: the data are gone."))
    assert errors(child.news()) == ["d: the data are gone."]
    assert child.news() == []


@pytest.fixture
def idle(tmp_path: Path) -> ServerFolder:
    """A federation that does not run."""
    folder = tmp_path / "idle"
    return ServerFolder.create(folder, ["a", "b"], "127.0.0.1", free_port(), "127.0.0.1", "builtin")


def test_an_expired_certificate_is_named_and_can_be_renewed(idle: ServerFolder) -> None:
    certify_server(
        idle.authority, idle.authority_key, idle.certificate, idle.key, ["127.0.0.1"], days=0
    )
    assert "the certificate expired on" in refusal("serve", idle.federation)
    before = idle.certificate.read_bytes()
    assert CliRunner().invoke(app, ["federation", "renew", str(idle.federation)]).exit_code == 0
    assert idle.certificate.read_bytes() != before


def test_a_node_refuses_a_server_whose_certificate_has_expired(
    idle: ServerFolder, tmp_path: Path
) -> None:
    hosts = ["127.0.0.1"]
    certify_server(idle.authority, idle.authority_key, idle.certificate, idle.key, hosts, days=0)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(idle.certificate, idle.key)
    data = tmp_path / "data.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    with socket.create_server(("127.0.0.1", idle.settings().port)) as listener:

        def accept() -> None:
            with suppress(ssl.SSLError):
                context.wrap_socket(listener.accept()[0], server_side=True)

        threading.Thread(target=accept, daemon=True).start()
        text = refusal("join", idle.federation / "partners" / "a", "--data", data)
    assert "the server's certificate is refused (certificate has expired)" in text


def test_private_keys_are_readable_by_their_owner_alone(idle: ServerFolder) -> None:
    keys = [idle.key, idle.authority_key, idle.federation / "partners" / "a" / "node.key"]
    assert [oct(key.stat().st_mode & 0o777) for key in keys] == ["0o600"] * 3


def test_data_and_models_that_are_not_there_are_named_on_the_node(
    idle: ServerFolder, tmp_path: Path
) -> None:
    node = idle.federation / "partners" / "a"
    assert "no data are named; name them with --data" in refusal("join", node)
    nowhere = tmp_path / "nowhere.jsonl"
    assert f"{nowhere}: there are no data here" in refusal("join", node, "--data", nowhere)
    data = tmp_path / "data.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    text = refusal("join", node, "--data", data, "--model", "./no-model")
    assert "./no-model: there is no model folder here" in text


def test_folders_that_are_none_are_named(tmp_path: Path) -> None:
    assert "there is no federation here" in refusal("serve", tmp_path)
    assert "there is no node.toml here" in refusal("join", tmp_path, "--data", "x.jsonl")


def test_starting_without_a_server_says_what_to_run(idle: ServerFolder, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'model.path = "builtin"\ndata.train = "builtin"\nmethod.name = "fedavg"\n'
        "federation = {rounds = 1, clients_per_round = 2}\n"
    )
    text = refusal("start", idle.federation, recipe)
    assert "the server does not run; run `fullfed serve" in text
    more = refusal("start", idle.federation, recipe, "--set", "federation.clients_per_round=3")
    assert "the federation has only 2 partners" in more
    other = refusal("start", idle.federation, recipe, "--set", "federation.rounds=2")
    assert "the run here is of another recipe" in other


def test_partners_come_and_go(idle: ServerFolder) -> None:
    def invoke(*command: str) -> None:
        result = CliRunner().invoke(
            app, ["federation", command[0], str(idle.federation), command[1]]
        )
        assert result.exit_code == 0, result.output

    invoke("add", "c")
    invoke("remove", "a")
    assert [member.name for member in idle.members()] == ["b", "c"]
    assert "there is a partner of this name" in refusal("federation", "add", idle.federation, "b")
    assert "there is no such partner" in refusal("federation", "remove", idle.federation, "a")


def test_a_server_that_is_not_there_is_waited_for(idle: ServerFolder) -> None:
    assert not check_server(f"127.0.0.1:{idle.settings().port}", idle.authority)
