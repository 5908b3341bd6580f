"""What a person is told by the commands of a federation that does not run, and what they make."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower.real import free_port, refusal
from fullfed.cli import app
from fullfed.config import FederationTable
from fullfed.deployment import federation_commands, flower_runs
from fullfed.deployment.folders import NodeFolder, ServerFolder
from fullfed.deployment.identities import certify_server
from fullfed.deployment.node import errors
from fullfed.deployment.processes import Child, check_server
from fullfed.errors import UserError
from fullfed.quickstart import quickstart_recipe
from fullfed.runs.folder import RunFolder


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
    assert (
        CliRunner().invoke(app, ["federation", "keys", "rotate", str(idle.federation)]).exit_code
        == 0
    )
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
    pattern = tmp_path / "*.csv"
    assert f"{pattern} matches no file that can be" in refusal("join", node, "--data", pattern)
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
    assert not idle.runs.exists(), "nothing is made for a run that cannot begin"


def test_a_start_that_failed_does_not_block_one_that_is_mended(
    idle: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_runs, "check_server", lambda *_: True)
    monkeypatch.setattr(flower_runs, "submit", lambda *_: None)
    monkeypatch.setattr(flower_runs, "follow", lambda run, *_: {"rounds": run.recipe().federation})
    two = FederationTable(rounds=1, clients_per_round=2)
    wrong, mended = (
        quickstart_recipe(method).model_copy(update={"federation": two})
        for method in ("fedavg", "ferret")
    )
    out = idle.runs / "run"
    flower_runs.start(idle, wrong, out, print)
    flower_runs.start(idle, mended, out, print)
    assert RunFolder(out).recipe().method.name == "ferret"
    RunFolder(out).write_base({"model_hash": "", "data_hash": ""})  # it has begun
    with pytest.raises(UserError, match=r"method\.name was 'ferret' and is 'fedavg'"):
        flower_runs.start(idle, wrong, out, print)
    RunFolder(out).write_summary({"rounds": 1})  # it has ended, and may go on for longer
    assert flower_runs.start(idle, mended, out, print) == RunFolder(out).summary()
    longer = mended.model_copy(update={"federation": two.model_copy(update={"rounds": 2})})
    for _ in range(2):
        assert flower_runs.start(idle, longer, out, print) != {"rounds": 1}
        assert not RunFolder(out).summary_file.exists()


def test_a_recipe_for_another_model_than_partners_were_told_is_said(
    idle: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_runs, "check_server", lambda *_: True)
    monkeypatch.setattr(flower_runs, "submit", lambda *_: None)
    monkeypatch.setattr(flower_runs, "follow", lambda *_: {})
    two = FederationTable(rounds=1, clients_per_round=2)
    own = quickstart_recipe("ferret").model_copy(update={"federation": two})
    other = own.model_copy(
        update={"model": own.model.model_copy(update={"path": "/models/their-llama"})}
    )
    for number, (chosen, said) in enumerate(((own, False), (other, True))):
        lines: list[str] = []
        flower_runs.start(idle, chosen, idle.runs / str(number), lines.append)
        note = "note: the recipe's model is /models/their-llama, and federation.toml told partners "
        assert any(line.startswith(f"{note}builtin;") for line in lines) == said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--partner", "a b"], "'a b': a partner's name is letters, digits"),
        (["--partner", "b", "--partner", "b"], "b: there is a partner of this name already"),
        (
            ["--partner", "b", "--address", "fed.org:8443"],
            "give it alone, and the port with --port",
        ),
        (["--partner", "b", "--address", "bücher.example"], "neither an IP address nor a host"),
    ],
)
def test_a_federation_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, changes: list[str], expected: str
) -> None:
    assert expected in refusal("federation", "init", tmp_path / "new", *changes)
    assert list(tmp_path.iterdir()) == []


def test_a_new_partner_gets_the_federations_model(tmp_path: Path) -> None:
    folder = ServerFolder.create(
        tmp_path / "f", ["a"], "127.0.0.1", 1, "127.0.0.1", "/models/llama"
    )
    for command in (["b"], ["c", "--model", "/ours"]):
        assert (
            CliRunner().invoke(app, ["federation", "add", str(tmp_path / "f"), *command]).exit_code
            == 0
        )
    models = [NodeFolder(folder.federation / "partners" / n).settings().model for n in "abc"]
    assert models == ["/models/llama", "/models/llama", "/ours"]


def test_partners_come_and_go(idle: ServerFolder) -> None:
    def invoke(*command: str) -> None:
        result = CliRunner().invoke(
            app, ["federation", command[0], str(idle.federation), command[1]]
        )
        assert result.exit_code == 0, result.output

    invoke("add", "c")
    invoke("remove", "a")
    assert [member.name for member in idle.partners()] == ["b", "c"]
    assert "there is a partner of this name" in refusal("federation", "add", idle.federation, "b")
    assert "there is no such partner" in refusal("federation", "remove", idle.federation, "a")


def test_a_partner_whose_key_the_running_server_refuses_is_not_taken_in(
    idle: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: ServerFolder) -> None:
        raise UserError("Flower refuses (Public key already in use.).")

    monkeypatch.setattr(federation_commands, "_tell_server", refuse)
    result = CliRunner().invoke(app, ["federation", "add", str(idle.federation), "c"])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("c: the partner is not taken in (Flower refuses")
    assert idle.settings().partners == ("a", "b")
    assert not idle.public_key("c").exists()


def test_a_server_that_is_not_there_is_waited_for(idle: ServerFolder) -> None:
    assert not check_server(f"127.0.0.1:{idle.settings().port}", idle.authority)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('methods = "ferret"', "limits.methods: input should be 'all', or should be a list."),
        ('recipes = ["abc"]', "limits.recipes.0: string should match pattern"),
        ("most_steps = 0", "limits.most_steps: input should be greater than 0."),
    ],
)
def test_a_limit_that_is_none_is_named(idle: ServerFolder, line: str, expected: str) -> None:
    node = idle.federation / "partners" / "a"
    text = (node / "node.toml").read_text().split("[limits]")[0]
    (node / "node.toml").write_text(f"{text}\n[limits]\n{line}\n")
    assert expected in refusal("join", node, "--data", "x.jsonl")
