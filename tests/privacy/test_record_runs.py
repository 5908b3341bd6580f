"""Runs whose clients add noise for each record: what goes out, the account, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fullfed.errors import UserError
from fullfed.federation.log import read_log
from fullfed.federation.messages import Update, decode
from fullfed.methods.private_training import SPENT
from fullfed.methods.summed import SummedComposition
from fullfed.privacy.records import record_mechanism
from fullfed.privacy.summing import owners_of
from fullfed.runs.assembly import assemble
from fullfed.runs.budget import privacy_text
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.runs.rollback import roll_back
from fullfed.runs.run import carry_out, resume, start
from runs.small import recipe

NOISY = {"protects": "record", "noise": 1.0, "delta": 1e-3, "clip": 1.0}
LOCAL = {"learning_rate": 0.02, "steps": 2, "batch_size": 2}
RECORDS = 8  # of each of the four clients
FERRET = {"name": "ferret", "coordinates": 300}
METHODS: dict[str, dict[str, Any]] = {
    "ferret": FERRET,
    "fedprox": {"name": "fedprox"},
    "fedit": {"name": "fedit", "rank": 2},
    "fedcybgd": {"name": "fedcybgd"},
}


def noisy(folder: Path, table: Mapping[str, Any] = NOISY, **changes: Any) -> Any:
    changes.setdefault("method", {"name": "fedavg"})
    changes["local"] = {**LOCAL, **changes.get("local", {})}
    changes["federation"] = {"rounds": 2, **changes.get("federation", {})}
    return recipe(folder, privacy=dict(table), **changes)


def epsilons(chosen: Any, visits: int) -> list[float]:
    """A client's, after one visit, two, and so on."""
    rounds = chosen.federation.rounds
    mechanism = record_mechanism(chosen.privacy, chosen.local, rounds, RECORDS)
    return [mechanism.epsilon(mechanism.visited(n)) for n in range(visits)]


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_train_by_gradients_can_add_noise(
    name: str, small: Path, tmp_path: Path
) -> None:
    together = 1 if name == "fedcybgd" else 2
    federation = {"clients_per_round": together}
    start(noisy(small, method=METHODS[name], federation=federation), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    lines = run.metrics()
    assert [len(line["aggregated"]) for line in lines] == [together] * 2
    assert [line["train_loss"] for line in lines] == [None, None]
    assert verify(run) >= 2
    [told] = privacy_text(run.recipe().privacy, lines)
    assert told.startswith("Differential privacy of every record: epsilon ")


@pytest.mark.parametrize("method", [FERRET, {"name": "fedavg"}])
def test_nothing_that_is_measured_on_records_is_told(method: dict[str, Any], small: Path) -> None:
    assembly = assemble(noisy(small, method=method))
    owned = assembly.method.owned("a run", owners_of(b"a secret of a run".ljust(32)))
    plan = owned.plans(0, None)[0]
    report = owned.train(
        assembly.model, plan, assembly.data.clients[plan.client].examples, None
    ).report
    assert report.loss == 0.0
    assert report.values.keys() == owned.codec.report_values


def test_of_a_secure_sum_only_what_follows_from_the_noisy_change_is_summed(
    small: Path, tmp_path: Path
) -> None:
    chosen = noisy(
        small,
        {**NOISY, "secure_sum": True},
        method={**FERRET, "seeds": "shared"},
        federation={"clients_per_round": 4},
        aggregation={"name": "mean", "weights": "equal"},
    )
    assembly = assemble(chosen)
    assert isinstance(assembly.method, SummedComposition)
    assert assembly.method._scalars == ("square",)
    start(chosen, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert [line["train_loss"] for line in run.metrics()] == [None, None]
    assert [line["epsilon"] for line in run.metrics()] == epsilons(chosen, 2)
    for payload in read_log(run.log_file):
        assert "train_loss" not in decode(payload, Update).values
    assert verify(run) >= 2


def test_two_visits_have_nothing_in_common(small: Path) -> None:
    """Nor two clients': of the same record and the same weights, noise is another."""
    assembly = assemble(noisy(small))
    owned = assembly.method.owned("a run", owners_of(b"a secret of a run".ljust(32)))
    other = assembly.method.owned("another", owners_of(b"a secret of a run".ljust(32)))
    plan = owned.plans(0, None)[0]
    examples = assembly.data.clients[plan.client].examples
    reports = [
        method.train(assembly.model, plan, examples, None).report
        for method in (owned, owned, other)
    ]
    changes = [next(iter(report.tensors.values())) for report in reports]
    assert all(
        not bool((changes[one] == changes[two]).any()) for one, two in ((0, 1), (0, 2), (1, 2))
    )


class Stopping(Callback):
    """Ends the process, as it were, when a visit of a round is over."""

    def __init__(self, round: int) -> None:
        self._round = round

    def on_visit_end(self, round: int, arrival: object) -> None:
        if round == self._round:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_as_the_whole_one(small: Path, tmp_path: Path) -> None:
    logs, lines = [], []
    for name in ("whole", "stopped"):
        run = RunFolder(tmp_path / name)
        assembly = assemble(noisy(small, method=FERRET, federation={"rounds": 3}))
        run.create(assembly.recipe)
        run.secret_file.write_bytes(b"secret of the two".ljust(32, b"."))
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                carry_out(run, assembly, [Stopping(1)], name="one")
            assembly = assemble(run.recipe())
        carry_out(run, assembly, name="one")
        logs.append(run.log_file.read_bytes())
        lines.append([line["epsilon"] for line in run.metrics()])
    assert logs[0] == logs[1]
    assert lines[0] == lines[1]


def test_each_client_keeps_to_its_own_budget(small: Path, tmp_path: Path) -> None:
    """A client that is spent refuses, others go on; the run ends when a whole cohort is spent."""
    federation = {"rounds": 12, "clients_per_round": 3}
    one, two = epsilons(noisy(small), 2)
    chosen = noisy(small, {**NOISY, "epsilon": (one + two) / 2}, federation=federation)
    start(chosen, tmp_path / "run")
    lines = RunFolder(tmp_path / "run").metrics()
    assert len(lines) < 12
    visits = Counter(client for line in lines for client in line["aggregated"])
    assert set(visits.values()) == {1}
    refused = [one for line in lines for one in line["refused"]]
    assert refused
    assert {one["reason"] for one in refused} == {SPENT}
    assert all(line["aggregated"] for line in lines)
    assert {line["epsilon"] for line in lines} == {one}


def test_undone_rounds_stay_in_the_account_and_have_other_noise(
    small: Path, tmp_path: Path
) -> None:
    chosen = noisy(small, federation={"clients_per_round": 4})
    start(chosen, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    before, log = run.metrics(), run.log_file.read_bytes()
    roll_back(run, 1)
    resume(tmp_path / "run")
    assert [line["epsilon"] for line in before] == epsilons(chosen, 2)
    assert [line["epsilon"] for line in run.metrics()] == [
        epsilons(chosen, 1)[0],
        epsilons(chosen, 3)[2],
    ]
    assert run.log_file.read_bytes() != log


def test_rounds_are_bound_where_the_noise_is_fitted_to_them(small: Path, tmp_path: Path) -> None:
    fitted = {**NOISY, "noise": None, "epsilon": 8.0}
    chosen = noisy(small, {name: value for name, value in fitted.items() if value})
    start(chosen, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.metrics()[-1]["epsilon"] <= 8.0
    text = run.recipe_file.read_text().replace("rounds = 2", "rounds = 3")
    run.recipe_file.write_text(text)
    with pytest.raises(UserError, match=r"federation.rounds was 2 and is 3"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "fedkseed"}}, "measure records in another way"),
        ({"method": {"name": "fedzo"}}, "measure records in another way"),
        ({"method": {"name": "fed-sb", "rank": 2}}, "measure records in another way"),
        ({"trainer": {"name": "transformers"}}, "trainer: a trainer of its own has no noise"),
        ({"local": {"micro_batch_size": 1}}, "local.micro_batch_size: every record has"),
        (
            {"memory": {"optimizer_in_backward": True}, "local": {"clip_by": "tensor"}},
            "memory.optimizer_in_backward: gradients are whole before",
        ),
        ({"privacy": {"delta": 0.5}}, "privacy.delta: 0.5 would let a record of 8"),
    ],
)
def test_what_cannot_work_is_one_sentence_at_load(
    changes: dict[str, Any], said: str, small: Path
) -> None:
    table = {**NOISY, **changes.pop("privacy", {})}
    with pytest.raises(UserError, match=said) as caught:
        assemble(noisy(small, table, **changes))
    assert "\n" not in str(caught.value)
