"""Record-level noise: each record counts for no more than it may, noise and samples have the law
that is accounted for, and nothing else of a record goes out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fullfed.config import LocalTable, MemoryTable
from fullfed.config_privacy import PrivacyTable
from fullfed.data.batches import collate
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.privacy.accountant import Account, epsilon_of
from fullfed.privacy.keystream import derived
from fullfed.privacy.records import KeyedNoise, LedgerInMemory, RecordMechanism, record_mechanism
from fullfed.training.loss import answer_loss
from fullfed.training.private_steps import Bound, train_privately
from privacy.epsilons import sampled_epsilon

KEY = derived(b"tests of records", "key")
PLAIN = {"learning_rate": 1.0, "clip": None}


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Its embeddings are tied to its head, so that a record's gradient comes from two places."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def records(count: int, seed: int = 0) -> list[TokenizedExample]:
    """Of several lengths."""
    drawn = np.random.default_rng(seed)
    return [
        TokenizedExample.pair(drawn.integers(0, 40, 5 + n % 4).astype(np.int32), 2 + n % 2)
        for n in range(count)
    ]


def trained(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def values(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def own_gradients(model: LlamaForCausalLM, some: Sequence[TokenizedExample]) -> list[Tensor]:
    """Each record's gradient, flat, in float64, from logits and logarithms alone."""
    exact = LlamaForCausalLM(model.config).double()
    exact.load_state_dict(model.state_dict())
    gradients = []
    for record in some:
        ids = torch.from_numpy(record.ids).long()
        logits = exact(input_ids=ids[None]).logits[0, :-1]
        chosen = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]]
        loss = -chosen[torch.from_numpy(record.learned[1:])].mean()
        found = torch.autograd.grad(loss, list(exact.parameters()))
        gradients.append(torch.cat([g.reshape(-1) for g in found]))
    return gradients


def change(model: LlamaForCausalLM, before: dict[str, Tensor]) -> Tensor:
    return torch.cat([(p - before[n]).detach().reshape(-1) for n, p in model.named_parameters()])


@pytest.mark.parametrize("share", [0.5, 0.9, 2.0])
def test_a_step_is_the_sum_of_clipped_gradients(model: LlamaForCausalLM, share: float) -> None:
    """Against float64 by hand; ``share`` of the records' middle norm is the clip."""
    some = records(6)
    gradients = own_gradients(model, some)
    norms = torch.stack([g.norm() for g in gradients])
    clip = share * float(norms.median())
    due = sum(g * min(1.0, clip / float(n)) for g, n in zip(gradients, norms, strict=True))
    assert isinstance(due, Tensor)
    before = values(model)
    bound = Bound(clip, 0.0, 5.0)
    local = LocalTable(learning_rate=1.0, clip=1e-3)  # of the recipe's, which does not count
    train_privately(
        model, trained(model), [collate(some)], local, MemoryTable(), bound, KeyedNoise(KEY)
    )
    error = change(model, before).double() + due / 5
    assert float(error.norm()) <= 1e-5 * float(due.norm() / 5)


def test_weights_in_16_bits_are_trained_as_float32_copies(model: LlamaForCausalLM) -> None:
    some = records(6)
    model.bfloat16()
    due = torch.stack(own_gradients(model, some)).sum(dim=0)
    start = {name: p.detach().float() for name, p in model.named_parameters()}
    bound, local = Bound(1e9, 0.0, 5.0), LocalTable(learning_rate=1e-3)
    done = train_privately(
        model, trained(model), [collate(some)], local, MemoryTable(), bound, KeyedNoise(KEY)
    )
    found = torch.cat([(done.exact[n] - start[n]).reshape(-1) for n in start]).double()
    assert float((found + 1e-3 * due / 5).norm()) <= 0.02 * float(found.norm())  # bfloat16's own
    for name, p in model.named_parameters():
        assert torch.equal(p, done.exact[name].bfloat16())


def test_a_record_without_a_finite_gradient_counts_for_nothing(model: LlamaForCausalLM) -> None:
    some = records(4)
    bad = TokenizedExample.pair(np.full(6, 7, np.int32), 6)  # nothing learned: its mean is 0 / 0
    changes = []
    for batch in (some, [*some, bad]):
        before = values(model)
        train_privately(
            model,
            trained(model),
            [collate(batch)],
            LocalTable(**PLAIN),
            MemoryTable(),
            Bound(1.0, 0.0, 4.0),
            KeyedNoise(KEY),
        )
        changes.append(change(model, before))
        model.load_state_dict(before, strict=False)
    assert torch.equal(*changes)
    assert float(changes[0].norm()) > 0


