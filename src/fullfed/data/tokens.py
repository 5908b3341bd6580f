"""From examples to token ids: worded by a template, prompts shortened where they must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import overload

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fullfed.data.records import Example
from fullfed.data.wording import Template, Wording, choose_wording


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedExample:
    """A prompt and its answer as one sequence.

    Attributes:
        ids: int32, shape (length,): the prompt, and what is learned: the answer and, as the last
            id, the token that ends it.
        prompt_length: how many ids come before what is learned, at least one.
        references: every accepted answer, for evaluation; training needs none.
        opening: what a chat template puts before every answer, as decoding shows it: learned, but
            no part of the answer.
    """

    ids: NDArray[np.int32]
    prompt_length: int
    references: tuple[str, ...] = ()
    opening: str = ""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Tokenized:
    """The examples that fit, and how many had to be changed or left out.

    Attributes:
        examples: the kept ones, in order.
        shortened: how many of them lost a part of their prompt.
        dropped: how many were left out because their answer alone does not fit.
        empty: how many of the kept ones have an answer of nothing but white space.
    """

    examples: tuple[TokenizedExample, ...]
    shortened: int
    dropped: int
    empty: int = 0


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    today: date | None = None,
) -> Tokenized:
    """Tokenises examples to at most `max_length` ids each, worded as `wording.py` has it.

    An answer is kept whole, with the token that ends it. A prompt too long for what is left loses
    its middle: the beginning says what the task is, the end asks for the answer. An example whose
    answer leaves no room for the template's closing words is dropped.

    Args:
        today: what a chat template that writes the date is told; None for the clock's.

    Raises:
        UserError: the template cannot be used, or the tokenizer has no token that ends an answer.
    """
    if not examples:
        return Tokenized((), 0, 0)
    wording = choose_wording(template, tokenizer, today)
    closing = _closing_length(wording)
    kept: list[TokenizedExample] = []
    shortened = dropped = empty = 0
    for example, (prompt, answer) in zip(examples, wording.pairs(examples), strict=True):
        room = max_length - len(answer)
        if not prompt or room < min(closing, len(prompt)):
            dropped += 1
            continue
        shortened += len(prompt) > room
        empty += not example.output.strip()
        prompt = shorten(prompt, room, closing)
        ids = np.array([*prompt, *answer], dtype=np.int32)
        kept.append(TokenizedExample(ids, len(prompt), example.references, wording.opening))
    return Tokenized(tuple(kept), shortened, dropped, empty)


def shorten(prompt: list[int], room: int, closing: int = 0) -> list[int]:
    """The prompt without its middle, so that `room` ids remain: half from each end.

    At least `closing` ids, if there is room for them, are kept of the end.
    """
    if len(prompt) <= room:
        return prompt
    tail = min(room, max(room - room // 2, closing))
    return prompt[: room - tail] + prompt[len(prompt) - tail :]


def _closing_length(wording: Wording) -> int:
    """How many ids every prompt of this wording ends with ("### Response:" and its like).

    At least one: something has to predict the answer's first token.
    """
    probes = [Example(text, "", "b", ("b",)) for text in ("a", "7")]
    (one, _), (other, _) = wording.pairs(probes)
    length = 1
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return length


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
