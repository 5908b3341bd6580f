"""Fed-SB: R alone trains; its mean is the mean of products; the first round makes B and A."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call
from transformers import GPT2LMHeadModel, PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import training_batches
from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Plan, Report, encode
from fullfed.federation.replica import Replica
from fullfed.methods import fed_sb
from fullfed.methods.fed_sb import FedSBOptions, R
from fullfed.methods.scopes import A, B, W, adapted, initial_a
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.lora import SEED, reports, three_clients
from methods.test_adapters import logits, tiny_gpt2
from methods.tiny import Federation, adamw, method_options, same, setting, sgd, tiny_model, weights

OPTIONS = FedSBOptions(rank=2, warmup=10)
RANDOM = replace(OPTIONS, start="random")
ADAMW = adamw(0.03)
WORK = {"batch_size": 4, "steps": 5}
SHARES = (9 / 14, 4 / 14, 1 / 14)  # of three_clients


def federate(
    model: PreTrainedModel,
    clients: int = 3,
    options: FedSBOptions = OPTIONS,
    local: LocalTable = ADAMW,
    memory: MemoryTable | None = None,
) -> Federation:
    scope = fed_sb.scope(SEED, options)
    scope.attach(model)
    made = setting(
        model,
        clients=clients,
        local=local,
        work=WORK,
        memory=memory or MemoryTable(),
        shapes={name: p.shape for name, p in scope.trained(model).items()},
        replicated={name: p.shape for name, p in scope.replicated(model).items()},
    )
    return Federation(model, fed_sb.build(made, options), three_clients()[:clients])


def product(own: dict[str, Tensor], target: str, core: Tensor | None = None) -> Tensor:
    """B R A in float64."""
    r = own[target + R] if core is None else core
    return own[target + B].double() @ r.double() @ own[target + A].double()


def gradients(model: PreTrainedModel, client: int, round: int) -> dict[str, Tensor]:
    """The mean gradient of a client's batches by every parameter of an ordinary model."""
    total: dict[str, Tensor] = {}
    stream = Stream(SEED, Purpose.BATCHES, round, client)
    steps = WORK["steps"]
    for batch in training_batches(three_clients()[client], WORK["batch_size"], steps, stream):
        model.zero_grad()
        answer_loss(model, batch).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            total[name] = total.get(name, torch.zeros_like(p)) + p.grad / steps
    return total


@pytest.mark.parametrize("options", [OPTIONS, RANDOM], ids=["gradient", "random"])
def test_the_mean_of_r_makes_the_mean_of_products(options: FedSBOptions) -> None:
    model = tiny_model()
    federation = federate(model, options=options)
    if options is OPTIONS:
        federation.round()
    for _ in range(3):
        own, sent = weights(model), reports(federation)
        federation.round()
        for target in adapted(own):
            each = [product(own, target, report.tensors[target + R]) for report in sent]
            mean = sum((s * p for s, p in zip(SHARES, each, strict=True)), 0 * each[0])
            came = product(weights(model), target)
            assert (each[0] - each[1]).abs().max() > 1e-3
            torch.testing.assert_close(came, mean, rtol=0, atol=1e-6)


def test_only_r_trains_and_is_sent() -> None:
    """Seven targets with 4 numbers each, after a first round that sends whole gradients."""
    model = tiny_model()
    federation = federate(model)
    first = federation.round()
    own = weights(model)
    targets = adapted(own)
    assert len(targets) == 7
    assert set(federation.method.scope.trained(model)) == {target + R for target in targets}
    second = federation.round()
    changed = {name for name, p in weights(model).items() if not torch.equal(p, own[name])}
    assert changed == {target + R for target in targets}
    for message in (second.update, *reports(federation)):
        assert message.tensors.keys() == changed
        assert sum(t.nbytes for t in message.tensors.values()) == 7 * 2**2 * 4
    plan = federation.method.plans(2, federation.last)[0]
    assert (
        federation.method.codec.report_bytes(plan, federation.method.setting.shapes) == 7 * 2**2 * 4
    )
    factors = {target + factor for target in targets for factor in (A, B, R)}
    assert first.update.tensors.keys() == factors
    assert sum(t.nbytes for t in first.update.tensors.values()) == 4 * sum(
        2 * sum(own[target + W].shape) + 2**2 for target in targets
    )


