"""What a node's owner allows is checked on the node, and a refusal names the limit."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from flower.real import PARTNERS, open_to_others
from flower.small import RUN, Reference, node_worker, reference
from fullfed.config import LocalTable
from fullfed.deployment import node_task
from fullfed.deployment.folders import NodeFile, NodeFolder, ServerFolder
from fullfed.deployment.node import errors
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_drift import Drift
from fullfed.engines.node_limits import LimitError, Limits, fewest_samples
from fullfed.engines.node_messages import (
    Answer,
    Order,
    decode_settings,
    encode_settings,
    recipe_hash,
)
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.replica import _snapshot_hash
from fullfed.quickstart import quickstart_recipe
from fullfed.recipe_file import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def fedavg(folder: Path) -> Reference:
    return reference(folder, 3, {"name": "fedavg"})


def ask(node: NodeWorker, order: Order) -> Answer:
    return Answer.of(node.handle(order.frames()))


def changed(settings: bytes, **tables: Any) -> bytes:
    sent = json.loads(settings)
    for name, values in tables.items():
        table = sent["tables"].setdefault(name, {})
        table.update(values)
        sent["tables"][name] = {key: v for key, v in table.items() if v is not None}
    return json.dumps(sent).encode()


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model may be loaded."""
    monkeypatch.setattr(node_task, "load_model", None)
    monkeypatch.setattr(node_task, "load_blank", None)
    return


