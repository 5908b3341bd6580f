"""The in-process engine carries encoded messages and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fullfed.engines.simulation import Simulation
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Report, decode, encode
from fullfed.federation.server import Traffic
from fullfed.methods.fedcybgd import FedCyBGDOptions
from fullfed.randomness import Purpose, Stream, uniforms
from methods.test_fedcybgd import federation as submodels
from methods.tiny import (
    Federation,
    make_fedavg,
    make_ferret,
    same,
    samples,
    setting,
    tiny_model,
    weights,
)


def federation() -> Federation:
    model = tiny_model()
    method = make_ferret(setting(model, clients=4), coordinates=30)
    return Federation(model, method, [samples(4, seed=n) for n in range(4)])


def test_every_plan_is_answered_by_its_client_with_bytes() -> None:
    ours = federation()
    plans = {plan.client: encode(plan) for plan in ours.method.plans(0, None)}
    arrivals = list(Simulation(ours.worker).exchange(plans))
    assert [arrival.sender for arrival in arrivals] == [0, 1, 2, 3]
    for arrival in arrivals:
        assert isinstance(arrival, Arrival)
        assert isinstance(arrival.payload, bytes)
        assert decode(arrival.payload, Report).client == arrival.sender


def test_plans_are_carried_out_in_client_order_whatever_order_they_are_in() -> None:
    ours = federation()
    plans = {plan.client: encode(plan) for plan in reversed(ours.method.plans(0, None))}
    arrivals = list(Simulation(ours.worker).exchange(plans))
    assert [arrival.sender for arrival in arrivals] == [0, 1, 2, 3]


def test_clients_are_visited_only_as_their_reports_are_taken() -> None:
    """So that one report is in memory at a time."""
    ours = federation()
    visited: list[bytes] = []
    real = ours.worker.visit

    def visit(plan: bytes, submodel: bytes | None = None) -> Arrival:
        visited.append(plan)
        return real(plan, submodel)

    ours.worker.visit = visit  # type: ignore[method-assign]
    plans = {plan.client: encode(plan) for plan in ours.method.plans(0, None)}
    exchange = Simulation(ours.worker).exchange(plans)
    for count in range(1, 5):
        next(exchange)
        assert len(visited) == count


def test_one_shared_replica_is_as_good_as_one_for_each_client() -> None:
    """Four workers with a replica and one client's data each, fed with the same updates."""
    shared = federation()
    alone = [federation() for _ in range(4)]

    class Apart:
        def exchange(self, plans: dict[int, bytes]) -> list[Arrival]:
            return [alone[client].worker.visit(plan) for client, plan in plans.items()]

    for _ in range(3):
        number = shared.worker.replica.version
        plans = {p.client: encode(p) for p in shared.method.plans(number, shared.last)}
        expected = Apart().exchange(plans)
        got = list(Simulation(shared.worker).exchange(plans))
        assert [a.payload for a in got] == [a.payload for a in expected]
        update = encode(shared.round().update)
        for other in alone:
            other.worker.deliver(update)
    assert all(same(weights(shared.model), weights(other.model)) for other in alone)


def test_the_data_of_a_client_are_not_in_its_report() -> None:
    """The payload of FedAvg is as long as the weights and a header, whatever the data."""
    lengths = set()
    for count in (1, 5, 50):
        model = tiny_model()
        ours = Federation(model, make_fedavg(setting(model)), [samples(count)])
        payload = ours.worker.visit(encode(ours.method.plans(0, None)[0])).payload
        assert payload is not None
        lengths.add(len(payload) // 64)
    assert max(lengths) - min(lengths) <= 1


def test_failures_are_drawn_for_each_round_and_client_and_return_nothing() -> None:
    seen = set()
    for _ in range(2):
        ours = federation()
        for version in range(40):
            ours.worker.replica.version = version
            plans = {plan.client: encode(plan) for plan in ours.method.plans(version, None)}
            for arrival in Simulation(ours.worker, failures=0.3, seed=9).exchange(plans):
                drawn = uniforms(Stream(9, Purpose.FAILURES, version, arrival.sender), 1)[0]
                assert (arrival.payload is None) == (drawn < 0.3)
                if arrival.payload is None:
                    assert "simulates" in arrival.failure
                    seen.add((version, arrival.sender))
    assert 0.2 * 160 < len(seen) < 0.4 * 160


@pytest.mark.parametrize("failures", [0.0, 1.0])
def test_a_client_without_a_replica_is_sent_static_weights_once_also_if_it_fails(
    failures: float,
) -> None:
    ours = submodels(FedCyBGDOptions(surrogate=0.4), codec={"name": "dense", "precision": "int8"})
    traffic = Traffic(SimpleNamespace(size=None), lambda: 0)  # type: ignore[arg-type]
    simulation = Simulation(ours.worker, failures, traffic=traffic)
    plan = ours.method.plans(0, None)[0]
    first, second = (next(simulation.exchange({plan.client: encode(plan)})).down for _ in range(2))
    method = ours.method
    assert second == len(encode(plan)) + len(encode(method.submodels.submodel(ours.model, plan)))  # type: ignore[arg-type]
    assert first - second == len(encode(method.submodels.static_weights(ours.model)))
