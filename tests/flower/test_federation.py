"""A real federation: processes, TLS, keys. One for all these tests, which are in one file for that.

Its logs are those of runs in one process, also when its processes are killed; its traffic is what
the accounts say; and it lets in whom it should.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from typer.testing import CliRunner

from flower.intruder import Caller, flwr, write_foreign_app, write_home
from flower.proxy import CLOSED
from flower.real import (
    PARTNERS,
    Federation,
    open_to_others,
    own_address,
    refusal,
    running_processes,
    wait_until,
    write_ingredients,
    write_recipe,
)
from fullfed.cli import app
from fullfed.deployment.audit import read_audit
from fullfed.deployment.flower_internals import Fleet
from fullfed.deployment.flower_runs import start
from fullfed.deployment.folders import NodeFolder, ServerFolder
from fullfed.deployment.gate import _NODES_CALLS
from fullfed.deployment.identities import create_authority, create_node_key, public_key_pem
from fullfed.deployment.members import read_members
from fullfed.deployment.server import registered
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify

MESSAGE = 24 << 10  # bytes that a visit may cost beyond its frames, each way
NODE_SECOND = 2 << 10  # bytes a second that a node may cost by asking for messages, each way
ROUNDS = 8
A_SECURE_ROUND = 6.0  # seconds, of five messages
A_ROUND = 3.0  # seconds; about what one takes on a quiet machine
OTHER_PATHS = {"/", "/docs", "/openapi.json", "/health", "/v1/responses", "/v1/fleet/../control"}
TURNED_AWAY = "the server turns this node away"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Four partners, connected."""
    folder = tmp_path_factory.mktemp("real")
    write_ingredients(folder)
    federation = Federation(folder)
    yield federation
    federation.close()


def test_log_and_traffic_are_those_of_a_run_in_one_process(
    federation: Federation, tmp_path: Path
) -> None:
    """Of Ferret; FedCyBGD is what is killed."""
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method={"name": "ferret", "coordinates": 300},
        federation={"rounds": 2, "clients_per_round": 3},
    )
    logs = {name: _worker_log(federation, name) for name in PARTNERS}
    passed, began = _passed(federation), time.monotonic()
    out = tmp_path / "real"
    start(federation.server_folder, load_recipe(recipe), out, print)
    passed = {way: total - passed[way] for way, total in _passed(federation).items()}
    _check_traffic(_lines(out), passed, time.monotonic() - began)
    summary = run.start(load_recipe(recipe), tmp_path / "simulated")
    simulated = tmp_path / "simulated"
    assert (out / "updates.log").read_bytes() == (simulated / "updates.log").read_bytes()
    assert json.loads((out / "summary.json").read_text())["model_hash"] == summary["model_hash"]
    assert [_account(r) for r in _lines(out)] == [_account(r) for r in _lines(simulated)]
    for name in PARTNERS:
        news = _worker_log(federation, name)[len(logs[name]) :]
        visits = sum(PARTNERS.index(name) in r["cohort"] for r in _lines(out))
        assert news.count(" as client ") == visits
        assert news.count(" loaded") == min(visits, 1), "the model stays in memory between rounds"


def test_what_their_processes_wrote_is_for_one_user_alone(federation: Federation) -> None:
    assert (federation.partner(PARTNERS[0]) / "node.log").exists()
    assert open_to_others(federation.directory) == {}


def test_nothing_on_the_server_names_a_nodes_data(federation: Federation) -> None:
    for name in PARTNERS:
        path = str(federation.folder / f"{name}.jsonl").encode()
        assert path in (federation.partner(name) / "node.toml").read_bytes()
        for file in federation.server_folder.path.rglob("*"):
            assert not file.is_file() or path not in file.read_bytes(), file


