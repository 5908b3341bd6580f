"""FlexLoRA: products of different ranks are averaged, and the best of each rank goes back."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fullfed.config import MemoryTable
from fullfed.data.batches import training_batches
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Report, encode
from fullfed.methods import flexlora
from fullfed.methods.aggregation import TrimmedMean
from fullfed.methods.flexlora import FlexLoRAOptions, best_factors, dealt
from fullfed.methods.robust import ClippedMean
from fullfed.methods.scopes import A, B, adapted, initial_a
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.lora import SEED, products, reports, three_clients
from methods.tiny import Federation, adamw, method_options, same, setting, tiny_model, weights

OPTIONS = FlexLoRAOptions(ranks=(1, 2, 3), alpha=6.0)
RANKS = dealt(SEED, 3, OPTIONS.ranks)


def federate(options: FlexLoRAOptions = OPTIONS, **changes: Any) -> Federation:
    model = tiny_model()
    scope = flexlora.scope(SEED, options)
    scope.attach(model)
    shapes = {name: p.shape for name, p in scope.trained(model).items()}
    known: dict[str, Any] = {"local": adamw(0.03), "work": {"steps": 5}, "shapes": shapes}
    made = setting(model, clients=3, **known | changes)
    return Federation(model, flexlora.build(made, options), three_clients())


def best(matrix: Tensor, rank: int) -> Tensor:
    """The best approximation of a rank, by torch's own decomposition of the whole matrix."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]


