"""Adapters are PEFT's in all but their randomness, and change nothing before they are trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from fullfed.config import MemoryTable
from fullfed.errors import UserError
from fullfed.methods.scopes import A, Adapters, B, LoraOptions, W, adapted, initial_a
from methods.lora import OPTIONS, SEED, federate, reports, three_clients
from methods.tiny import VOCABULARY, flat, method_options, same, sgd, tiny_model, weights

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])
GPT2 = LoraOptions(rank=2, alpha=3.0, targets=("c_attn", "mlp.c_proj"))


def tiny_gpt2() -> GPT2LMHeadModel:
    """Its layers are Conv1D: they keep their matrices as (in, out)."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=4,
        n_layer=2,
        n_head=2,
        n_positions=16,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()  # type: ignore[no-any-return]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
def test_untrained_adapters_change_nothing_and_draw_from_no_global_generator(make: object) -> None:
    model: PreTrainedModel = make()  # type: ignore[operator]
    before, torchs, numpys = logits(model), torch.random.get_rng_state(), np.random.get_state()
    scope = Adapters(SEED, GPT2 if isinstance(model, GPT2LMHeadModel) else OPTIONS)
    scope.attach(model)
    assert torch.equal(logits(model), before)
    assert torch.equal(torch.random.get_rng_state(), torchs)
    assert str(np.random.get_state()) == str(numpys)


def test_only_the_factors_have_gradients() -> None:
    model = tiny_model()
    scope = Adapters(SEED, OPTIONS)
    scope.attach(model)
    with_gradient = [name for name, p in model.named_parameters() if p.requires_grad]
    layer = "model.layers.0.self_attn."
    expected = [layer + target + factor for target in ("q_proj", "v_proj") for factor in (A, B)]
    assert with_gradient == list(scope.trained(model)) == expected


def test_the_first_factor_is_uniform_as_pefts() -> None:
    """Kaiming's bound with a = sqrt(5), which nn.Linear and PEFT use: 1 / sqrt(in)."""
    a = initial_a(SEED, 0, 0, torch.Size((40, 100)))
    assert a.dtype == torch.float32
    assert a.abs().max() <= 0.1
    assert a.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert a.mean().abs() < 0.003
    for other in (initial_a(SEED, 1, 0, a.shape), initial_a(SEED, 0, 1, a.shape)):
        assert torch.corrcoef(torch.stack([a.reshape(-1), other.reshape(-1)]))[0, 1].abs() < 0.05


def test_two_replicas_draw_the_same() -> None:
    one, two, other = tiny_model(), tiny_model(), tiny_model()
    Adapters(SEED, OPTIONS).attach(one)
    torch.manual_seed(99)
    Adapters(SEED, OPTIONS).attach(two)
    Adapters(SEED + 1, OPTIONS).attach(other)
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_of_32_bits_whatever_the_model_is(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    Adapters(SEED, OPTIONS).attach(model)
    parameters = dict(model.named_parameters())
    for target in adapted(parameters):
        assert parameters[target + W].dtype == dtype
        assert parameters[target + A].dtype == parameters[target + B].dtype == torch.float32
    assert logits(model).dtype == dtype


@pytest.mark.parametrize("name", ["fedit", "ffa-lora", "flora"])
@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
def test_a_detached_model_computes_what_the_replica_did(
    name: str, make: object, tmp_path: Path
) -> None:
    base: PreTrainedModel = make()  # type: ignore[operator]
    model = copy.deepcopy(base)
    options = GPT2 if isinstance(model, GPT2LMHeadModel) else OPTIONS
    federation = federate(name, model, three_clients(), options)
    for _ in range(2):
        federation.round()
    trained = logits(model)
    assert not torch.allclose(trained, logits(base), atol=1e-3)
    federation.method.scope.detach(model, tmp_path / "adapter")
    assert weights(model).keys() == weights(base).keys()
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=1e-5)
    if name == "flora":
        assert not (tmp_path / "adapter").exists()
    else:
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        assert torch.equal(logits(loaded), trained)


@pytest.mark.parametrize("name", ["fedit", "ffa-lora", "flora"])
def test_a_visit_on_a_base_of_8_bits_trains_the_factors(name: str) -> None:
    """As the published FedIT does; the base comes back exact."""
    sent = []
    for memory in (MemoryTable(), MemoryTable(frozen="int8")):
        model = tiny_model()
        federation = federate(name, model, three_clients()[:1], local=sgd(0.3), memory=memory)
        before = weights(model)
        sent.append(reports(federation)[0])
        assert same(weights(model), before)
    exact, coarse = (flat(dict(sorted(report.tensors.items()))) for report in sent)
    assert sent[0].loss != sent[1].loss
    assert torch.nn.functional.cosine_similarity(exact, coarse, dim=0) > 0.99


LINEAR = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


@pytest.mark.parametrize("target", ["query", "proj", "embed_tokens", "self_attn", "norm"])
def test_a_target_that_is_no_linear_layer_is_refused(target: str) -> None:
    options = LoraOptions(targets=("q_proj", target))
    with pytest.raises(
        UserError,
        match=rf"^method\.targets: '{target}' is no linear layer of this model that could have an "
        rf"adapter; choose among {LINEAR}, lm_head\.$",
    ):
        Adapters(SEED, options).attach(tiny_model())


def test_an_output_layer_that_is_the_embedding_too_has_no_adapter() -> None:
    """Merging one would change the embedding."""
    model = tiny_model()
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(UserError, match=rf"'lm_head' is no .* choose among {LINEAR}\.$"):
        Adapters(SEED, LoraOptions(targets=("lm_head",))).attach(model)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 0}, "method: rank is at least 1."),
        ({"alpha": 0.0}, "method: alpha is a positive number."),
        ({"alpha": float("inf")}, "method: alpha is a positive number."),
        ({"targets": []}, "method: targets names at least one linear layer."),
        (
            {"dropout": 0.05},
            "there is no key 'method.dropout'; remove it or correct its spelling "
            "(method has rank, alpha, targets).",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], reason: str) -> None:
    for name in ("fedit", "flora", "ffa-lora"):
        with pytest.raises(UserError) as caught:
            method_options(name, **options)
        assert str(caught.value) == reason.replace("{name}", name)


def test_without_peft_one_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'pip install "fullfed\[lora\]"\.$'):
        Adapters(SEED, OPTIONS).attach(tiny_model())


def test_adapters_larger_than_the_model_are_refused_before_there_is_memory_for_them() -> None:
    """A server may have chosen the rank."""
    model = tiny_model()
    options = method_options("fedit", rank=10**12)
    with pytest.raises(UserError, match=r"^method.rank: adapters of rank 1000000000000 would have"):
        Adapters(0, options).attach(model)
    assert not any("lora" in name for name, _ in model.named_parameters())
