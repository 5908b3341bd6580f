"""Runs of which only sums are known: the sums are right, the log replays, bad input is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fullfed.engines.node_messages import encode_settings, named
from fullfed.engines.simulation import Simulation, simulate
from fullfed.errors import MessageError, UserError
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import read_log
from fullfed.federation.messages import Plan, Update, decode, encode, number
from fullfed.methods.summed import SummedComposition
from fullfed.methods.summing import keyed
from fullfed.payloads import Payload
from fullfed.privacy.accountant import Account
from fullfed.privacy.keystream import derived
from fullfed.privacy.masks import Summand
from fullfed.privacy.summing import SummingClients, about, owners_of
from fullfed.runs.assembly import assemble, make_replica
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.runs.rollback import roll_back
from fullfed.runs.run import carry_out, resume, start
from runs.small import recipe

SECURE = {"secure_sum": True}
NOISY = {"protects": "client", "noise": 1.0, "delta": 1e-3, "clip": 0.5}
FERRET = {"name": "ferret", "coordinates": 300, "seeds": "shared"}
METHODS: dict[str, dict[str, Any]] = {
    "ferret": FERRET,
    "fedavg": {"name": "fedavg"},
    "fedkseed": {"name": "fedkseed", "seeds": 64},
    "fedit": {"name": "fedit", "rank": 2},
    "fedavgm": {"name": "fedavgm"},
}


def private(folder: Path, table: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    changes.setdefault("method", FERRET)
    federation = {"clients_per_round": 4, **changes.pop("federation", {})}
    aggregation = {"name": "mean", "weights": "equal", **changes.pop("aggregation", {})}
    own = {"privacy": dict(table or SECURE), "federation": federation, "aggregation": aggregation}
    return recipe(folder, **own, **changes)


class Watched:
    """An engine in this process that keeps what passes, and loses some clients on the way.

    Args:
        lost: the clients that do not answer, by phase.
    """

    def __init__(self, inner: Simulation, lost: Mapping[str, tuple[int, ...]]) -> None:
        self._inner, self._lost = inner, lost

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        phase = str(decode(next(iter(plans.values())), Plan).values.get("phase", "keys"))
        gone = self._lost.get(phase, ())
        for client in gone:
            if client in plans:
                yield Arrival(client, None, failure="the test has it drop out")
        left = {client: plan for client, plan in plans.items() if client not in gone}
        yield from self._inner.exchange(left, seconds)


def watched(
    folder: Path, chosen: Any, **lost: tuple[int, ...]
) -> tuple[SummedComposition, list[dict[str, Any]]]:
    """A run's method and its lines."""
    assembly = assemble(chosen)
    run = RunFolder(folder)
    run.create(assembly.recipe)
    carry_out(run, assembly, connect=lambda *about: Watched(simulate(*about), lost))
    assert isinstance(assembly.method, SummedComposition)
    return assembly.method, run.metrics()


@pytest.mark.parametrize("name", METHODS)
def test_a_secure_run_replays_and_ends_where_another_does(
    name: str, small: Path, tmp_path: Path
) -> None:
    local = {"learning_rate": 0.0002 if name == "fedkseed" else 0.2}
    chosen = private(small, method=METHODS[name], local=local)
    start(chosen, tmp_path / "run")
    start(chosen.model_copy(update={"privacy": None}), tmp_path / "plain")
    run, plain = (RunFolder(tmp_path / folder) for folder in ("run", "plain"))
    assert verify(run) >= 3
    few_bits = name == "ferret"  # 7 of them; the others' sums have 32
    one, other = run.metrics()[-1]["loss"], plain.metrics()[-1]["loss"]
    assert one == pytest.approx(other, rel=0.02 if few_bits else 1e-4)
    for payload in read_log(run.log_file):
        assert decode(payload, Update).tensors.keys() == {"numbers"}


