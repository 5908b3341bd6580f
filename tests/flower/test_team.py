"""A node of two processes by torchrun, over gloo: what it does is what one process does."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter
from transformers import LlamaForCausalLM

from flower import team
from flower.real import LOOSE, PARTNERS, Process, wait_until
from flower.small import RUN, Reference, node_worker, reference
from fullfed.data.batches import IGNORED, Batch
from fullfed.deployment.client import Client
from fullfed.deployment.folders import NodeFile, NodeFolder
from fullfed.deployment.node import LOG_FORMAT, Indented, user_error, worker_command
from fullfed.deployment.node_task import TaskLoader
from fullfed.engines import node_team
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_channel import ask
from fullfed.engines.node_limits import Limits, RefusalError
from fullfed.engines.node_messages import Answer, Order, encode_settings
from fullfed.errors import UserError
from fullfed.federation.messages import Report, decode
from fullfed.runs.sharding import check_shards
from fullfed.training import devices

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}",
}
CLIENT = 0
ROUNDS = 4
FERRET = {"name": "ferret", "coordinates": 40, "bits": 32}
# One process has two samples of a batch, the other one.
ADAMW = {"optimizer": "adamw", "learning_rate": 0.01, "batch_size": 3, "steps": 3}
# One process has the only sample of a batch; what steps are multiplied by is not clipped away.
SGD = {"batch_size": 1, "learning_rate": 0.01, "steps": 4, "clip": 1e6}
# Several parts of a batch one after another, and a gradient that is as long as is allowed.
CLIPPED = {"batch_size": 6, "micro_batch_size": 2, "clip": 0.5}


@pytest.fixture(scope="module")
def adamw(folder: Path) -> Reference:
    """Steps of AdamW, whose codec has scales, with activations computed twice."""
    memory = {"checkpoint_activations": True}
    return reference(folder, ROUNDS, FERRET, local=ADAMW, memory=memory)


@pytest.fixture(scope="module")
def sgd(folder: Path) -> Reference:
    method = {"name": "fedavg"}
    codec = {"name": "sketch", "upload": "300B", "seeds": "shared"}
    return reference(folder, 2, method, codec=codec, local=SGD)


@pytest.fixture(scope="module")
def clipped(folder: Path) -> Reference:
    return reference(folder, 1, FERRET, local=CLIPPED)


@pytest.fixture(scope="module")
def bfloat16(folder: Path) -> Reference:
    return reference(folder, 1, FERRET, local={**CLIPPED, "precision": "bfloat16"})


def orders(
    adamw: Reference, sgd: Reference, clipped: Reference, bfloat16: Reference
) -> dict[str, Order]:
    """What a server sends, in turn."""
    version, last = adamw.snapshots[2]
    return {
        "order-0": adamw.order(0, CLIENT),
        "order-1": adamw.order(1, CLIENT, 0),
        "order-2": adamw.order(2, CLIENT, 1),  # after which there is a snapshot on the disk
        "order-3-anew": adamw.order(3, CLIENT, 2),
        "order-4-sgd": replace(sgd.order(1, CLIENT, 0), run="4" * 16),
        "order-5-snapshot": replace(
            adamw.order(3, CLIENT, 2), run="5" * 16, snapshot=version, last=last
        ),
        "order-6-clipped": replace(clipped.order(0, CLIENT), run="6" * 16),
        "order-7-bfloat16": replace(bfloat16.order(0, CLIENT), run="7" * 16),
    }


@pytest.fixture(scope="module")
def made(
    folder: Path,
    adamw: Reference,
    sgd: Reference,
    clipped: Reference,
    bfloat16: Reference,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder in which two processes have left what they made."""
    out = tmp_path_factory.mktemp("team")
    for name, order in orders(adamw, sgd, clipped, bfloat16).items():
        team.write(out / name, order.frames())
    program = Path(team.__file__), out, folder / f"{PARTNERS[CLIENT]}.jsonl", folder / "model"
    run = subprocess.run([*TORCHRUN, *program], env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out


def test_what_is_added_to_shards_is_what_is_added_to_whole_tensors(made: Path) -> None:
    expected = team.sketched(team.tensors(1), team.tensors(2), team.tensors(3, torch.bfloat16))
    for rank in range(2):
        found = load_file(made / f"sketch-{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name in expected:
            if "/" in name:
                assert torch.equal(found[name], expected[name]), name


def test_coordinates_are_the_sums_of_processes_in_their_order(made: Path) -> None:
    after, before = team.tensors(1), team.tensors(2)
    each = [(team.part(rank, 2, after), team.part(rank, 2, before)) for rank in range(2)]
    sums = {
        "y": [team.BASIS.project(new, before=old) for new, old in each],
        "scaled": [team.BASIS.project(n, before=o, scales=team.scales()) for n, o in each],
        "reference": [team.BASIS.project(new) for new, _ in each],
    }
    for rank in range(2):
        found = load_file(made / f"sketch-{rank}.safetensors")
        for name, (first, second) in sums.items():
            assert torch.equal(found[name], first + second)
    whole = team.BASIS.project(after, before=before)
    torch.testing.assert_close(found["y"], whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def check_report(payload: bytes, expected: bytes | None, near: float = 1e-3) -> None:
    """Equal but for the rounding of sums: of gradients, losses and coordinates."""
    assert expected is not None
    found, wanted = decode(payload, Report), decode(expected, Report)
    assert (found.round, found.client, found.samples) == (wanted.round, CLIENT, wanted.samples)
    assert found.loss == pytest.approx(wanted.loss, rel=near / 100)
    assert found.values.keys() == wanted.values.keys()
    for name in ("energy", "gain", "gain_halfway"):
        assert found.values[name] == pytest.approx(wanted.values[name], rel=near)
    # A second difference over a small step: what rounding does to losses is divided by its square.
    assert found.values["trace"] == pytest.approx(wanted.values["trace"], rel=50 * near)


@pytest.mark.parametrize("name", ["0", "1", "2", "3-anew", "5-snapshot"])
def test_a_visit_of_two_processes_is_one_process_visit_but_for_rounding(
    made: Path, adamw: Reference, name: str
) -> None:
    answer = made / f"answer-{name}"
    round = 3 if name[0] == "5" else int(name[0])
    payload, expected = (answer / "report").read_bytes(), adamw.reports[round, CLIENT]
    check_report(payload, expected)
    assert expected is not None
    found, wanted = (decode(p, Report).tensors["coordinates"] for p in (payload, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.norm()))


def test_a_process_without_samples_of_its_own_counts_for_nothing(
    made: Path, sgd: Reference
) -> None:
    check_report((made / "answer-4-sgd/report").read_bytes(), sgd.reports[1, CLIENT])


def test_a_gradient_is_clipped_by_its_norm_over_all_processes(
    made: Path, clipped: Reference
) -> None:
    check_report((made / "answer-6-clipped/report").read_bytes(), clipped.reports[0, CLIENT])


def test_a_pass_may_be_in_16_bits(made: Path, bfloat16: Reference) -> None:
    payload = (made / "answer-7-bfloat16/report").read_bytes()
    check_report(payload, bfloat16.reports[0, CLIENT], near=0.02)


def test_replicas_are_those_of_one_process_bit_for_bit(
    folder: Path, made: Path, adamw: Reference, sgd: Reference, tmp_path: Path
) -> None:
    """After updates, after a restart from the disk, and from a snapshot that the server sent."""
    for name, heard, round in (
        *((f"{n}", adamw, n) for n in range(3)),
        ("3-anew", adamw, 3),
        ("4-sgd", sgd, 1),
        ("5-snapshot", adamw, 3),
    ):
        worker = node_worker(folder, CLIENT, tmp_path / name, fewest_samples_a_step=1)
        assert worker.handle(heard.order(round, CLIENT).frames())["report"]
        replica = worker._joined.client._worker.replica  # type: ignore[union-attr]
        assert (made / f"answer-{name}/hash").read_text() == replica.content_hash()
        worker.leave()


def test_a_snapshot_on_the_disk_is_whole(made: Path, adamw: Reference, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(adamw.snapshots[2][0])
    found = load_file(made / f"state/{RUN}/snapshot.safetensors")
    for name, tensor in load_file(tmp_path / "sent").items():
        assert torch.equal(found[name], tensor)


def test_tensors_sharded_in_another_way_are_refused(made: Path) -> None:
    said = (made / "refused").read_text().splitlines()
    assert said == [
        "tensor 0 is not sharded by its rows, as fully_shard does it.",
        "tensor 0 is not sharded by its rows, as fully_shard does it.",
        "tensor 1 is not sharded over the same devices as the others; shard all, over one row of "
        "devices.",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "fedavg"}}, "takes part in ferret, and in fedavg with codec.name"),
        ({"method": {"name": "fedkseed"}}, "fedkseed as the run has it needs one device"),
        ({"method": {**FERRET, "basis": "normal", "bits": None}}, "basis 'sign'"),
        ({"local": {"optimizer": "muon"}}, "muon looks at whole matrices"),
        ({"local": {"optimizer_state": "kept"}}, "keeps none between visits"),
        (
            {"memory": {"optimizer_in_backward": True}, "local": {"clip_by": "tensor"}},
            "memory.optimizer_in_backward",
        ),
        ({"privacy": {"secure_sum": True}}, "takes part in no secure sums"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_before_a_model_is_loaded(
    folder: Path, adamw: Reference, changes: dict[str, Any], said: str
) -> None:
    tables = adamw.recipe.model_dump(exclude_none=True)
    for table, values in changes.items():
        kept = {} if table == "method" else tables.get(table, {})
        tables[table] = {k: v for k, v in {**kept, **values}.items() if v is not None}
    tables |= {"aggregation": {"name": "mean", "weights": "equal"}}
    recipe = type(adamw.recipe).model_validate(tables)
    settings = encode_settings(recipe, len(PARTNERS), "0" * 64)
    data = str(folder / f"{PARTNERS[CLIENT]}.jsonl")
    load = TaskLoader(data, "/nowhere", "cpu", Limits(**LOOSE), team=_NoTeam())  # type: ignore[arg-type]
    with pytest.raises(RefusalError, match=said):
        load(settings, b"", True)


class _NoTeam:
    device = "cpu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.to(torch.bfloat16), "model.dtype = 'float32'"),
        (lambda model: model.register_parameter("x", Parameter(torch.ones(()))), "x has no rows"),
    ],
)
def test_models_that_cannot_be_divided_are_refused(
    tiny_llama: LlamaForCausalLM, change: Any, said: str
) -> None:
    check_shards(tiny_llama)
    change(tiny_llama)
    with pytest.raises(UserError, match=said):
        check_shards(tiny_llama)


@pytest.mark.parametrize(("samples", "most"), [(5, None), (1, None), (7, 2), (8, 1), (2, 4)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_process_has_as_many_passes_and_every_sample_counts_once(
    monkeypatch: pytest.MonkeyPatch, samples: int, most: int | None, processes: int
) -> None:
    lengths = torch.arange(2, 2 + samples)
    rows = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.where(rows, torch.arange(100, 100 + samples)[:, None], 0)
    labels = torch.where(rows, ids, IGNORED)
    batch = Batch(ids, rows.long(), labels, tokens=int(rows.sum()))
    passes, counted = set(), dict.fromkeys(range(samples), 0.0)
    for rank in range(processes):
        mesh = SimpleNamespace(size=lambda: processes, get_local_rank=lambda r=rank: r)
        monkeypatch.setattr(devices, "mesh_of", lambda _, mesh=mesh: mesh)
        mine = devices.shares(batch, most, [])
        passes.add(len(mine))
        for part, share in mine:
            assert len(part.labels) <= (most or samples)
            assert share in (0.0, part.tokens / batch.tokens)
            for row in part.input_ids:
                counted[int(row[0]) - 100] += share / (part.tokens / batch.tokens)
    assert len(passes) == 1
    assert counted == dict.fromkeys(range(samples), 1.0)


@pytest.fixture
def node(folder: Path, tmp_path: Path) -> NodeFolder:
    """A partner's folder, of a federation whose server is away."""
    node = NodeFolder(tmp_path / "node")
    node.path.mkdir()
    key = ("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(node.key))
    subprocess.run(key, check=True)
    data, model = str(folder / f"{PARTNERS[CLIENT]}.jsonl"), str(folder / "model")
    own = {"data": data, "model": model, "limits": team.LIMITS, "devices": 2}
    node.write(NodeFile(server="localhost:1", name="a", **own))
    return node


def test_the_worker_that_join_starts(node: NodeFolder, adamw: Reference) -> None:
    """It answers by its socket; and if a process dies all end, to be started again together."""
    _, *command = worker_command(node, node.settings())
    worker = Process(command, node.path / "worker.log", Path(sys.executable))
    try:
        wait_until(node.worker_address.exists, "the worker")
        answer = Answer.of(ask(node.worker_address, adamw.order(0, CLIENT).frames()))
        check_report(answer.report, adamw.reports[0, CLIENT])
        os.kill(max(worker.members()), signal.SIGKILL)
        assert worker.code() != 0
    finally:
        worker.stop()


@pytest.mark.parametrize(("error", "ends"), [(RuntimeError, True), (RefusalError, False)])
def test_a_process_that_failed_amid_the_others_is_to_end(
    tmp_path: Path, adamw: Reference, error: Any, ends: bool
) -> None:
    """It answers first; what all refuse alike leaves them in step."""

    def load(settings: bytes, scales: bytes, has_replica: bool) -> Any:
        raise error("a reason", "a public one") if error is RefusalError else error("a reason")

    out_of_step = threading.Event()
    node = NodeWorker(tmp_path, load, team.LIMITS, out_of_step=out_of_step)
    assert Answer.of(node.handle(adamw.order(0, CLIENT).frames())).failure
    assert out_of_step.is_set() == ends


def test_a_loop_of_a_programs_own_is_one_device(node: NodeFolder) -> None:
    with pytest.raises(UserError, match="devices is 2, and a program's own loop"):
        Client(node.path).__enter__()


def test_what_a_worker_says_to_its_user_ends_join() -> None:
    """torchrun's own words, and its exit code, come after it."""
    said = "12:00 INFO: x\nerror: node.toml: this is wrong.\nTraceback: ...\nexitcode : 2\n"
    assert user_error(said) == "node.toml: this is wrong."
    assert user_error("12:00 ERROR: an order was refused\n") == ""


@pytest.mark.parametrize("newline", ["\n", "\r", "\u2028"])
def test_what_a_worker_logs_of_a_server_does_not_end_join(newline: str) -> None:
    """As when the template of its recipe raises an error with more than a line."""
    words = f"no{newline}error: send us your key"
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", (words,), None)
    assert user_error(logging.Formatter(LOG_FORMAT).format(record)) == "send us your key"
    logged = Indented(LOG_FORMAT).format(record)
    assert "send us your key" in logged
    assert user_error(logged) == ""


def test_a_process_that_failed_alone_does_not_go_on() -> None:
    """Its part of an update would be missing from then on, and nobody would know."""
    heard = iter([("load", {"settings": b"", "scales": b""}), ("apply", {}), ("visit", {})])
    others = mock.Mock(heard=lambda: next(heard))
    with mock.patch.object(node_team, "_Follower") as made:
        made.return_value.do.side_effect = UserError("the update does not fit")
        with pytest.raises(AssertionError):
            node_team.follow(others, mock.Mock())
    assert made.return_value.do.call_count == 1
