"""From examples to token ids: worded by a template, prompts shortened where they must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fullfed.data.records import Example
from fullfed.errors import UserError

Template = Literal["alpaca", "chat", "auto"]

_ALPACA_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
"""
_ALPACA = """\
Below is an instruction that describes a task. Write a response that appropriately completes \
the request.

### Instruction:
{instruction}

### Response:
"""


def choose_template(
    template: Template, tokenizer: PreTrainedTokenizerBase
) -> Literal["alpaca", "chat"]:
    """What "auto" means for this tokenizer: its chat template where it has one, else Alpaca.

    Raises:
        UserError: "chat" was asked for and the tokenizer has no chat template.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template; "
            'choose the template "alpaca" or "auto".'
        )
    return "chat" if has_chat and template != "alpaca" else "alpaca"


def render(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, str]:
    """The prompt and the answer, as text; special tokens are written out in chat prompts only.

    Alpaca is the wording of Stanford Alpaca, with and without input, and a line break after
    "### Response:". Chat is one user message: the instruction, a blank line and the input.
    """
    if choose_template(template, tokenizer) == "alpaca":
        wording = _ALPACA_WITH_INPUT if example.input else _ALPACA
        prompt = wording.format(instruction=example.instruction, input=example.input)
        return prompt, example.output
    request = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)  # one conversation, not tokenised
    return rendered, example.output


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


class PackedExamples(Sequence[TokenizedExample]):
    """Examples for training, one after another in one array; what is not ids is left out.

    They take 2 bytes a token (4 where the vocabulary has more than 65,536) and 8 an example.
    """

    def __init__(self, examples: Sequence[TokenizedExample]) -> None:
        ids = np.concatenate([example.ids for example in examples] or [np.empty(0, np.int32)])
        small = len(ids) == 0 or int(ids.max()) < 2**16
        self._ids = ids.astype(np.uint16) if small else ids
        ends = accumulate((len(example) for example in examples), initial=0)
        self._ends = np.fromiter(ends, dtype=np.uint32)
        prompts = (example.prompt_length for example in examples)
        self._prompts = np.fromiter(prompts, dtype=np.uint32)

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...

    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        ids = self._ids[self._ends[number] : self._ends[number + 1]]
        return TokenizedExample(ids.astype(np.int32), int(self._prompts[number]))