def test_whatever_is_killed_or_cut_off_the_run_ends_with_the_model_it_would_have_had(
    federation: Federation, tmp_path: Path
) -> None:
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method={"name": "fedcybgd", "blocks": 2, "clients_per_block": 2},
        federation={"rounds": ROUNDS, "clients_per_round": 2},
    )
    undisturbed = run.start(load_recipe(recipe), tmp_path / "whole")
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    cohorts = [record["cohort"] for record in whole.metrics()]
    random_moments = random.Random(0)

    def some_moment_of(round: int) -> str:
        """Wait for it; return a partner that takes part in the round."""
        wait_until(lambda: len(killed.metrics()) >= round, f"round {round}")
        time.sleep(random_moments.uniform(0, A_ROUND))
        return PARTNERS[random_moments.choice(cohorts[round])]

    started = federation.start(recipe, killed.path)
    workless = federation.nodes[some_moment_of(1)]
    workless.kill_member("fullfed worker")
    some_moment_of(2)
    federation.proxy.begin(CLOSED)  # to Flower's own node this looks like a broken certificate
    for node in federation.nodes.values():
        node.says("no connection to")
    federation.proxy.end()
    nodeless = federation.nodes[some_moment_of(3)]
    nodeless.kill_member("fullfed.deployment.relay")
    name = some_moment_of(4)
    _give_new_key(federation, name)
    some_moment_of(5)
    [led] = [c for c in federation.server.members().values() if "/flwr-serverapp" in c]
    assert "--token-file" in led, "others on the machine would read the run's token there"
    federation.server.kill_member("flwr-serverapp")
    assert started.code() == 2
    assert "the run's process has died after round" in started.said()
    start(federation.server_folder, load_recipe(recipe), killed.path, print)
    assert "the worker has died and is started again" in workless.said()
    assert "the link to the server has died and is started again" in nodeless.said()
    assert all("), after" in node.said() for node in federation.nodes.values())
    assert killed.log_file.read_bytes() == whole.log_file.read_bytes()
    assert killed.summary()["model_hash"] == undisturbed["model_hash"]
    assert [record["aggregated"] for record in killed.metrics()] == cohorts
    _check_audit(federation, killed)
    former = federation.link(federation.folder / f"former-{name}")
    former.says(TURNED_AWAY)
    assert "connected" not in former.said()
    former.stop()


def _give_new_key(federation: Federation, name: str) -> None:
    """To a node, which goes on; a copy of its folder with the old key is left beside."""
    federation.copy_of(name, f"former-{name}")
    node = NodeFolder(federation.partner(name))
    [request] = _invoke("federation", "keys", "rotate", node.path)
    _invoke("federation", "keys", "admit", federation.directory, node.path / request)
    wait_until(lambda: not node.next_key.exists(), "the node to take its new key")
    assert node.key.read_bytes() != (federation.folder / f"former-{name}/node.key").read_bytes()


def _check_audit(federation: Federation, run: RunFolder) -> None:
    """The file has the whole life of a run whose process was killed, and which nodes came."""
    folder, members = federation.server_folder, read_members(run.path)
    assert members is not None
    lines = read_audit(folder.audit_file, folder.authority)
    about = [
        line
        for line in lines
        if line.about.get("run") == members.run and line.act != "refuse"  # who answered twice
    ]
    assert [line.act for line in about] == ["start", "resume", "end"]
    assert [about[0].about["partners"], about[1].about["version"] > 0] == [PARTNERS, True]
    assert about[2].about["model"] == run.summary()["model_hash"]
    assert about[2].about["log"] == run.metrics()[-1]["log"]
    assert [line.act for line in lines[:6]] == ["create", *["add"] * 4, "serve"]
    assert {line.about["partner"] for line in lines if line.act == "join"} == set(PARTNERS)
    assert "rotate" in {line.act for line in lines}


def _invoke(*command: object) -> list[str]:
    """Carry out a command; return the names of the requests for keys that it speaks of."""
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    return re.findall(r"[\w-]+\.key-request\.json", result.output)


