from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from fullfed.data.sources import read_examples
from fullfed.data.tokens import TokenizedExample, tokenize
from fullfed.errors import UserError
from fullfed.evaluation.generation import evaluating, generate


def plain_greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    example: TokenizedExample,
    max_new_tokens: int,
) -> str:
    """The definition: one prompt, no cache, the likeliest token again and again."""
    ids = example.ids[: example.prompt_length].tolist()
    new: list[int] = []
    with evaluating(model):
        while len(new) < max_new_tokens:
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_give_what_each_prompt_alone_gives(
    kind: str,
    batch_size: int,
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    model: PreTrainedModel = tiny_llama
    if kind == "gpt2":  # learned positions: padding on the left must not shift them
        config = GPT2Config(
            vocab_size=258, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5
        )
        model = GPT2LMHeadModel(config)
    expected = [plain_greedy(model, byte_tokenizer, e, 12) for e in random_examples]
    assert len(set(expected)) > 5
    assert generate(model, byte_tokenizer, random_examples, 12, batch_size) == expected


def test_an_answer_stops_at_any_end_token(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    (long,) = generate(tiny_llama, byte_tokenizer, random_examples[:1], 12, 1)
    first = byte_tokenizer(long)["input_ids"][0]
    tiny_llama.generation_config.eos_token_id = [257, first]
    (short,) = generate(tiny_llama, byte_tokenizer, random_examples[:1], 12, 1)
    assert len(short) < len(long)
    tiny_llama.generation_config.eos_token_id = None
    assert generate(tiny_llama, byte_tokenizer, random_examples[:1], 12, 1) == [long]


def test_an_answer_stops_where_those_that_were_trained_on_end(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    """A template's end of turn, which neither the tokenizer nor the model's settings name."""
    one = random_examples[0]
    (long,) = generate(tiny_llama, byte_tokenizer, [one], 12, 1)
    third = byte_tokenizer(long[2])["input_ids"][0]
    assert long[2] not in long[:2]
    ended = replace(one, ids=np.array([*one.ids[:-1], third], dtype=np.int32))
    assert generate(tiny_llama, byte_tokenizer, [ended], 12, 1) == [long[:2].strip()]


def test_what_a_template_puts_before_answers_is_no_part_of_them(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    one = random_examples[0]
    (long,) = generate(tiny_llama, byte_tokenizer, [one], 12, 1)
    opened = [replace(one, opening=long[:2]), replace(one, opening="other")]
    assert generate(tiny_llama, byte_tokenizer, opened, 12, 2) == [long[2:].strip(), long]


def test_the_models_own_settings_are_neither_used_nor_lost(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    plain = generate(tiny_llama, byte_tokenizer, random_examples, 12, 4)
    own = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=5, eos_token_id=257
    )
    tiny_llama.generation_config = own
    assert generate(tiny_llama, byte_tokenizer, random_examples, 12, 4) == plain
    assert tiny_llama.generation_config is own
    assert tiny_llama.training


def test_the_context_is_never_left(
    tiny_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A prompt as long as the context gives up its middle, whatever the reference's length."""
    lengths: list[int] = []
    tiny_llama.model.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(int(inputs["position_ids"].max()) + 1),
        with_kwargs=True,
    )
    ids = np.arange(64, dtype=np.int32)
    for prompt_length in (63, 50):
        example = TokenizedExample.pair(ids, prompt_length)
        tiny_llama.generation_config.eos_token_id = None
        generate(tiny_llama, byte_tokenizer, [example], 20, 1)
    assert max(lengths) <= 64
    with pytest.raises(UserError, match="max_new_tokens is 64 and the model's context 64"):
        generate(tiny_llama, byte_tokenizer, [example], 64, 1)


def test_a_model_without_a_pad_token_keeps_its_vocabulary(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    assert byte_tokenizer.pad_token_id is None
    assert tiny_llama.config.pad_token_id is None
    assert len(generate(tiny_llama, byte_tokenizer, random_examples, 4, 8)) == 11
    assert tiny_llama.get_input_embeddings().weight.shape[0] == 258


@pytest.mark.parametrize("name", ["stories260k", "base-4m"])
def test_real_models_answer_alike_alone_and_in_batches(shared: Path, name: str) -> None:
    path = shared / "models" / name
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    examples = read_examples("data/natural-instructions-test.jsonl.gz", root=shared)[::50]
    tokenized = tokenize(examples, tokenizer, "auto", 512).examples
    alone = generate(model, tokenizer, tokenized, 16, 1)
    assert generate(model, tokenizer, tokenized, 16, 8) == alone
    assert sum(bool(answer) for answer in alone) > 5