@pytest.mark.parametrize("phase", ["keys", "shares", "mask", "confirm", "unmask"])
def test_the_logged_sum_is_that_of_the_survivors_own_numbers(
    phase: str, small: Path, tmp_path: Path
) -> None:
    """Brute force: what each client's visit came to, rounded with its own secret, added up."""
    chosen = private(small, federation={"rounds": 1})
    method, lines = watched(tmp_path / "run", chosen, **{phase: (2,)})
    run = RunFolder(tmp_path / "run")
    (payload,) = read_log(run.log_file)
    update = decode(payload, Update)
    summed = [0, 1, 3] if phase in ("keys", "shares", "mask") else [0, 1, 2, 3]
    assert lines[0]["aggregated"] == summed
    assert update.values["summed"] == len(summed)
    owner, assembly = owners_of(run.secret()), assemble(chosen)
    base = make_replica(chosen, assembly.model, method).content_hash()
    settings = encode_settings(assembly.recipe, 4, "")
    total, losses = None, []
    for plan in method.plans(0, None):
        if plan.client in summed:
            examples = assembly.data.clients[plan.client].examples
            report = assembly.method.train(assembly.model, plan, examples, None).report
            name = about(named(run.run(), settings), plan, base)
            secret = derived(owner(plan.client).secret, name)
            one = method.summand(report, plan, secret)
            losses.append(report.loss)
            if total is None:
                total = one
            else:
                total.add_(one)
    assert total is not None
    due = method.update(method.plans(0, None)[0], total, summed, None)
    assert encode(due) == payload
    assert lines[0]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_the_sum_is_the_mean_of_the_reports_within_rounding(small: Path) -> None:
    chosen = private(small)
    assembly = assemble(chosen)
    method = assembly.method
    assert isinstance(method, SummedComposition)
    plans = method.plans(0, None)
    reports, total = [], None
    for plan in plans:
        examples = assembly.data.clients[plan.client].examples
        reports.append(method.train(assembly.model, plan, examples, None).report)
        one = method.summand(reports[-1], plan, derived(b"sixteen bytes...", str(plan.client)))
        total = one if total is None else total
        if one is not total:
            total.add_(one)
    assert total is not None
    update = method.update(plans[0], total, range(4), None)
    mean = sum(r.tensors["coordinates"].double() for r in reports) / 4
    found = method._mean(update).tensors["coordinates"]
    assert torch.allclose(found, mean, atol=number(update, "unit"))
    coordinates = torch.cat([r.tensors["coordinates"].double() for r in reports])
    assert number(update, "rms") == pytest.approx(float(coordinates.square().mean().sqrt()))


class Stopping(Callback):
    """Ends the process, as it were, after a round."""

    def __init__(self, round: int) -> None:
        self._round = round

    def on_round_begin(self, round: int) -> None:
        if round == self._round:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "table", [SECURE, {**NOISY, **SECURE}, {**NOISY, "sampling": "poisson", "clip_quantile": 0.5}]
)
def test_a_run_that_was_stopped_goes_on_as_the_whole_one(
    table: dict[str, Any], small: Path, tmp_path: Path
) -> None:
    """Of one secret, rounding, noise and cohorts are the same."""
    logs = []
    for name in ("whole", "stopped"):
        run = RunFolder(tmp_path / name)
        assembly = assemble(private(small, table, federation={"rounds": 3}))
        run.create(assembly.recipe)
        run.secret_file.write_bytes(b"secret of the two".ljust(32, b"."))
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                carry_out(run, assembly, [Stopping(1)], name="one")
            assembly = assemble(run.recipe())
        carry_out(run, assembly, name="one")
        logs.append(run.log_file.read_bytes())
    assert logs[0] == logs[1]