def test_without_noise_and_clip_it_is_the_optimizer_on_the_mean_of_losses(
    model: LlamaForCausalLM,
) -> None:
    some, before = records(5), values(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([answer_loss(model, collate([record])) for record in some]).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    due = values(model)
    model.load_state_dict(before, strict=False)
    local = LocalTable(optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    batches = [collate(some)] * 3
    bound = Bound(1e9, 0.0, 5.0)
    done = train_privately(
        model, trained(model), batches, local, MemoryTable(), bound, KeyedNoise(KEY)
    )
    assert done.losses == []
    for name, p in model.named_parameters():
        assert torch.allclose(p, due[name], atol=2e-5), name


def test_a_step_without_records_is_noise_of_the_law_that_is_said(model: LlamaForCausalLM) -> None:
    before = values(model)
    train_privately(
        model,
        trained(model),
        [collate([])],
        LocalTable(**PLAIN),
        MemoryTable(),
        Bound(0.5, 1.5 * 0.5, 4.0),
        KeyedNoise(KEY),
    )
    drawn = change(model, before).numpy()
    assert len(drawn) > 1000
    assert stats.kstest(drawn, stats.norm(0, 1.5 * 0.5 / 4).cdf).pvalue > 1e-3
    assert len(np.unique(drawn)) > 0.99 * len(drawn)


def test_samples_are_poisson() -> None:
    """Each record by itself at the rate, so that sizes are binomial; and each step anew."""
    mechanism = RecordMechanism(Account(1.0, 0.2, 1e-5), 1.0, records=30, steps=3000)
    steps = list(mechanism.samples(KEY))
    assert len(steps) == 3000
    drawn = np.zeros((3000, 30), bool)
    for row, numbers in zip(drawn, steps, strict=True):
        row[list(numbers)] = True
    sizes = np.bincount(drawn.sum(axis=1), minlength=31)
    expected = stats.binom.pmf(np.arange(31), 30, 0.2) * 3000
    many = expected >= 5
    counts = [*sizes[many], sizes[~many].sum()]
    assert stats.chisquare(counts, [*expected[many], expected[~many].sum()]).pvalue > 1e-3
    each = drawn.sum(axis=0)
    assert stats.chisquare([each, 3000 - each], [[600] * 30, [2400] * 30], axis=0).pvalue.min() > (
        1e-3 / 30
    )
    together = np.mean(drawn[:-1] & drawn[1:])
    assert together == pytest.approx(0.04, abs=5 * math.sqrt(0.04 / drawn.size))
    assert list(mechanism.samples(KEY)) == steps
    assert list(mechanism.samples(derived(KEY, "other"))) != steps


def table(**changes: object) -> PrivacyTable:
    said = {"protects": "record", "delta": 1e-3, "clip": 1.0, "noise": 1.0, **changes}
    return PrivacyTable(**{name: value for name, value in said.items() if value is not None})


def test_epsilon_is_what_convolution_gives() -> None:
    mechanism = record_mechanism(table(), LocalTable(batch_size=4, epochs=1), 5, 40)
    assert (mechanism.account.rate, mechanism.steps, mechanism.batch) == (0.1, 10, 4.0)
    due = sampled_epsilon({(1.0, 0.1): 30}, 1e-3)
    assert mechanism.epsilon(mechanism.visited(2), 1) == pytest.approx(due, rel=0.01)


def test_steps_of_several_kinds_add_up_as_convolution_has_them() -> None:
    """As where a server has a node forget a run and comes with other settings."""
    spent = {(1.0, 0.1): 12, (2.0, 0.3): 8}
    due = sampled_epsilon(spent, 1e-5)
    assert epsilon_of(spent, 1e-5) == pytest.approx(due, rel=0.01)
    assert epsilon_of({}, 1e-5) == 0.0


def test_noise_that_is_not_said_is_as_much_as_all_rounds_need() -> None:
    local = LocalTable(batch_size=4, steps=2)
    mechanism = record_mechanism(table(noise=None, epsilon=3.0), local, 6, 40)
    assert mechanism.epsilon(mechanism.visited(5)) <= 3.0
    less = Account(mechanism.account.noise / 1.01, 0.1, 1e-3)
    assert less.epsilon(12) > 3.0
    fewer = record_mechanism(table(noise=None, epsilon=3.0), local, 6, 20)
    assert fewer.account.noise > mechanism.account.noise


def test_a_batch_of_all_records_is_no_sample() -> None:
    mechanism = record_mechanism(table(), LocalTable(batch_size=9, steps=3), 5, 6)
    assert mechanism.account.rate == 1.0
    assert mechanism.batch == 6.0
    assert list(mechanism.samples(KEY)) == [list(range(6))] * 3


def test_a_ledger_adds_up_by_kind() -> None:
    ledger = LedgerInMemory()
    for noise, steps in ((1.0, 2), (2.0, 3), (1.0, 4)):
        ledger.add(noise, 0.5, steps)
    assert ledger.before(9) == {(1.0, 0.5): 6, (2.0, 0.5): 3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delta": 0.1}, "privacy.delta: 0.1 would let a record of 10"),
        ({"epsilon": 0.1}, "one visit to a client with 10 records alone has epsilon"),
        ({"noise": None, "epsilon": 1e-6, "delta": 1e-12}, "leaves nothing to learn"),
    ],
)
def test_what_no_client_can_keep_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        record_mechanism(table(**changes), LocalTable(batch_size=4, steps=2), 5, 10)
    assert "\n" not in str(caught.value)
