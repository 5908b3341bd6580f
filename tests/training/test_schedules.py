"""Learning rates over rounds and within visits, and optimizers that go on between visits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from fullfed.config import FederationTable, LocalTable, MemoryTable, parse_recipe
from fullfed.data.batches import collate, training_batches
from fullfed.recipe_file import load_recipe
from fullfed.sketch import Purpose, Stream
from fullfed.training.first_order import train
from fullfed.training.loss import answer_loss
from methods.tiny import (
    Federation,
    adamw,
    make_fedavg,
    same,
    samples,
    setting,
    sgd,
    tiny_model,
    weights,
)

ROUNDS = 7


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("constant", get_constant_schedule_with_warmup),
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
    ],
)
def test_rates_over_rounds_are_those_of_transformers(
    schedule: Any, reference: Any, warmup: int
) -> None:
    """But that ours do not begin at zero when they rise."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    whole = {} if schedule == "constant" else {"num_training_steps": ROUNDS}
    expected = reference(optimizer, num_warmup_steps=warmup, **whole)
    local = LocalTable(learning_rate=0.3, schedule=schedule, warmup_rounds=warmup)
    for round in range(ROUNDS):
        rate = local.in_round(round, ROUNDS).learning_rate
        rising = 0.3 * (round + 1) / (warmup + 1)
        assert rate == pytest.approx(rising if round < warmup else expected.get_last_lr()[0])
        assert 0 < rate <= 0.3
        optimizer.step()
        expected.step()


def test_the_rounds_of_a_run_have_the_schedules_rates() -> None:
    """One client of FedAvg, four rounds: SGD at 0.3, 0.225, 0.15 and 0.075."""
    model, alone = tiny_model(), tiny_model()
    table = FederationTable(rounds=4, clients_per_round=1, seed=5)
    made = setting(model, local=sgd(0.3, schedule="linear"), federation=table)
    federation = Federation(model, make_fedavg(made), [samples(9)])
    for round in range(4):
        federation.round()
        stream = Stream(5, Purpose.BATCHES, round, 0)
        for batch in training_batches(samples(9), made.local.batch_size, 1, stream):
            answer_loss(alone, batch).backward()
            torch.optim.SGD(alone.parameters(), lr=0.3 * (1 - round / 4)).step()
            alone.zero_grad()
    assert same(weights(model), weights(alone))


def test_a_visit_warms_up_to_the_rounds_rate() -> None:
    local = LocalTable(learning_rate=0.3, warmup_steps=3, clip=None)
    assert [local.warmup(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    model, alone = tiny_model(), tiny_model()
    batches = [collate(samples(3, seed)) for seed in range(5)]
    train(model, dict(model.named_parameters()), batches, local, MemoryTable())
    for step, batch in enumerate(batches):
        answer_loss(alone, batch).backward()
        torch.optim.SGD(alone.parameters(), lr=0.3 * local.warmup(step)).step()
        alone.zero_grad()
    assert same(weights(model), weights(alone))


def test_without_warm_up_the_rate_is_the_recipes() -> None:
    assert [LocalTable().warmup(step) for step in range(3)] == [1.0] * 3
    assert LocalTable().in_round(3, 4) == LocalTable()


def test_a_client_that_keeps_its_optimizer_trains_on_as_if_nothing_had_been_between() -> None:
    """One client of FedAvg in float32, three rounds: AdamW without a break."""
    model, alone = tiny_model(), tiny_model()
    work = {"batch_size": 4, "steps": 2, "optimizer_state": "kept"}
    made = setting(model, clients=1, work=work, local=adamw(0.01, clip=None))
    federation = Federation(model, make_fedavg(made), [samples(9)])
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.01, weight_decay=0.0)
    for round in range(3):
        federation.round()
        stream = Stream(5, Purpose.BATCHES, round, 0)
        for batch in training_batches(samples(9), 4, 2, stream):
            answer_loss(alone, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same(weights(model), weights(alone))


def test_the_usual_rate_depends_on_the_optimizer() -> None:
    rates = {name: LocalTable(optimizer=name).learning_rate for name in ("sgd", "AdamW", "muon")}
    assert rates == {"sgd": 0.1, "AdamW": 2e-5, "muon": 2e-5}
    assert LocalTable(optimizer="adamw", learning_rate=1e-3).learning_rate == 1e-3
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "method": {"name": "fedavg"},
    }
    for local, rate in (({}, 0.1), ({"optimizer": "adafactor"}, 1e-3)):
        assert parse_recipe({**tables, "local": local}, "r.toml").local.learning_rate == rate


def test_another_optimizer_in_a_recipe_object_has_its_own_usual_rate() -> None:
    """As in the file that the recipe came from: a rate that nobody said is nobody's."""
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "method": {"name": "fedavg"},
        "local": {"optimizer": "adamw"},
    }
    for source in (tables, load_recipe(tables)):
        assert load_recipe(source, ["local.optimizer=sgd"]).local.learning_rate == 0.1
        assert load_recipe(source, ["local.steps=3"]).local.learning_rate == 2e-5
    said = load_recipe(load_recipe(tables, ["local.learning_rate=0.5"]), ["local.optimizer=sgd"])
    assert said.local.learning_rate == 0.5
