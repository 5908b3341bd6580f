"""A run whose codec has scales: nodes are told them once, keep them, and take no others."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from flower.real import LOOSE, PARTNERS
from flower.small import RUN, Reference, node_worker, reference
from flower.standin import Dictionary, carry_out, recipe_of
from flower.test_client import train
from fullfed.deployment.node_task import TaskLoader
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_limits import Limits
from fullfed.engines.node_messages import Answer, Order, encode_settings, named, recipe_hash
from fullfed.files import read_sealed, write_sealed
from runs.small import write_model

pytestmark = pytest.mark.usefixtures("flower_process")
METHOD = {"name": "ferret", "coordinates": 300, "scales": "curvature"}
UNFIT = "the run's settings do not fit this node"


@pytest.fixture(scope="module")
def scaled(folder: Path) -> Reference:
    return reference(folder, 3, METHOD)


def ask(node: NodeWorker, order: Order) -> Answer:
    return Answer.of(node.handle(order.frames()))


def test_a_node_keeps_the_scales_and_is_told_them_once(
    scaled: Reference, folder: Path, tmp_path: Path
) -> None:
    first = node_worker(folder, 0, tmp_path / "state")
    assert ask(first, scaled.order(0, 0)).report == scaled.reports[0, 0]
    first.leave()
    assert (tmp_path / "state" / RUN / "scales.bin").read_bytes() == scaled.scales
    second = node_worker(folder, 0, tmp_path / "state")
    later = replace(scaled.order(1, 0), settings=b"", scales=b"")
    assert ask(second, later).report == scaled.reports[1, 0]


def test_scales_that_were_changed_on_the_disk_are_asked_for_again(
    scaled: Reference, folder: Path, tmp_path: Path
) -> None:
    first = node_worker(folder, 0, tmp_path / "state")
    ask(first, scaled.order(0, 0))
    first.leave()
    (tmp_path / "state" / RUN / "scales.bin").write_bytes(scaled.scales[::-1])
    second = node_worker(folder, 0, tmp_path / "state")
    assert ask(second, replace(scaled.order(1, 0), settings=b"", scales=b"")) == Answer(-1)
    assert ask(second, scaled.order(1, 0)).report == scaled.reports[1, 0]


def test_a_state_of_a_version_without_scales_is_begun_again(
    scaled: Reference, folder: Path, tmp_path: Path
) -> None:
    first = node_worker(folder, 0, tmp_path / "state")
    ask(first, scaled.order(0, 0))
    first.leave()
    file = tmp_path / "state" / RUN / "settings.json"
    kept = read_sealed(file, "", RUN)
    del kept["scales"]
    write_sealed(file, kept, RUN)
    second = node_worker(folder, 0, tmp_path / "state")
    assert ask(second, replace(scaled.order(1, 0), settings=b"", scales=b"")) == Answer(-1)
    assert ask(second, scaled.order(1, 0)).report == scaled.reports[1, 0]


def test_a_node_with_a_loop_of_its_own_takes_the_scales_of_the_others(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    """Which are wanted since the recipe's optimizer is AdamW; what the loop's does is not known."""
    method = {"name": "ferret", "coordinates": 300}
    recipe = recipe_of(
        folder, 1, method=method, local={"optimizer": "adamw", "learning_rate": 0.01}
    )
    data, limits = str(folder / f"{PARTNERS[3]}.jsonl"), Limits(**LOOSE)
    load = TaskLoader(data, str(folder / "model"), "cpu", limits, trainer=train)
    nodes = [*workers[:3], NodeWorker(tmp_path / "state", load, limits)]
    done = carry_out(recipe, Dictionary.of(nodes), tmp_path / "run")
    assert done.scales()
    assert done.metrics()[0]["aggregated"] == [0, 1, 2, 3]


def test_scales_other_than_those_of_the_settings_are_refused(
    scaled: Reference, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_worker(folder, 0, tmp_path / "state")
    for sent in (b"", scaled.scales[:-1], scaled.scales[::-1]):
        caplog.clear()
        assert ask(node, replace(scaled.order(0, 0), scales=sent)).failure == UNFIT
        assert "the scales that the server sent are not those of its settings" in caplog.text
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda plain: plain + b"\0", "the scales are not "),
        (lambda plain: b"\x7f" + plain[1:], "the scales have an exponent beyond 64"),
        (lambda plain: b"\x80" + plain[1:], "the scales have an exponent beyond 64"),
    ],
)
def test_scales_that_the_model_cannot_have_are_refused(
    scaled: Reference,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changed: Callable[[bytes], bytes],
    said: str,
) -> None:
    scales = zlib.compress(changed(zlib.decompress(scaled.scales)))
    order = order_with(scaled, scales)
    node = node_worker(folder, 0, tmp_path / "state")
    assert ask(node, order).failure == "the run's scales do not fit this node"
    assert said in caplog.text


def test_a_node_with_a_model_of_other_shapes_is_told_so(
    scaled: Reference, folder: Path, tmp_path: Path
) -> None:
    write_model(folder / "other")
    config = LlamaConfig.from_pretrained(folder / "other", num_hidden_layers=3)
    LlamaForCausalLM(config).save_pretrained(folder / "other")
    answer = ask(node_worker(folder, 0, tmp_path / "state", "other"), scaled.order(0, 0))
    assert answer.failure == "its base model is not the one the run begins with"


def test_a_recipe_without_scales_takes_none(
    scaled: Reference, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = reference(folder, 1, {**METHOD, "scales": "none"})
    node = node_worker(folder, 0, tmp_path / "state")
    answer = ask(node, order_with(plain, scaled.scales))
    assert answer.failure == "the run's scales do not fit this node"
    assert "the run's recipe has no scales" in caplog.text


def order_with(heard: Reference, scales: bytes) -> Order:
    """The first, of a server that says of these scales that they are the run's."""
    settings = json.loads(heard.settings)
    settings["scales_hash"] = hashlib.sha256(scales).hexdigest()
    order = heard.order(0, 0)
    return replace(order, settings=json.dumps(settings).encode(), scales=scales)


def test_what_all_sign_names_the_scales_and_what_owners_agree_on_does_not(
    scaled: Reference,
) -> None:
    """A server that told one client other scales would find no two signatures that agree."""
    own = [encode_settings(scaled.recipe, 3, "0" * 64, sha * 64) for sha in ("a", "b")]
    assert recipe_hash(own[0]) == recipe_hash(own[1])
    assert named("run", own[0]) != named("run", own[1])
    assert named("run", own[0]).endswith(f" and scales {'a' * 64}")
    none = encode_settings(scaled.recipe, 3, "0" * 64)
    assert named("run", none) == f"run with settings {recipe_hash(none)}"