def test_the_first_round_costs_the_gradients_of_the_targets() -> None:
    model = tiny_model()
    federation = federate(model)
    sent = reports(federation)
    own = weights(model)
    matrices = {target + W: own[target + W].shape for target in adapted(own)}
    plan = federation.method.plans(0, None)[0]
    bytes = sum(shape.numel() for shape in matrices.values()) * 4
    assert federation.method.codec.report_bytes(plan, federation.method.setting.shapes) == bytes
    for report in sent:
        assert {name: t.shape for name, t in report.tensors.items()} == matrices


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
def test_reported_gradients_are_torchs(make: Any) -> None:
    """Also of layers that keep their matrix as (in, out); and measuring changes nothing."""
    model = make()
    alone = copy.deepcopy(model)
    conv = isinstance(model, GPT2LMHeadModel)
    targets = {"targets": ("c_attn", "mlp.c_proj")} if conv else {}
    federation = federate(model, options=replace(OPTIONS, **targets))
    before = weights(model)
    sent = reports(federation)
    assert same(weights(model), before)
    assert all(p.grad is None for p in model.parameters())
    for report in sent:
        theirs = gradients(alone, report.client, 0)
        assert report.tensors
        for name, ours in report.tensors.items():
            wanted = theirs[name.replace(".base_layer", "")]
            assert wanted.abs().max() > 1e-4
            torch.testing.assert_close(ours, wanted.T if conv else wanted, rtol=0, atol=1e-6)


def test_the_first_round_computes_as_the_recipe_says() -> None:
    """In parts of one sample, so in the memory of later rounds; and in the recipe's precision."""
    model = tiny_model()
    alone = copy.deepcopy(model)
    federation = federate(model, clients=1, local=adamw(0.03, micro_batch_size=1))
    sizes = list[int]()
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    [report] = reports(federation)
    hook.remove()
    assert set(sizes) == {1}
    theirs = gradients(alone, 0, 0)
    for name, ours in report.tensors.items():
        wanted = theirs[name.replace(".base_layer", "")]
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)
    rounded = federate(tiny_model(), clients=1, local=adamw(0.03, precision="bfloat16"))
    [other] = reports(rounded)
    for name, ours in other.tensors.items():
        assert not torch.equal(ours, report.tensors[name])
        torch.testing.assert_close(ours, report.tensors[name], rtol=0, atol=0.02)


