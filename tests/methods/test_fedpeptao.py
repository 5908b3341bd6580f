"""FedPepTAO's rounds against torch's AdamW, NumPy and what may not leave a client."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fullfed.data.batches import training_batches
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, encode
from fullfed.methods import fedpeptao
from fullfed.methods.aggregation import TrimmedMean
from fullfed.methods.fedpeptao import FedPepTAOOptions
from fullfed.methods.prefixes import initial_prefix
from fullfed.methods.shared_prefixes import DELTA, LAYERS, MOMENTUM, SCORES, VARIATE
from fullfed.sketch import Purpose, Stream
from fullfed.training.layers import find_layers
from fullfed.training.loss import answer_loss
from methods.lora import SEED, reports, three_clients
from methods.tiny import Federation, adamw, method_options, same, setting, weights
from training.architectures import make

OPTIONS = FedPepTAOOptions(prefix_tokens=2, shared=0.34)  # of three layers one is shared
ETA, STEPS, BATCH = 0.04, 2, 3


def federate(options: FedPepTAOOptions = OPTIONS, **changes: Any) -> Federation:
    model = make("llama")
    scope = fedpeptao.scope(SEED, options)
    scope.attach(model)
    shapes = {name: p.shape for name, p in scope.trained(model).items()}
    work = {"steps": STEPS, "batch_size": BATCH, "weight_decay": 0.1, "optimizer_state": "kept"}
    known = {"local": adamw(ETA), "work": work, "shapes": shapes, "clients": 3}
    made = setting(model, **known | changes)
    return Federation(model, fedpeptao.build(made, options), three_clients())


def shared(federation: Federation) -> tuple[list[str], list[str]]:
    """The names of the prefixes that clients share, and of the others."""
    assert federation.last is not None
    layers = federation.last.values[LAYERS]
    assert isinstance(layers, list)
    names = [f"prefixes.layers.{n}" for n in range(3)]
    return [names[n] for n in layers], [n for i, n in enumerate(names) if i not in layers]  # type: ignore[index]


def score_by_hand(hidden: Any, mask: Any) -> float:
    """As the released script: cosines of flat hidden states, their eigenvalues, and 1e-5."""
    rows = (hidden * mask[..., None]).flatten(1).double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.array([[a @ b for a in rows] for b in rows])
    eigenvalues = np.linalg.eigvals(cosines).real + 1e-5
    return float(np.sum(np.log(eigenvalues) + 1 / eigenvalues))


def batches(client: int, round: int) -> list[Any]:
    stream = Stream(SEED, Purpose.BATCHES, round, client)
    return list(training_batches(three_clients()[client], BATCH, STEPS, stream))


@pytest.mark.parametrize(("share", "count"), [(0.34, 1), (0.67, 2), (1.0, 3), (0.01, 1)])
def test_the_layers_of_the_highest_mean_scores_are_shared(share: float, count: int) -> None:
    federation = federate(replace(OPTIONS, shared=share))
    sent, model = reports(federation), copy.deepcopy(federation.model)
    hidden: list[Any] = []
    for layer in find_layers(model)[1]:
        layer.register_forward_hook(lambda *told: hidden.append(told[-1]))
    wanted = []
    for client in range(3):
        batch = batches(client, 0)[0]
        hidden.clear()
        with torch.no_grad():
            model(input_ids=batch.input_ids)
        wanted.append([score_by_hand(h, batch.attention_mask) for h in hidden])
        assert sent[client].tensors.keys() == {SCORES}
        np.testing.assert_allclose(sent[client].tensors[SCORES].numpy(), wanted[-1], rtol=1e-3)
    mean = np.array([9, 4, 1]) / 14 @ np.array(wanted)
    update = federation.round().update
    assert update.values[LAYERS] == sorted(np.argsort(-mean)[:count].tolist())
    before = make("llama")
    fedpeptao.scope(SEED, OPTIONS).attach(before)
    assert same(weights(federation.model), weights(before))  # nothing is trained yet


def test_visits_are_adamw_that_goes_on_with_own_prefixes() -> None:
    """Three rounds of each client, by torch on a copy of the model."""
    federation = federate()
    federation.round()
    common, private = shared(federation)
    assert (len(common), len(private)) == (1, 2)
    alone = [copy.deepcopy(federation.model) for _ in range(3)]
    named = [dict(model.named_parameters()) for model in alone]
    optimizers = [
        torch.optim.AdamW([own[n] for n in sorted([*common, *private])], lr=ETA, weight_decay=0.1)
        for own in named
    ]
    variates = [np.zeros(()) for _ in range(3)]
    for round in (1, 2, 3):
        [name], now = common, weights(federation.model)
        assert federation.last is not None
        told = federation.last.tensors[name + VARIATE].double().numpy()
        sent = reports(federation)
        for client in range(3):
            prefix = named[client][name]
            with torch.no_grad():
                prefix.copy_(now[name])
            for batch in batches(client, round):
                optimizers[client].zero_grad()
                answer_loss(alone[client], batch).backward()  # type: ignore[no-untyped-call]
                optimizers[client].step()
            report, ended = sent[client], prefix.detach()
            torch.testing.assert_close(report.tensors[name], ended, rtol=0, atol=1e-5)
            moved = (now[name] - report.tensors[name]).double().numpy() / (STEPS * ETA)
            variates[client] = variates[client] - told + moved
            found = report.tensors[name + VARIATE].double().numpy()
            np.testing.assert_allclose(found, variates[client], atol=1e-5)
        federation.round()


def test_the_update_is_the_servers_step() -> None:
    """Of the first two training rounds, from reports, in float64."""
    federation = federate()
    federation.round()
    [name], _ = shared(federation)
    shares, start = np.array([9, 4, 1]) / 14, weights(federation.model)[name].double().numpy()
    c, v, deltas = np.zeros(start.shape), np.zeros(start.shape), []
    for round in (1, 2):
        sent = reports(federation)
        left, own = (
            np.stack([r.tensors[name + kind].double().numpy() for r in sent])
            for kind in ("", VARIATE)
        )
        mean = np.tensordot(shares, left, 1)
        deltas.append(start - mean)
        c = np.mean([(start - w) / (STEPS * ETA) for w in left], axis=0)  # all of three clients
        if round == 2:
            v = 0.1 * (deltas[0] - deltas[1]) + c - np.tensordot(shares, own, 1)
        wanted = {"": mean - 0.05 * 0.99 * v, VARIATE: c, MOMENTUM: v, DELTA: deltas[-1]}
        update = federation.round().update
        assert update.tensors.keys() == {name + kind for kind in wanted}
        for kind, numbers in wanted.items():
            np.testing.assert_allclose(update.tensors[name + kind].numpy(), numbers, atol=1e-5)
        start = weights(federation.model)[name].double().numpy()
        assert torch.equal(federation.model.get_parameter(name), update.tensors[name])
    assert np.abs(v).max() > 0.01


def test_private_prefixes_are_in_no_message_and_kept() -> None:
    federation = federate()
    messages: list[bytes] = []
    for _ in range(3):
        plans = federation.method.plans(federation.worker.replica.version, federation.last)
        messages += [encode(plan) for plan in plans]
        messages += [encode(report) for report in reports(federation)]
        messages.append(encode(federation.round().update))
    common, private = shared(federation)
    held = sum(name.encode() in message for message in messages for name in common)
    assert held == 1 + 2 * (3 + 1)  # the first update, and then reports and updates
    assert not any(name.encode() in message for message in messages for name in private)
    state = federation.worker._states.load(0, "all", 3)
    model = federation.model
    for name in private:
        number = int(name.rpartition(".")[2])
        started = initial_prefix(SEED, number, model.get_parameter(name).shape)
        assert torch.equal(model.get_parameter(name).detach(), started)
        kept = state[f"local/private/{name}"]
        assert float((kept - started).abs().max()) > 2 * ETA  # more than one visit's steps
        assert f"local/moments/{name}/exp_avg" in state
        numbers = kept.numpy().tobytes()
        assert not any(numbers in message for message in messages)
    assert all(f"local/private/{name}" not in state for name in common)


def test_moments_begin_anew_where_the_recipe_says_so() -> None:
    work = {"steps": STEPS, "batch_size": BATCH, "optimizer_state": "reset"}
    federation = federate(work=work)
    for _ in range(3):
        federation.round()
    state = federation.worker._states.load(0, "all", 3)
    assert any(name.startswith("local/private/") for name in state)
    assert not any("moments" in name for name in state)


def test_a_client_does_not_give_what_it_keeps() -> None:
    """A server that asks for another layer than before hears why."""
    federation = federate()
    for _ in range(2):
        federation.round()
    _, private = shared(federation)
    other = Plan(2, 0, {LAYERS: [int(private[0].rpartition(".")[2])]})
    arrival = federation.worker.visit(encode(other))
    assert arrival.payload is None
    assert "keeps to itself" in arrival.failure


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 1], [1.0], "1", [True]])
def test_layers_that_cannot_be_shared_are_refused(layers: Any) -> None:
    federation = federate()
    last = federation.round().update
    arrival = federation.worker.visit(encode(Plan(1, 0, {LAYERS: layers})))
    assert arrival.payload is None
    assert "layers" in arrival.failure
    with pytest.raises(Exception, match="layers"):
        federation.method.check_update(replace(last, values={**last.values, LAYERS: layers}))


def test_replicas_that_apply_the_same_bytes_are_equal() -> None:
    one, two = federate(), federate()
    before = weights(one.model)
    for _ in range(3):
        two.worker.deliver(encode(one.round().update))
        assert same(weights(one.model), weights(two.model))
    changed = [n for n, p in weights(one.model).items() if not torch.equal(p, before[n])]
    assert changed == shared(one)[0]


def test_one_report_alone_is_that_clients_prefix() -> None:
    federation = federate()
    for _ in range(2):
        federation.round()
    [name], _ = shared(federation)
    plan, report = federation.method.plans(2, federation.last)[1], reports(federation)[1]
    start = federation.model.get_parameter(name).detach().clone()
    moved = report.tensors[name] - start
    norm = federation.method.norm(report, plan, federation.model)
    assert norm == pytest.approx(float(moved.norm()), rel=1e-5)
    update = federation.method.alone(report, plan, federation.last, 0.5)
    with torch.no_grad():
        federation.method.apply(federation.model, update)
    assert torch.equal(federation.model.get_parameter(name).detach(), start + 0.5 * moved)


def test_another_rule_is_refused() -> None:
    with pytest.raises(UserError, match=r"^aggregation\.name: FedPepTAO"):
        federate(aggregation=TrimmedMean(0.4))


@pytest.mark.parametrize(
    "options", [{"prefix_tokens": 0}, {"shared": 0}, {"server_rate": -1}, {"momentum": 1.0}]
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        method_options("fedpeptao", **options)
