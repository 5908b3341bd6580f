"""Runs whose model comes to numbers that are not finite: what is recorded, what stops them, and
what can be done about it afterwards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import read_log
from fullfed.federation.messages import Report, Update, decode, encode
from fullfed.methods.codecs.dense import Dense
from fullfed.payloads import Payload
from fullfed.reports.runs import plot_runs, summary_table
from fullfed.runs import run
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.progress import describe_round
from fullfed.runs.replay import verify
from runs.small import recipe

FEDAVG = {"method": {"name": "fedavg"}, "model": {"dtype": "float16"}}


@pytest.mark.parametrize("base", [True, False])
def test_a_loss_that_is_not_finite_is_recorded_as_missing_and_the_run_goes_on(
    ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: bool
) -> None:
    """From the base model on, or from the second measurement."""
    losses = iter([math.nan if base else 7.0, 6.5, math.inf])
    monkeypatch.setattr(
        "fullfed.evaluation.evaluate.evaluate_loss", lambda *arguments: next(losses)
    )
    folder = RunFolder(tmp_path / "run")
    made = recipe(ingredients, **FEDAVG)
    summary = run.start(made, folder.path)
    assert summary["loss"] == {"initial": None if base else 7.0, "final": None}
    measured = [record["loss"] for record in folder.metrics()]
    assert measured == [None, 6.5, None, None]
    assert folder.metrics()[-1]["unmeasured"] == {"loss": "it is inf"}
    assert "loss is not finite" in describe_round(folder.metrics()[-1], 4)
    assert summary_table([summary]).row_count == 1
    assert all(p.stat().st_size for p in plot_runs({"run": folder}, tmp_path / "plots"))
    verify(folder)
    strict = {"parse_constant": lambda name: pytest.fail(name)}
    for file in folder.path.glob("*.json"):
        json.loads(file.read_text(), **strict)


class Liar(Simulation):
    """Its last client's change is 1,000 times as large as it was."""

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        *others, last = super().exchange(plans)
        yield from others
        report, start = decode(last.payload or b"", Report), self.worker.replica.exact
        far = {n: start[n] + 1000 * (t - start[n]) for n, t in report.tensors.items()}
        yield replace(last, payload=encode(replace(report, tensors=far)))


def test_a_report_far_beyond_the_cohorts_is_refused_in_16_bits_too(
    ingredients: Path, tmp_path: Path
) -> None:
    """Replicas' exact weights are further from their rounded ones than a small rate's steps go."""
    changes = {"model": {"dtype": "bfloat16"}, "local": {"learning_rate": 1e-4}}
    made = recipe(ingredients, method={"name": "fedavg"}, **changes)
    folder, assembly = RunFolder(tmp_path / "run"), assemble(made)
    folder.create(assembly.recipe)
    run.carry_out(folder, assembly, connect=lambda recipe, worker, log, traffic: Liar(worker))
    for record in folder.metrics():
        assert len(record["aggregated"]) == 1
        (refused,) = record["refused"]
        assert "times as large as the median of the cohort" in refused["reason"]


def test_an_update_beyond_what_16_bits_hold_is_not_logged(
    ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean within float32 and beyond float16: the run stops in one sentence, as it was before."""
    right = Dense.encode_update

    def spoilt(self: Dense, aggregate: Any, *arguments: Any) -> Any:
        for tensor in aggregate.tensors.values():
            tensor.view(-1)[0] = 1e5  # as no client may send it
        return right(self, aggregate, *arguments)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Dense, "encode_update", spoilt)
        with pytest.raises(UserError, match=r"^round 0: .* not finite in float16; lower") as caught:
            run.start(recipe(ingredients, **FEDAVG), out)
    assert "\n" not in str(caught.value)
    assert list(read_log(out / "updates.log")) == []
    assert not (out / "account.json").exists()
    whole = run.start(recipe(ingredients, **FEDAVG), tmp_path / "whole")
    assert run.resume(out)["model_hash"] == whole["model_hash"]


def test_a_rate_that_ruins_the_model_ends_in_a_sentence_that_names_a_client(
    ingredients: Path, tmp_path: Path
) -> None:
    local = {"learning_rate": 1e4}
    with pytest.raises(UserError, match=r"^round 0: no client .*\(client \d: ") as caught:
        run.start(recipe(ingredients, **FEDAVG, local=local), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert list(read_log(tmp_path / "run" / "updates.log")) == []


def test_failures_that_the_recipe_draws_are_not_said_to_be_mendable(
    ingredients: Path, tmp_path: Path
) -> None:
    made = recipe(ingredients, simulation={"failures": 0.95})
    with pytest.raises(UserError, match=r"would again; lower simulation\.failures") as caught:
        run.start(made, tmp_path / "run")
    assert "resume" not in str(caught.value)


@pytest.mark.parametrize("name", ["cyclic-ferret", "fedcybgd"])
def test_methods_with_client_states_survive_skipped_first_rounds(
    ingredients: Path, tmp_path: Path, name: str
) -> None:
    codec = {"name": "sketch", "coordinates": 40} if name == "cyclic-ferret" else {"name": "dense"}
    method = {"name": name, "codec": codec}
    local = {"optimizer": "adamw", "optimizer_state": "kept"}
    federation = {"rounds": 8, "clients_per_round": 1, "seed": 1}
    folder = RunFolder(tmp_path / "run")
    failures = {"failures": 0.6}
    run.start(
        recipe(ingredients, method=method, local=local, federation=federation, simulation=failures),
        folder.path,
    )
    updates = [decode(payload, Update) for payload in read_log(folder.log_file)]
    skipped = [update.skipped for update in updates]
    assert skipped[0] == 1
    assert 0 in skipped
    assert all(not u.tensors for u in updates if u.skipped)
    assert all(r["refused"] == [] for r, s in zip(folder.metrics(), skipped, strict=True) if not s)