def random(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


@pytest.mark.parametrize("ranks", [(2, 3), (5, 5, 5), (1,), (9, 8)])
def test_the_best_factors_are_the_decomposition_of_the_sum(ranks: tuple[int, ...]) -> None:
    """Also where the sum has more rank than is kept, or less, or as much as a matrix can have."""
    parts = [
        (0.5 + n, (random(n, 6, rank), random(9 + n, rank, 7))) for n, rank in enumerate(ranks)
    ]
    whole = sum((w * (b.double() @ a.double()) for w, (b, a) in parts), torch.zeros(6, 7).double())
    drawn = random(99, 4, 7)
    b, a = best_factors(parts, drawn)
    assert (b.dtype, a.dtype, b.shape, a.shape) == (torch.float32, torch.float32, (6, 4), (4, 7))
    for rank in range(1, 5):
        found = b[:, :rank].double() @ a[:rank].double()
        torch.testing.assert_close(found, best(whole, rank), rtol=0, atol=1e-5)
    found_rank = min(sum(ranks), 4)
    singular = torch.linalg.svdvals(whole)[:found_rank]
    torch.testing.assert_close(b.double().norm(dim=0)[:found_rank], singular, rtol=0, atol=1e-5)
    assert torch.equal(a[found_rank:], drawn[found_rank:])
    assert b[:, found_rank:].count_nonzero() == 0


def test_ranks_are_dealt_as_evenly_as_can_be_and_by_the_seed() -> None:
    assert Counter(dealt(0, 8, (4, 16))) == {4: 4, 16: 4}
    assert Counter(dealt(0, 8, (4, 4, 4, 16))) == {4: 6, 16: 2}
    assert Counter(dealt(0, 5, (1, 2, 3))) == {1: 2, 2: 2, 3: 1}
    deals = {dealt(seed, 8, (4, 16)) for seed in range(20)}
    assert len(deals) > 10


def test_an_update_is_the_best_of_the_mean_of_products() -> None:
    federation = federate()
    for round in range(3):
        sent = reports(federation)
        assert [len(next(iter(r.tensors.values()))) for r in sent] == list(RANKS)
        samples = [9 / 14, 4 / 14, 1 / 14]
        federation.round()
        found = products(federation.model, {})
        for number, (target, product) in enumerate(found.items()):
            each = [r.tensors[target + B].double() @ r.tensors[target + A].double() for r in sent]
            mean = sum((p * own for p, own in zip(samples, each, strict=True)), 0 * each[0])
            assert mean.abs().max() > 1e-3
            torch.testing.assert_close(product, best(mean, 3), rtol=0, atol=1e-6)
            a = federation.model.get_parameter(target + A)
            assert a.shape == (3, 4)
            assert not torch.equal(a, initial_a(SEED, round + 1, number, a.shape))


def test_a_client_trains_pefts_adapter_of_its_own_rank() -> None:
    """From the leading part of the replica's factors, scaled as the replica's are."""
    federation = federate()
    federation.round()
    model = federation.model
    for client, rank in enumerate(RANKS):
        base = tiny_model()
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        alone = get_peft_model(copy.deepcopy(base), config).eval()
        theirs = {
            name.removeprefix("base_model.model."): p
            for name, p in alone.named_parameters()
            if p.requires_grad
        }
        with torch.no_grad():
            for name, p in theirs.items():
                own = model.get_parameter(name)
                p.copy_(own[:rank] if name.endswith(A) else own[:, :rank])
        optimizer = torch.optim.AdamW(list(theirs.values()), lr=0.03, weight_decay=0.0)
        stream = Stream(SEED, Purpose.BATCHES, 1, client)
        batch_size = federation.method.setting.local.batch_size
        for batch in training_batches(three_clients()[client], batch_size, 5, stream):
            optimizer.zero_grad()
            answer_loss(alone.get_base_model(), batch).backward()
            optimizer.step()
        sent = reports(federation)[client]
        assert sent.tensors.keys() == theirs.keys()
        for name, p in theirs.items():
            assert torch.equal(sent.tensors[name], p.detach()), name


def test_a_visit_leaves_the_replica_as_it_was() -> None:
    federation = federate()
    before = weights(federation.model)
    names = list(before)
    reports(federation)
    assert same(weights(federation.model), before)
    assert [name for name, _ in federation.model.named_parameters()] == names


def test_frozen_weights_can_be_held_in_few_bits() -> None:
    exact, packed = federate(), federate(memory=MemoryTable(frozen="int8"))
    apart = [
        float((a.tensors[name] - b.tensors[name]).abs().max())
        for a, b in zip(reports(exact), reports(packed), strict=True)
        for name in a.tensors
    ]
    assert 0 < max(apart) < 0.1


def test_replicas_that_apply_the_same_bytes_are_equal_bit_for_bit() -> None:
    one, two = federate(), federate()
    for _ in range(2):
        two.worker.deliver(encode(one.round().update))
        assert same(weights(one.model), weights(two.model))


def test_the_norm_of_a_report_is_that_of_the_product_it_changes() -> None:
    federation = federate()
    federation.round()
    plans = federation.method.plans(1, federation.last)
    for plan, report, rank in zip(plans, reports(federation), RANKS, strict=True):
        squares = 0.0
        for target in adapted(report.tensors):
            b, a = (federation.model.get_parameter(target + f).detach().double() for f in (B, A))
            new = report.tensors[target + B].double() @ report.tensors[target + A].double()
            squares += float((2.0 * (new - b[:, :rank] @ a[:rank])).square().sum())
        said = federation.method.norm(report, plan, federation.model)
        assert said == pytest.approx(squares**0.5, rel=1e-6)


def test_a_share_of_a_report_is_a_share_of_its_product() -> None:
    """As the held-out check tries it; the replica is as it was afterwards."""
    federation = federate(FlexLoRAOptions(ranks=(4,), alpha=4.0))  # nothing is truncated
    federation.round()
    plan = federation.method.plans(1, federation.last)[0]
    report = reports(federation)[0]
    start, state = products(federation.model, {}), weights(federation.model)
    wanted = products(federation.model, dict(report.tensors))
    update = federation.method.alone(report, plan, federation.last, 0.25)
    with federation.worker.replica.trial(update):
        for target, product in products(federation.model, {}).items():
            expected = 0.75 * start[target] + 0.25 * wanted[target]
            assert float((expected - start[target]).abs().max()) > 1e-4
            torch.testing.assert_close(product, expected, rtol=0, atol=1e-6)
    assert same(weights(federation.model), state)


def test_a_report_of_another_rank_is_refused() -> None:
    federation = federate()
    plans = federation.method.plans(0, None)
    one, other = (r for r in reports(federation) if r.client in (0, 1))
    federation.method.check(one, plans[0])
    with pytest.raises(MessageError, match="the report's "):
        federation.method.check(Report(0, 0, 9, 0.0, {}, other.tensors), plans[0])


@pytest.mark.parametrize("rule", [TrimmedMean(0.4), ClippedMean()])
def test_rules_that_compare_or_measure_are_refused(rule: Any) -> None:
    with pytest.raises(UserError, match=r"^aggregation\.name: FlexLoRA"):
        federate(aggregation=rule)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranks": []}, "ranks is a list"),
        ({"ranks": [4, 0]}, "ranks"),
        ({"ranks": [True]}, "ranks"),
        ({"alpha": 0}, "alpha"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.?.*{said}"):
        method_options("flexlora", **options)