@pytest.mark.parametrize("memory", [MemoryTable(), MemoryTable(checkpoint_activations=True)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_factors_are_the_best_of_their_rank(optimizer: Any, memory: MemoryTable) -> None:
    """Eckart and Young: what B R A misses of the first update are its last singular values."""
    model = tiny_model()
    alone = copy.deepcopy(model)
    federation = federate(model, local=sgd(0.03, optimizer=optimizer), memory=memory)
    federation.round()
    own = weights(model)
    each = [gradients(alone, client, 0) for client in range(3)]
    for target in adapted(own):
        mean = sum(s * g[f"{target}.weight"] for s, g in zip(SHARES, each, strict=True))
        direction = (mean.sign() if optimizer == "adamw" else mean).double()  # type: ignore[union-attr]
        update = -0.03 / 10 * direction
        values = np.linalg.svd(update.numpy(), compute_uv=False)
        missed = (product(own, target) - update).norm().item()
        assert missed == pytest.approx(float(np.sqrt((values[2:] ** 2).sum())), abs=1e-7)
        torch.testing.assert_close(own[target + B].T @ own[target + B], torch.eye(2))
        torch.testing.assert_close(own[target + A] @ own[target + A].T, torch.eye(2))


def test_one_client_is_training_r_by_hand() -> None:
    """Torch's AdamW on R alone, in an ordinary model whose matrices are written out."""
    model = tiny_model()
    alone = copy.deepcopy(model)
    federation = federate(model, clients=1)
    federation.round()
    own = weights(model)
    targets = adapted(own)
    cores = {target: own[target + R].clone().requires_grad_() for target in targets}
    for round in (1, 2):
        federation.round()
        optimizer = torch.optim.AdamW(list(cores.values()), lr=0.03, weight_decay=0.0)
        stream = Stream(SEED, Purpose.BATCHES, round, 0)
        for batch in training_batches(three_clients()[0], WORK["batch_size"], 5, stream):
            written = {
                f"{t}.weight": own[t + W] + own[t + B] @ cores[t] @ own[t + A] for t in targets
            }
            inputs = {"input_ids": batch.input_ids, "labels": batch.labels}
            optimizer.zero_grad()
            functional_call(alone, written, kwargs=inputs).loss.backward()
            optimizer.step()
        for target, core in cores.items():
            ours = model.get_parameter(target + R)
            assert (core - own[target + R]).abs().max() > 0.01
            torch.testing.assert_close(ours, core, rtol=0, atol=1e-5)


def test_untrained_it_is_the_base_and_the_same_for_everybody() -> None:
    one, two = tiny_model(), tiny_model()
    before, state = logits(one), torch.random.get_rng_state()
    fed_sb.scope(SEED, OPTIONS).attach(one)
    assert torch.equal(logits(one), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    fed_sb.scope(SEED, OPTIONS).attach(two)
    assert same(weights(one), weights(two))


def test_random_factors_are_near_orthonormal_and_stay() -> None:
    model = tiny_model()
    federation = federate(model, options=RANDOM)
    before = weights(model)
    update = federation.round().update
    assert all(name.endswith(R) for name in update.tensors)
    assert set(federation.method.replicated(model)) == update.tensors.keys()
    for name, p in weights(model).items():
        assert torch.equal(p, before[name]) == (name not in update.tensors)
    target = adapted(before)[0]
    shape = torch.Size((2, before[target + W].shape[0]))
    drawn = initial_a(SEED, 1, 0, shape).T * 3**0.5
    assert torch.equal(before[target + B], drawn)
    wide = initial_a(SEED, 0, 0, torch.Size((8, 5000))) * 3**0.5
    torch.testing.assert_close(wide @ wide.T, torch.eye(8), rtol=0, atol=0.06)


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
@pytest.mark.parametrize("options", [OPTIONS, RANDOM], ids=["gradient", "random"])
def test_a_detached_model_computes_what_the_replica_did(
    make: Any, options: FedSBOptions, tmp_path: Path
) -> None:
    base: PreTrainedModel = make()
    model = copy.deepcopy(base)
    if isinstance(model, GPT2LMHeadModel):
        options = replace(options, targets=("c_attn", "mlp.c_proj"))
    federation = federate(model, options=options)
    for _ in range(3):
        federation.round()
    trained = logits(model)
    assert not torch.allclose(trained, logits(base), atol=1e-3)
    federation.method.scope.detach(model, tmp_path / "adapter")
    assert weights(model).keys() == weights(base).keys()
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=1e-5)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(loaded), trained)


def test_replicas_and_snapshots_are_equal_bit_for_bit(tmp_path: Path) -> None:
    one, two, three = (federate(tiny_model()) for _ in range(3))
    for _ in range(2):
        two.worker.deliver(encode(one.round().update))
        assert same(weights(one.model), weights(two.model))
    one.worker.replica.save_snapshot(tmp_path / "snapshot")
    replica = Replica(three.model, three.method)
    replica.load_snapshot(tmp_path / "snapshot")
    assert same(weights(one.model), weights(three.model))


def test_a_base_of_8_bits_has_nearly_the_same_gradients() -> None:
    sent = []
    for memory in (MemoryTable(), MemoryTable(frozen="int8")):
        model = tiny_model()
        federation = federate(model, clients=1, local=adamw(0.03), memory=memory)
        before = weights(model)
        sent.append(reports(federation)[0])
        assert same(weights(model), before)
    exact, coarse = (
        torch.cat([report.tensors[name].reshape(-1) for name in sorted(report.tensors)])
        for report in sent
    )
    assert not torch.equal(exact, coarse)
    assert torch.nn.functional.cosine_similarity(exact, coarse, dim=0) > 0.99


def test_a_report_of_the_other_kind_of_round_is_refused() -> None:
    federation = federate(tiny_model(), clients=1)
    gradient, plan = reports(federation)[0], federation.method.plans(0, None)[0]
    federation.round()
    core, later = reports(federation)[0], federation.method.plans(1, federation.last)[0]
    accepted: list[tuple[Report, Plan]] = [(gradient, plan), (core, later)]
    for report, asked in accepted:
        federation.method.check(report, asked)
    for report, asked in [(gradient, later), (core, plan)]:
        with pytest.raises(MessageError):
            federation.method.check(report, asked)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 0}, "method: rank is at least 1."),
        ({"warmup": 0}, "method: warmup is at least 1."),
        ({"targets": []}, "method: targets names at least one linear layer."),
        (
            {"alpha": 8},
            "there is no key 'method.alpha'; did you mean 'data.alpha' "
            "(method has rank, targets, start, warmup).",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        method_options("fed-sb", **options)
    assert str(caught.value) == reason


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.start: .*'gradient' or 'random'.*\.$"):
        method_options("fed-sb", start="svd")


def test_a_rank_beyond_a_matrix_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"^method\.rank: 3 is more than the 2 rows or columns of model\.layers\.0\.self_attn"
        r"\.k_proj; lower it, or leave that layer out of method\.targets\.$",
    ):
        fed_sb.scope(SEED, replace(OPTIONS, rank=3)).attach(tiny_model())
