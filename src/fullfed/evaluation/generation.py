"""Greedy answers, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fullfed.data.tokens import TokenizedExample, shorten
from fullfed.errors import UserError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every module has its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenizedExample],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """The model's greedy answer to each example's prompt, in order, as stripped text.

    An answer ends before the tokenizer's end-of-sequence token or any that the model's own
    generation settings name; nothing else of those settings is used. Prompts are padded on the
    left, so a batch gives what each prompt alone would (ties and rounding in half precision
    aside). A prompt that leaves less than `max_new_tokens` of the model's context loses its
    middle, so that the room for an answer never tells how long the reference is.

    Raises:
        UserError: `max_new_tokens` leaves no room for a prompt.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_new_tokens >= context:
        raise UserError(
            f"max_new_tokens is {max_new_tokens} and the model's context {context}; "
            "ask for fewer new tokens."
        )
    prompts = [example.ids[: example.prompt_length].tolist() for example in examples]
    if context is not None:
        prompts = [shorten(prompt, context - max_new_tokens) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers = [""] * len(prompts)
    with evaluating(model), _greedy(model, tokenizer, max_new_tokens):
        for start in range(0, len(by_length), batch_size):
            chosen = by_length[start : start + batch_size]
            texts = _generate_batch(model, tokenizer, [prompts[i] for i in chosen])
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
    return answers


def _generate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]]
) -> list[str]:
    length = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    attention_mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(  # type: ignore[operator]
        input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device)
    )
    return [
        text.strip()
        for text in tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    ]


@contextmanager
def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> Iterator[None]:
    """Plain greedy decoding instead of the model's own settings, which are put back afterwards.

    Replacing the whole object is the one way to be rid of a repetition penalty and its like:
    `generate` fills in from it whatever its caller leaves open.
    """
    own = model.generation_config
    ends = own.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    ends.discard(None)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.eos_token_id,  # what follows an end; skipped in decoding
    )
    try:
        yield
    finally:
        model.generation_config = own