def test_secure_sums_survive_workers_that_are_killed_in_any_phase(
    federation: Federation, tmp_path: Path
) -> None:
    """One worker at a time, at moments of its visits and of the phases after them."""
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method={"name": "ferret", "coordinates": 300, "seeds": "shared"},
        aggregation={"name": "mean", "weights": "equal"},
        privacy={"secure_sum": True},
        federation={"rounds": 3, "clients_per_round": 4},
        deployment={"quorum": 0.75},
    )
    done, moments = RunFolder(tmp_path / "secure"), random.Random(1)
    started = federation.start(recipe, done.path)
    for round in (1, 2):
        wait_until(lambda r=round: len(done.metrics()) >= r, f"round {round}")  # type: ignore[misc]
        time.sleep(moments.uniform(0, A_SECURE_ROUND))
        federation.nodes[PARTNERS[round]].kill_member("fullfed worker")
    assert started.code() == 0, started.said()
    verify(done)
    summed = [record["aggregated"] for record in done.metrics()]
    assert summed[0] == [0, 1, 2, 3]
    assert all(len(clients) >= 3 for clients in summed), summed
    for record in done.metrics():
        told = {one["client"]: one["reason"] for one in record["refused"]}
        left = {0, 1, 2, 3} - set(record["aggregated"])
        assert left <= told.keys(), "whoever is not in a sum is named, with a reason"


def test_a_node_whose_key_is_not_registered_is_turned_away(federation: Federation) -> None:
    stranger = federation.copy_of("red", "stranger")
    create_node_key(stranger / "node.key", stranger / "node.pub")
    node = federation.link(stranger)
    node.says(TURNED_AWAY)
    assert "connected" not in node.said()
    node.stop()


def test_a_second_node_with_the_same_key_is_turned_away(federation: Federation) -> None:
    node = federation.link(federation.copy_of("red", "second"))
    node.says(TURNED_AWAY)
    node.stop()


def test_a_node_that_the_server_takes_for_gone_can_take_leave(federation: Federation) -> None:
    """As after a long outage: otherwise it would never come back."""
    folder, red = federation.server_folder, NodeFolder(federation.partner("red"))
    node = int(registered(folder)[public_key_pem(folder.public_key("red"))])
    with Fleet(red.settings().server, red.authority, red.key) as fleet:
        for _ in range(2):
            fleet.leave(node)
        assert fleet.connect() == node


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


def test_strangers_and_partners_control_nothing(federation: Federation, tmp_path: Path) -> None:
    """Wherever they come from, and whatever they call."""
    paths = {path for _, path in PROTOBUF_REQUEST_TYPES} | OTHER_PATHS
    folder, authority = federation.server_folder, federation.partner("red") / "ca.crt"
    key = federation.partner("red") / "node.key"
    for host in {own_address(), "127.0.0.1"}:
        address = f"{host}:{federation.port}"
        stranger, partner = Caller(address, authority), Caller(address, authority, key)
        refused = stranger.statuses(paths)
        assert {path for path, status in refused.items() if status != 403} == _NODES_CALLS
        assert {refused[path] for path in _NODES_CALLS} == {401}, "they need a node's signature"
        refused = partner.statuses(paths - _NODES_CALLS)
        assert set(refused.values()) == {403}
    beside = Caller(folder.local_address, authority, key).statuses(paths)  # on the same machine
    assert {path for path, status in beside.items() if status == 200} == set()
    assert all(beside[path] == 403 for path in paths if not path.startswith("/v1/runtime/"))
    app = write_foreign_app(tmp_path / "app", tmp_path / "told")
    home = write_home(tmp_path / "home", f"{own_address()}:{federation.port}", authority)
    for command in (["run", app], ["list"], ["supernode", "list"]):
        succeeded, said = flwr(home, *command, "theirs")
        assert not succeeded, said
    assert not list(tmp_path.glob("told*")), "nothing of it ran anywhere"


def test_a_node_runs_no_code_that_the_server_names(federation: Federation, tmp_path: Path) -> None:
    """Not even if the server's operator says so; what is no order is answered with an error."""
    told = tmp_path / "told"
    app = write_foreign_app(tmp_path / "app", told)
    succeeded, said = flwr(federation.server_folder.flower, "run", app, "federation")
    assert succeeded, said
    wait_until(told.exists, "the foreign app's server")
    replies = told.read_text().splitlines()
    assert len(replies) == len(PARTNERS)
    assert all("carries out fullfed's orders, and no other app" in reply for reply in replies)
    assert (tmp_path / "told.server").exists()
    assert not (tmp_path / "told.client").exists()


