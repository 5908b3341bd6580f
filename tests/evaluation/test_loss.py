from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from fullfed.data.batches import collate
from fullfed.data.sources import read_examples
from fullfed.data.tokens import TokenizedExample
from fullfed.evaluation.evaluate import evaluate_loss, evaluating
from fullfed.training.loss import answer_logits


def plain_loss(model: PreTrainedModel, examples: list[TokenizedExample]) -> float:
    """The definition, one example at a time and with every logit."""
    total, tokens = 0.0, 0
    with evaluating(model):
        for example in examples:
            ids = torch.tensor(example.ids, dtype=torch.int64)
            logits = model(input_ids=ids[None]).logits[0, example.prompt_length - 1 : -1]
            answer = ids[example.prompt_length :]
            total += functional.cross_entropy(logits.float(), answer, reduction="sum").item()
            tokens += len(answer)
    return total / tokens


def test_the_loss_is_the_mean_over_answer_tokens(
    tiny_llama: LlamaForCausalLM, random_examples: list[TokenizedExample]
) -> None:
    expected = plain_loss(tiny_llama, random_examples)
    for batch_size in (1, 4, 100):
        assert evaluate_loss(tiny_llama, random_examples, batch_size) == pytest.approx(
            expected, rel=1e-5
        )


SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
CONFIGS = {
    "gpt2, positions learned": GPT2Config(
        vocab_size=258, n_embd=16, n_layer=2, n_head=2, bos_token_id=256, eos_token_id=257
    ),
    "gpt-neox, head of another name": GPTNeoXConfig(intermediate_size=32, **SIZES),
    "bloom, no positions": BloomConfig(vocab_size=258, hidden_size=16, n_layer=2, n_head=2),
    "cohere, logits scaled": CohereConfig(
        intermediate_size=32, num_key_value_heads=2, logit_scale=0.3, **SIZES
    ),
    "gemma2, logits capped, sliding window": Gemma2Config(
        intermediate_size=32,
        head_dim=8,
        num_key_value_heads=2,
        final_logit_softcapping=0.5,
        sliding_window=8,
        **SIZES,
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_architecture_gives_the_loss_of_its_full_logits(
    kind: str, random_examples: list[TokenizedExample]
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    assert evaluate_loss(model, random_examples, 4) == pytest.approx(
        plain_loss(model, random_examples), rel=1e-5
    )


def test_logits_are_computed_for_answers_only_and_carry_gradients(
    tiny_llama: LlamaForCausalLM, random_examples: list[TokenizedExample]
) -> None:
    batch = collate(random_examples)
    logits, targets = answer_logits(tiny_llama, batch)
    assert logits.shape == (batch.tokens, 258)
    assert targets.shape == (batch.tokens,)
    logits.sum().backward()
    assert tiny_llama.model.embed_tokens.weight.grad is not None
    full = tiny_llama(input_ids=batch.input_ids).logits
    assert full.shape[:2] == batch.input_ids.shape  # nothing of it stays behind in the model


def test_every_module_gets_its_own_mode_back(
    tiny_llama: LlamaForCausalLM, random_examples: list[TokenizedExample]
) -> None:
    tiny_llama.model.layers[0].eval()
    before = [module.training for module in tiny_llama.modules()]
    evaluate_loss(tiny_llama, random_examples, 4)
    assert [module.training for module in tiny_llama.modules()] == before
    with pytest.raises(RuntimeError), evaluating(tiny_llama):
        raise RuntimeError
    assert [module.training for module in tiny_llama.modules()] == before


def test_a_real_model_has_the_loss_its_card_states(shared: Path) -> None:
    """5.044 nats: plain prompts without <s>, the end token counted, on the test slice."""
    path = shared / "models" / "base-4m"
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenized = []
    for example in read_examples("data/natural-instructions-test.jsonl.gz", root=shared):
        prompt = tokenizer(f"{example.instruction}\n\nInput: {example.input}\n\nOutput:").input_ids
        answer = [*tokenizer(f" {example.output}").input_ids, tokenizer.eos_token_id]
        ids = np.array([*prompt, *answer], dtype=np.int32)
        tokenized.append(TokenizedExample.pair(ids, len(prompt)))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert evaluate_loss(model, tokenized, 8) == pytest.approx(5.044, abs=1e-3)
