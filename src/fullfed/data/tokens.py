"""From examples to token ids: prompts are shortened where they must be, answers never."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fullfed.data.examples import Example
from fullfed.data.templates import Template, choose_template, render
from fullfed.errors import UserError


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedExample:
    """A prompt and its answer as one sequence.

    Attributes:
        ids: int32, shape (length,): prompt, answer, end-of-sequence token.
        prompt_length: how many ids come before the answer, at least one.
        references: every accepted answer, for evaluation; training needs none.
    """

    ids: NDArray[np.int32]
    prompt_length: int
    references: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Tokenized:
    """The examples that fit, and how many had to be changed or left out.

    Attributes:
        examples: the kept ones, in order.
        shortened: how many of them lost a part of their prompt.
        dropped: how many were left out because their answer alone does not fit.
    """

    examples: tuple[TokenizedExample, ...]
    shortened: int
    dropped: int


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
) -> Tokenized:
    """Tokenises examples to at most `max_length` ids each.

    An answer is kept whole, with the end-of-sequence token after it. A prompt too long for what
    is left loses its middle: the beginning says what the task is, the end asks for the answer.
    An example whose answer leaves no room for the template's closing words is dropped.

    The sequence starts with the tokenizer's begin-of-sequence token where it has one (in chat
    prompts: where the chat template writes it), whether or not the tokenizer adds it by itself.
    Prompt and answer are tokenised apart, so a model is trained on the very prompt ids it will
    be given at generation. Text that happens to spell a special token stays text in Alpaca
    prompts and in answers.

    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """
    if not examples:
        return Tokenized((), 0, 0)
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path} has no end-of-sequence token; "
            "set eos_token in its tokenizer_config.json."
        )
    template = choose_template(template, tokenizer)
    closing = _closing_length(tokenizer, template)
    prompts, answers = zip(*(render(e, template, tokenizer) for e in examples), strict=True)
    kept: list[TokenizedExample] = []
    shortened = dropped = 0
    for example, prompt, answer in zip(
        examples,
        _encode_prompts(prompts, tokenizer, template),
        _encode(answers, tokenizer, special=False),
        strict=True,
    ):
        room = max_length - len(answer) - 1
        if room < min(closing, len(prompt)):
            dropped += 1
            continue
        shortened += len(prompt) > room
        prompt = shorten(prompt, room, closing)
        ids = np.array([*prompt, *answer, end], dtype=np.int32)
        kept.append(TokenizedExample(ids, len(prompt), example.references))
    return Tokenized(tuple(kept), shortened, dropped)


def shorten(prompt: list[int], room: int, closing: int = 0) -> list[int]:
    """The prompt without its middle, so that `room` ids remain: half from each end.

    At least `closing` ids, if there is room for them, are kept of the end.
    """
    if len(prompt) <= room:
        return prompt
    tail = min(room, max(room - room // 2, closing))
    return prompt[: room - tail] + prompt[len(prompt) - tail :]


def _closing_length(tokenizer: PreTrainedTokenizerBase, template: Template) -> int:
    """How many ids every prompt of this template ends with ("### Response:" and its like).

    At least one: something has to predict the answer's first token.
    """
    probes = [render(Example(text, "", "", ("",)), template, tokenizer)[0] for text in ("a", "7")]
    one, other = _encode_prompts(probes, tokenizer, template)
    length = 1
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return length


def _encode_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[list[int]]:
    if template == "chat":
        return _encode(prompts, tokenizer, special=True)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [begin + ids for ids in _encode(prompts, tokenizer, special=False)]


def _encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool
) -> list[list[int]]:
    """Ids of each text with nothing added; `special`: whether "</s>" and the like are tokens."""
    encoded: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=not special,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return encoded