def test_the_budget_ends_the_run_before_it_is_exceeded(small: Path, tmp_path: Path) -> None:
    account = Account(NOISY["noise"], 1.0, NOISY["delta"])
    two = (account.epsilon(2) + account.epsilon(3)) / 2
    start(private(small, {**NOISY, "epsilon": two}), tmp_path / "run")
    lines = RunFolder(tmp_path / "run").metrics()
    assert len(lines) == 2
    assert lines[0]["epsilon"] < lines[1]["epsilon"] <= two
    resume(tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").metrics()) == 2


@pytest.mark.parametrize("table", [SECURE, NOISY])
def test_rounds_of_sums_are_not_undone(table: dict[str, Any], small: Path, tmp_path: Path) -> None:
    """Once more with another client, the difference would be that client's, and without noise."""
    start(private(small, table, federation={"rounds": 2}), tmp_path / "run")
    with pytest.raises(UserError, match="two sums of one round"):
        roll_back(RunFolder(tmp_path / "run"), 1)


def test_numbers_go_out_once_a_round(small: Path, tmp_path: Path) -> None:
    """A round that is begun again passes over, where its clients had given their numbers."""
    assembly = assemble(private(small, federation={"rounds": 3}))
    run, owners = RunFolder(tmp_path / "run"), None
    run.create(assembly.recipe)

    def connect(recipe_: Any, worker: Worker, *about: Any) -> Simulation:
        nonlocal owners
        owners = worker._summing._owner_of  # type: ignore[union-attr]
        for client in range(4):
            owners(client).given.add(1)
        return simulate(recipe_, worker, *about)

    carry_out(run, assembly, connect=connect)
    lines = run.metrics()
    assert [len(line["aggregated"]) for line in lines] == [4, 0, 4]
    assert "went out already" in lines[1]["refused"][0]["reason"]
    verify(run)


class Partial:
    """A server that tells all clients but one another thing.

    Args:
        change: what it tells them.
    """

    def __init__(self, inner: Simulation, change: Callable[[Plan], Plan]) -> None:
        self._inner, self._change = inner, change

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        told = {}
        for client, payload in plans.items():
            plan = decode(payload, Plan)
            told[client] = encode(self._change(plan) if client != 2 else plan)
        yield from self._inner.exchange(told, seconds)


@pytest.mark.parametrize("table", [SECURE, {**NOISY, **SECURE}])
def test_a_server_that_has_all_but_one_round_to_nothing_gets_no_sum(
    table: dict[str, Any], small: Path, tmp_path: Path
) -> None:
    def change(plan: Plan) -> Plan:
        other = {"unit": 1e29} if "unit" in plan.values else {}
        return replace(plan, values={**plan.values, **other})

    assembly, run = assemble(private(small, table)), RunFolder(tmp_path / "run")
    run.create(assembly.recipe)
    with pytest.raises(UserError, match="too few for a secure sum"):
        carry_out(run, assembly, connect=lambda *about: Partial(simulate(*about), change))


def test_what_is_published_does_not_tell_how_many_took_part(small: Path) -> None:
    """Of one noisy sum; and of cohorts of different sizes."""
    method = assemble(private(small, {**NOISY, **SECURE})).method
    plan = method.plans(0, None)[0]
    count, bits, _ = method.size(plan)
    total = Summand(np.arange(count, dtype=np.uint32), bits, b"")
    three, four = (method.update(plan, total, range(n), None) for n in (3, 4))
    assert encode(three) == encode(four)
    poisson = {**NOISY, "sampling": "poisson"}
    chosen = private(small, poisson, federation={"clients_per_round": 2})
    drawn = keyed(assemble(chosen).method, bytes(range(32)))
    cohorts = [drawn.plans(round, None) for round in range(12)]
    assert len({len(plans) for plans in cohorts}) > 1
    assert len({plans[0].values["unit"] for plans in cohorts if plans}) == 1


def test_cohorts_too_small_for_a_sum_are_passed_over(small: Path, tmp_path: Path) -> None:
    table = {**NOISY, **SECURE, "sampling": "poisson"}
    chosen = private(small, table, federation={"clients_per_round": 3, "rounds": 6})
    run, assembly = RunFolder(tmp_path / "run"), assemble(chosen)
    run.create(assembly.recipe)
    run.secret_file.write_bytes(bytes(32))
    carry_out(run, assembly)
    sizes = [len(line["aggregated"]) for line in run.metrics()]
    assert set(sizes) >= {0, 4} or set(sizes) >= {0, 3}
    verify(run)


@pytest.mark.parametrize("table", [SECURE, {**NOISY, **SECURE}])
def test_a_change_that_is_not_finite_is_in_no_sum(table: dict[str, Any], small: Path) -> None:
    assembly = assemble(private(small, table, method={"name": "fedavg"}))
    method = assembly.method
    plan = method.plans(0, None)[0]
    report = method.train(assembly.model, plan, assembly.data.clients[0].examples, None).report
    tensors = {name: tensor.clone() for name, tensor in report.tensors.items()}
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    with pytest.raises(MessageError, match="not finite"):
        method.summand(replace(report, tensors=tensors), plan, bytes(32))


def test_a_client_counts_its_own_budget_and_no_more_rounds_than_agreed(small: Path) -> None:
    """Whatever the server says of the run's."""
    account = Account(NOISY["noise"], 1.0, NOISY["delta"])
    table = {**NOISY, **SECURE, "epsilon": (account.epsilon(2) + account.epsilon(3)) / 2}
    method = assemble(private(small, table)).method
    clients = SummingClients(method, "run", owners_of(bytes(32)))
    plan = method.plans(0, None)[0]
    clients._owner_of(0).given.add(7)
    clients.check(plan)
    clients._owner_of(0).given.add(8)
    with pytest.raises(MessageError, match="budget is spent"):
        clients.check(plan)


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        (SECURE, {"federation": {"clients_per_round": 1}}, "a sum of 1 shows that one's numbers"),
        (SECURE, {"federation": {"clients_per_round": 2}}, "shows each of two the other's numbers"),
        (SECURE, {"aggregation": {"weights": "samples"}}, "clients count alike"),
        (SECURE, {"method": {"name": "ferret", "coordinates": 300}}, "cannot be added up"),
        (SECURE, {"method": {**FERRET, "basis": "normal"}}, "take basis = 'sign'"),
        (
            SECURE,
            {"method": {"name": "fedavg"}, "codec": {"name": "topk", "upload": "2KiB"}},
            "added up",
        ),
        (SECURE, {"method": {"name": "fed-sb", "rank": 2}}, "cannot be added up"),
        (SECURE, {"method": {"name": "fedcybgd"}}, "train a block each"),
        (SECURE, {"method": {"name": "flora", "rank": 2}}, "cannot be added up"),
        (SECURE, {"method": {"name": "flexlora", "ranks": [1, 2]}}, "cannot be added up"),
        (SECURE, {"method": {"name": "slora", "rank": 2}}, "train a block each"),
        (SECURE, {"method": {"name": "fedbpt", "prompt_tokens": 3}}, "cannot be added up"),
        (
            SECURE,
            {"method": {"name": "fedpeptao", "prefix_tokens": 2}},
            "change with what reports say",
        ),
        (NOISY, {"method": {"name": "fedkseed-pro", "seeds": 64}}, "cannot be added up"),
        ({**NOISY, "epsilon": 0.01}, {}, "one round alone has epsilon"),
        (NOISY, {"local": {"optimizer": "adamw", "optimizer_state": "kept"}}, "who was in a round"),
    ],
)
def test_what_cannot_work_is_one_sentence_at_load(
    table: dict[str, Any], changes: dict[str, Any], said: str, small: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        assemble(private(small, table, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "geometric-median"])
def test_rules_that_compare_reports_are_refused(rule: str, small: Path) -> None:
    with pytest.raises(UserError, match="shows the server no single report"):
        assemble(
            recipe(
                small,
                privacy=SECURE,
                aggregation={"name": rule},
                method=FERRET,
                federation={"clients_per_round": 4},
            )
        )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "say secure_sum = true"),
        ({"secure_sum": True, "epsilon": 1.0}, "epsilon goes with protects"),
        ({"protects": "client", "epsilon": 0, "delta": 1e-5, "clip": 1}, "privacy.epsilon"),
        ({"protects": "client", "epsilon": 1, "delta": 0, "clip": 1}, "privacy.delta"),
        ({"protects": "client", "epsilon": 1, "clip": 1}, "needs delta"),
        ({"protects": "client", "epsilon": 1, "delta": 1e-5}, "needs clip"),
        ({"protects": "client", "delta": 1e-5, "clip": 1}, "needs epsilon, noise or both"),
        ({"secure_sum": True, "sampling": "poisson"}, "sampling goes with protects"),
        ({"secure_sum": True, "bits": 99}, "privacy.bits"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    table: dict[str, Any], said: str, small: Path
) -> None:
    with pytest.raises(UserError, match=said):
        recipe(small, privacy=table)