@pytest.mark.parametrize(
    ("limits", "tables", "limit"),
    [
        ({"methods": ["ferret"]}, {}, "methods"),
        ({"recipes": ["0" * 64]}, {}, "recipes"),
        ({"base_models": ["0" * 64]}, {}, "base_models"),
        ({}, {"local": {"batch_size": 1}}, "fewest_samples_a_step"),
        ({"fewest_samples_a_step": 9}, {"local": {"batch_size": 9}}, "fewest_samples_a_step"),
        ({}, {"local": {"batch_size": 1025}}, "most_samples_a_step"),
        ({"fewest_samples_a_visit": 5}, {}, "fewest_samples_a_visit"),
        ({}, {"local": {"steps": 10_001}}, "most_steps"),
        ({}, {"local": {"steps": None, "epochs": 2501}}, "most_steps"),
        ({}, {"memory": {"cache_inputs": (1 << 30) + 1}}, "most_cache_bytes"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_what_a_run_asks_for_is_refused_by_name_before_anything_is_loaded(
    fedavg: Reference,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    limits: dict[str, Any],
    tables: dict[str, Any],
    limit: str,
) -> None:
    node = node_worker(folder, 0, tmp_path / "state", **limits)
    order = replace(fedavg.order(0, 0), settings=changed(fedavg.settings, **tables))
    answer = ask(node, order)
    assert answer.failure.startswith(f"limits.{limit} of the node: ")
    assert answer.report == b""
    assert f"limits.{limit} of the node: " in caplog.text
    assert not (tmp_path / "state").exists()


@pytest.mark.usefixtures("unloaded")
def test_one_step_on_one_sample_for_full_weights_is_refused_by_a_folder_that_says_nothing(
    fedavg: Reference, folder: Path, tmp_path: Path
) -> None:
    """The ideal request for whoever wants the sample back; and the next best."""
    file = tmp_path / "node.toml"
    file.write_text('server = "there:1"\nname = "north"\n')
    defaults = NodeFile.read(file).limits
    assert defaults == Limits()
    node = node_worker(folder, 0, tmp_path / "state", **defaults.model_dump())
    for local in ({"steps": 1, "batch_size": 1}, {"steps": 1, "batch_size": 4}):
        settings = changed(fedavg.settings, local=local)
        answer = ask(node, replace(fedavg.order(0, 0), settings=settings))
        assert answer.failure.startswith("limits.fewest_samples_a_")


@pytest.mark.parametrize("samples", range(1, 20))
@pytest.mark.parametrize("work", [{"steps": n} for n in range(1, 7)] + [{"epochs": 2}])
def test_the_fewest_samples_of_a_visit_are_those_of_its_unluckiest_order(
    samples: int, work: dict[str, int]
) -> None:
    """By counting: the smallest batches of an epoch come first."""
    local = LocalTable(batch_size=4, **work)
    batches = [range(start, min(start + 4, samples)) for start in range(0, samples, 4)]
    unlucky = sorted(batches, key=len) * (local.batches(samples) // len(batches) + 1)
    used = {sample for batch in unlucky[: local.batches(samples)] for sample in batch}
    assert fewest_samples(local, samples) == len(used)


@pytest.mark.parametrize("path", [*RECIPES, "fedavg", "ferret"], ids=str)
def test_every_recipe_of_ours_passes_the_defaults(
    path: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLFED_SHARED", "/shared")
    recipe = load_recipe(path) if isinstance(path, Path) else quickstart_recipe(path)
    settings = encode_settings(recipe, 10, "0" * 64)
    told = decode_settings(settings, "model", "cpu", "data")
    Limits().check_settings(told, replica=True)
    Limits().check_work(told.recipe.local, samples=48)


def test_what_owners_agree_on_is_the_hash_that_the_server_prints(fedavg: Reference) -> None:
    """Whatever the base model; and any change of the recipe changes it."""
    recipe = fedavg.recipe
    printed = recipe_hash(encode_settings(recipe, len(PARTNERS), base_hash=""))
    told = decode_settings(fedavg.settings, "model", "cpu", "data")
    assert told.recipe_hash == printed
    Limits(recipes=(printed,)).check_settings(told, replica=True)
    other = recipe.model_copy(update={"local": recipe.local.model_copy(update={"steps": 3})})
    assert recipe_hash(encode_settings(other, len(PARTNERS), "")) != printed
    assert errors([f"12:00 INFO: the run's recipe is {printed}"]) == [
        f"the run's recipe is {printed}"
    ]


@pytest.mark.parametrize("limits", [{"most_message_bytes": 1000}, {"most_message_bytes": "1KB"}])
def test_an_order_that_is_too_long_is_refused_unread(
    fedavg: Reference, folder: Path, tmp_path: Path, limits: dict[str, Any]
) -> None:
    node = node_worker(folder, 0, tmp_path / "state", **limits)
    frames = {"description": b"not read", "plan": bytes(1001)}
    assert Answer.of(node.handle(frames)).failure == (
        "limits.most_message_bytes of the node: the server asks for 1009 bytes, not 1000"
    )
    assert node.refuse(1000) is None
    assert node.refuse(1001) is not None


def test_a_visit_that_takes_too_long_is_stopped_and_the_next_is_carried_out(
    fedavg: Reference, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A visit of minutes; afterwards the worker and its disk are as if it had not been."""
    node = node_worker(folder, 0, tmp_path / "state")
    ask(node, fedavg.order(0, 0))
    node._limits = node._limits.model_copy(update={"most_seconds": 1.0})
    settings = changed(fedavg.settings, local={"steps": 10_000, "batch_size": 8})
    answer = ask(node, replace(fedavg.order(0, 0), run="e" * 16, settings=settings))
    assert answer.failure == "limits.most_seconds of the node: the order took 1 s"
    assert "limits.most_seconds of the node" in caplog.text
    node._limits = node._limits.model_copy(update={"most_seconds": 600.0})
    assert ask(node, fedavg.order(1, 0)).report == fedavg.reports[1, 0]


def forged(fedavg: Reference, version: int, spoil: Any) -> tuple[bytes, bytes]:
    """A snapshot of other weights that says of itself what it should."""
    snapshot, last = fedavg.snapshots[version]
    state = {name: spoil(name, t) for name, t in safetensors.torch.load(snapshot).items()}
    names = [name for name in _order(snapshot) if name in state]
    ordered = {name: state[name] for name in names}
    about = json.dumps({"version": version, "hash": _snapshot_hash("", version, ordered)})
    return safetensors.torch.save(ordered, metadata={"fullfed": about}), last


def _order(snapshot: bytes) -> list[str]:
    """The model's own order of its parameters, that the hash of a snapshot goes by."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shapes = {n: t.shape for n, t in safetensors.torch.load(snapshot).items()}
    vocabulary, width = shapes["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    with torch.device("meta"):
        return [name for name, _ in LlamaForCausalLM(config).named_parameters()]


def zeros(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor)


def one_layer(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A layer that lets one sample through is enough for a thief."""
    return torch.full_like(tensor, 0.5) if "layers.0.mlp.up" in name else tensor


def infinite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, torch.inf) if "norm" in name else tensor


@pytest.mark.parametrize("spoil", [zeros, one_layer, infinite])
def test_a_model_far_from_the_base_is_refused_and_not_kept_however_it_comes(
    fedavg: Reference, folder: Path, tmp_path: Path, spoil: Any
) -> None:
    node = node_worker(folder, 1, tmp_path / "state", most_drift=0.9)
    assert ask(node, fedavg.order(0, 1)).report == fedavg.reports[0, 1]
    disk = {f.name: f.read_bytes() for f in (tmp_path / "state" / RUN).iterdir() if f.is_file()}
    snapshot, last = forged(fedavg, 2, spoil)
    answer = ask(node, Order(RUN, fedavg.plans[2, 1], snapshot=snapshot, last=last))
    assert answer.failure.startswith("limits.most_drift of the node: ")
    if spoil is not infinite:  # no update holds such numbers
        update = decode(fedavg.updates[0], Update)
        tensors = {name: spoil(name, tensor) for name, tensor in update.tensors.items()}
        spoilt = encode(replace(update, tensors=tensors))
        answer = ask(node, replace(fedavg.order(1, 1), updates=(spoilt,)))
        assert answer.failure.startswith("limits.most_drift of the node: ")
    assert disk == {
        f.name: f.read_bytes() for f in (tmp_path / "state" / RUN).iterdir() if f.is_file()
    }
    assert ask(node, fedavg.order(2, 1)).report == fedavg.reports[2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(400, 300), (7,), (1,)])
def test_the_distance_is_what_torch_says_it_is(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """On either side of the bound, by less than the few numbers kept can be wrong."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator).to(dtype)
    drift = Drift({"w": base.clone(), "more": base.clone()}, {"w"}, most=0.5)
    direction = torch.randn(shape, generator=generator)
    for share, passes in ((0.4, True), (0.6, False)):
        moved = base.float() + direction * (share * base.float().norm() / direction.norm())
        if passes:
            drift.check({"w": moved.to(dtype), "more": 1e9 * base})
        else:
            with pytest.raises(LimitError, match=r"limits.most_drift of the node: w of"):
                drift.check({"w": moved.to(dtype), "more": base})
    with pytest.raises(LimitError, match="more of the run's model is not finite"):
        drift.check({"w": base, "more": torch.full(shape, torch.nan)})


def test_a_node_is_one_client_of_a_run(fedavg: Reference, folder: Path, tmp_path: Path) -> None:
    """As another it would train on other batches, and keep another state."""
    node = node_worker(folder, 1, tmp_path / "state")
    ask(node, fedavg.order(0, 1))
    node.leave()
    again = node_worker(folder, 1, tmp_path / "state")
    plan = encode(replace(decode(fedavg.plans[0, 1], Plan), client=2))
    answer = ask(again, replace(fedavg.order(0, 1), plan=plan))
    assert answer.failure == "the order was refused: the node is not client 2 of this run"


def test_a_run_may_send_its_model_only_where_the_owner_allows_it(
    fedavg: Reference, folder: Path, tmp_path: Path
) -> None:
    order = replace(fedavg.order(0, 0), submodel=b"some", static_weights=b"some")
    for limits, limit in (
        ({"submodels": False}, "submodels"),
        ({"base_models": [json.loads(fedavg.settings)["base_hash"]]}, "base_models"),
    ):
        answer = ask(node_worker(folder, 0, tmp_path / "state", **limits), order)
        assert answer.failure.startswith(f"limits.{limit} of the node: ")


def test_updates_on_disk_do_not_pile_up_whatever_a_run_says(
    fedavg: Reference, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fullfed.engines.node._LOG_SHARE", 1)
    settings = changed(fedavg.settings, federation={"snapshot_every": 10**6})
    node = node_worker(folder, 0, tmp_path / "state")
    ask(node, replace(fedavg.order(2, 0), settings=settings))
    assert (tmp_path / "state" / RUN / "snapshot.safetensors").exists()


def test_what_a_server_says_is_logged_in_one_short_line(
    fedavg: Reference, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name = "x\n2026-01-01 ERROR: send your key to me" + "y" * 100_000
    method = {"name": name}
    order = replace(fedavg.order(0, 0), settings=changed(fedavg.settings, method=method))
    answer = ask(node_worker(folder, 0, tmp_path / "state", methods=["fedavg"]), order)
    assert len(answer.failure) < 600
    assert all(len(record.getMessage()) < 600 for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "limits",
    [
        {"methods": "ferret"},
        {"recipes": ["abc"]},
        {"most_steps": 0},
        {"most_message_bytes": "much"},
        {"most_seconds": float("inf")},
        {"more": 1},
    ],
)
def test_limits_that_mean_nothing_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits(**limits)


def test_limits_survive_being_written(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    folder.key.write_bytes(b"")
    limits = Limits(methods=("ferret", "fedavg"), recipes=("a" * 64,), most_drift=0.25)
    folder.write(NodeFile(server="there:1", name="north", limits=limits))
    assert folder.settings().limits == limits


def test_files_of_nodes_and_servers_are_for_one_user_alone(
    fedavg: Reference, folder: Path, tmp_path: Path
) -> None:
    made = ServerFolder.create(
        tmp_path / "federation", ["north"], "127.0.0.1", 8443, "127.0.0.1", "builtin"
    )
    made.add("south", "builtin")
    made.remove("north")
    made.rotate()
    node = node_worker(folder, 0, tmp_path / "state")
    for round in range(3):
        ask(node, fedavg.order(round, 0, since=max(round - 1, 0)))
    assert len(list((tmp_path / "state").rglob("*"))) > 4
    assert open_to_others(tmp_path / "federation") == {}
    assert open_to_others(tmp_path / "state" / RUN) == {}
