"""Prefixes of keys and values are PEFT's prefix tuning, bit by bit, whatever the family."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import MistralConfig, MistralForCausalLM

from fullfed.data.batches import collate
from fullfed.errors import UserError
from fullfed.evaluation.generation import evaluating
from fullfed.methods.prefixes import PrefixesAlone, initial_prefix
from fullfed.training.loss import answer_loss
from fullfed.training.memory import checkpointed
from methods.tiny import VOCABULARY, same, samples, tiny_model, weights
from training.architectures import CAUSAL, make

SCOPE = PrefixesAlone(5, 3)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])


def prefixed(name: str, times: float = 50.0) -> tuple[Any, Any]:
    """A model, and the same with prefixes that are not small."""
    base = make(name)
    model = copy.deepcopy(base)
    SCOPE.attach(model)
    with torch.no_grad():
        for prefix in SCOPE.trained(model).values():
            prefix.mul_(times)
    return base, model


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_what_is_saved_is_pefts_prefix_tuning_and_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    base, model = prefixed(name)
    with_cache, expected = model(input_ids=IDS).logits, model(input_ids=IDS, use_cache=False).logits
    assert not torch.allclose(expected, base(input_ids=IDS).logits, atol=1e-2)
    SCOPE.detach(model, tmp_path)
    assert same(weights(model), weights(base))
    assert torch.equal(model(input_ids=IDS).logits, base(input_ids=IDS).logits)
    assert model.config.max_position_embeddings == base.config.max_position_embeddings
    adapted = PeftModel.from_pretrained(base, tmp_path).eval()
    found = adapted(input_ids=IDS).logits
    torch.testing.assert_close(expected, found, rtol=0, atol=1e-5)
    torch.testing.assert_close(with_cache, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_answers_are_those_of_greedy_steps_by_hand_with_padding(name: str) -> None:
    """A batch padded on the left, with a cache, beside each prompt alone without one."""
    _, model = prefixed(name)
    short = torch.cat([torch.zeros(1, 2, dtype=torch.int64), IDS[1:, :4]], dim=1)
    batch = torch.cat([IDS[:1], short])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    with evaluating(model):
        written = model.generate(
            input_ids=batch, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=10
        )
        for ids, answer in ((IDS[:1], written[0, 6:]), (IDS[1:, :4], written[1, 6:])):
            whole = ids
            for token in answer.tolist():
                best = int(model(input_ids=whole, use_cache=False).logits[0, -1].argmax())
                assert token == best
                if token == 10:
                    break
                whole = torch.cat([whole, torch.tensor([[token]])], dim=1)


def gradients(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    answer_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in SCOPE.trained(model).items()}  # type: ignore[union-attr]


def test_every_layer_gets_a_gradient_and_checkpointing_gives_the_same() -> None:
    _, model = prefixed("llama")
    batch = collate(samples(3))
    plain = gradients(model, batch)
    assert len(plain) == 3
    assert all(float(g.abs().max()) > 1e-6 for g in plain.values())
    with checkpointed(model):
        again = gradients(model, batch)
    assert same(plain, again)


def test_the_first_numbers_are_drawn_as_published() -> None:
    drawn = initial_prefix(5, 1, (2, 50, 40))
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.03)
    assert abs(float(drawn.mean())) < 0.001
    assert not torch.equal(drawn, initial_prefix(5, 2, (2, 50, 40)))
    model = make("llama")
    torch.manual_seed(9)
    SCOPE.attach(model)
    shape = (2, 3, 4)
    layers = SCOPE.trained(model)
    assert list(layers) == [f"prefixes.layers.{n}" for n in range(3)]
    for number, layer in enumerate(layers.values()):
        assert torch.equal(layer, initial_prefix(5, number, shape))


def test_a_prefix_that_fills_the_context_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.prefix_tokens: 16 are not fewer than the 16"):
        PrefixesAlone(5, 16).attach(tiny_model())


def windowed() -> MistralForCausalLM:
    """Its layers look back four tokens."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return MistralForCausalLM(
        MistralConfig(vocab_size=VOCABULARY, sliding_window=4, **sizes, **heads)
    )


@pytest.mark.parametrize("model", [windowed, lambda: make("bert")], ids=["window", "encoder"])
def test_a_model_whose_layers_do_not_see_all_before_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match=r"^model\.path: prefixes need a causal model"):
        SCOPE.attach(model())