def _passed(federation: Federation) -> dict[str, int]:
    """Bytes at the server's socket, TLS and all."""
    return {"up": federation.proxy.up, "down": federation.proxy.down}


def _check_traffic(records: list[dict[str, Any]], passed: dict[str, int], seconds: float) -> None:
    """What passes the server's socket is what the accounts say, and a little more."""
    visits = sum(len(record["cohort"]) for record in records)
    constant = visits * MESSAGE + len(PARTNERS) * seconds * NODE_SECOND
    for way, total in passed.items():
        accounted = sum(record["bytes"][way] for record in records)
        print(f"{way}: {accounted} accounted, {total} passed, {visits} visits, {seconds:.0f} s")
        assert accounted <= total <= 1.05 * accounted + constant


def _account(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: record[key] for key in ("round", "cohort", "aggregated", "refused", "loss", "bytes")
    }


def _worker_log(federation: Federation, name: str) -> str:
    return (federation.partner(name) / "worker.log").read_text()


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


LOOP = """
import sys, torch, fullfed

with fullfed.Client(sys.argv[1], data=sys.argv[2]) as client:
    for visit in client:
        optimizer = torch.optim.SGD(visit.model.parameters(), lr=visit.context.local.learning_rate)
        batch = visit.dataset.collate(visit.dataset[:4])
        loss = visit.model(**batch).loss
        loss.backward()
        optimizer.step()
        visit.finish(loss=loss.item())
        print("finished round", visit.context.round, flush=True)
"""


def test_a_programs_own_loop_takes_a_nodes_place(federation: Federation, tmp_path: Path) -> None:
    name, script, said = PARTNERS[1], tmp_path / "loop.py", tmp_path / "loop.out"
    federation.nodes[name].stop()
    script.write_text(LOOP)
    command = [sys.executable, script, federation.partner(name)]
    data = federation.folder / f"{name}.jsonl"
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method={"name": "fedavg"},
        federation={"rounds": 2, "clients_per_round": 4},
    )
    with said.open("wb") as output:
        loop = subprocess.Popen([*command, data], stdout=output, stderr=output)
    try:
        wait_until(lambda: "connected to" in said.read_text(), "the connection")
        start(federation.server_folder, load_recipe(recipe), tmp_path / "real", print)
    finally:
        loop.terminate()
        loop.wait(30)
    assert [record["aggregated"] for record in _lines(tmp_path / "real")] == [[0, 1, 2, 3]] * 2
    assert said.read_text().count("finished round") == 2
    assert verify(RunFolder(tmp_path / "real")) == 3
    federation.nodes[name] = federation.join(federation.partner(name), name)
    federation.nodes[name].says("connected to")


def test_a_partner_that_is_removed_is_out_of_a_run_that_goes_on(
    federation: Federation, tmp_path: Path
) -> None:
    out = RunFolder(tmp_path / "removed")
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method={"name": "ferret", "coordinates": 300},
        federation={"rounds": 5, "clients_per_round": 4},
        deployment={"quorum": 0.5},
    )
    started = federation.start(recipe, out.path)
    wait_until(lambda: len(out.metrics()) > 0, "the first round")
    _invoke("federation", "remove", federation.directory, PARTNERS[0])
    assert started.code() == 0, started.said()
    assert [r["aggregated"] for r in (out.metrics()[0], out.metrics()[-1])] == [
        [0, 1, 2, 3],
        [1, 2, 3],
    ]
    federation.nodes[PARTNERS[0]].says(TURNED_AWAY)
    folder = federation.server_folder
    lines = read_audit(folder.audit_file, folder.authority)
    assert {"partner": PARTNERS[0]} in [line.about for line in lines if line.act == "remove"]
    refused = [line.about for line in lines if line.act == "refuse"]
    assert {about["partner"] for about in refused if about["round"] == 4} == {PARTNERS[0]}
