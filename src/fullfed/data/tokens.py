"""From examples to token ids: worded by a template, shortened where they must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import accumulate
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fullfed.data.examples import Example
from fullfed.data.wording import TextWording, choose_wording, with_template
from fullfed.data.words import Worded, Wording


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedExample:
    """A conversation, or a text, as one sequence.

    Attributes:
        ids: int32, shape (length,); the last is the token that ends what is learned, but for a
            piece of a long text.
        learned: bool, shape (length,); of each id, whether it is. The first never is: nothing
            comes before it that could predict it.
        references: every accepted last answer, for evaluation; training needs none.
        opening: what a chat template puts before every answer, as decoding shows it: learned, but
            no part of the answer.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    references: tuple[str, ...] = ()
    opening: str = ""

    @classmethod
    def pair(
        cls,
        ids: NDArray[np.int32],
        prompt_length: int,
        references: tuple[str, ...] = (),
        opening: str = "",
    ) -> TokenizedExample:
        """A prompt of so many ids, at least one, and an answer: all that comes after it."""
        return cls(ids, np.arange(len(ids)) >= prompt_length, references, opening)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_length(self) -> int:
        """How many ids come before the last answer, at least one."""
        return int(np.flatnonzero(~self.learned)[-1]) + 1

    @property
    def learned_tokens(self) -> int:
        """How many ids are learned."""
        return int(self.learned.sum())


@dataclass(frozen=True)
class Tokenized:
    """The examples that fit, and how many had to be changed or left out.

    Attributes:
        examples: the kept ones, in order; a long text is several.
        shortened: how many of them lost earlier turns, or a part of their prompt.
        dropped: how many were left out because their answer alone does not fit.
        empty: how many of the kept ones have answers of nothing but white space.
        origins: for each of the kept ones, which of the examples it was made of.
    """

    examples: tuple[TokenizedExample, ...]
    shortened: int
    dropped: int
    empty: int = 0
    origins: tuple[int, ...] = ()


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_length: int,
    today: date | None = None,
    answers: Literal["all", "last"] = "all",
) -> Tokenized:
    """Tokenises examples to at most `max_length` ids each, worded as `wording.py` has it.

    The last answer is kept whole, with the token that ends it. A conversation too long loses its
    oldest turns, a question with what follows it at a time. A prompt that is still too long loses
    its middle: the beginning says what the task is, the end asks for the answer. An example whose
    answer leaves no room for the template's closing words is dropped. A text too long becomes
    several pieces.

    Args:
        template: as for ``choose_wording``.
        today: what a chat template that writes the date is told; None for the clock's.
        answers: which of a conversation's are learned.

    Raises:
        UserError: the template cannot be used, or the tokenizer has no token that ends an answer.
    """
    texts = [example for example in examples if example.is_text]
    talks = learned([example for example in examples if not example.is_text], answers)
    pieces = iter(_pieces(texts, tokenizer, max_length) if texts else [])
    wording = choose_wording(template, tokenizer, today) if talks else None
    fitted = _Fitting(wording, max_length).fit(talks) if wording else []
    shortened, remaining = sum(cut for _, cut in fitted), iter(fitted)
    kept: list[TokenizedExample] = []
    origins: list[int] = []
    dropped = empty = 0
    for number, example in enumerate(examples):
        if example.is_text:
            parts = next(pieces)
            kept += parts
            origins += [number] * len(parts)
            continue
        worded, _ = next(remaining)
        if worded is None:
            dropped += 1
            continue
        empty += example.empty
        assert wording is not None
        kept.append(_tokenized(worded, example.references, wording.opening))
        origins.append(number)
    return Tokenized(tuple(kept), shortened, dropped, empty, tuple(origins))


def learned(examples: Sequence[Example], answers: Literal["all", "last"]) -> list[Example]:
    """The examples, of which all answers are learned, or the last alone."""
    return [e.last_only() for e in examples] if answers == "last" else list(examples)


def _tokenized(
    worded: Worded, references: tuple[str, ...] = (), opening: str = ""
) -> TokenizedExample:
    mask = np.array(worded.learned, dtype=np.bool_)
    mask[0] = False
    return TokenizedExample(np.array(worded.ids, dtype=np.int32), mask, references, opening)


def _pieces(
    texts: Sequence[Example], tokenizer: PreTrainedTokenizerBase, most: int
) -> Iterator[list[TokenizedExample]]:
    """Each text's sequences, of at most ``most`` ids."""
    for ids, learned in TextWording(tokenizer).words(texts):
        starts = range(0, len(ids), most)
        pieces = [Worded(ids[i : i + most], learned[i : i + most]) for i in starts]
        yield [_tokenized(piece) for piece in pieces if len(piece.ids) > 1]


class _Fitting:
    """Makes conversations fit.

    Args:
        most: ids of a sequence.
    """

    def __init__(self, wording: Wording, most: int) -> None:
        self._wording, self._most = wording, most
        self._closing = _closing_length(wording)

    def fit(self, examples: Sequence[Example]) -> list[tuple[Worded | None, bool]]:
        """Each as it fits, None where it cannot, and whether it lost something."""
        worded = self._wording.words(examples)
        cut = [False] * len(worded)
        due = {i: example for i, example in enumerate(examples) if self._too_long(worded[i])}
        while due := {i: e for i, one in due.items() if (e := _without_oldest(one)) is not None}:
            for i, shorter in zip(due, self._wording.words(list(due.values())), strict=True):
                worded[i], cut[i] = shorter, True
            due = {i: example for i, example in due.items() if self._too_long(worded[i])}
        return [self._shortened(*one) for one in zip(worded, cut, strict=True)]

    def _too_long(self, worded: Worded) -> bool:
        return len(worded.ids) > self._most

    def _shortened(self, worded: Worded, cut: bool) -> tuple[Worded | None, bool]:
        prompt = worded.prompt_length
        room = self._most - (len(worded.ids) - prompt)
        if not prompt or room < min(self._closing, prompt):
            return None, False
        kept = [*shorten(list(range(prompt)), room, self._closing), *range(prompt, len(worded.ids))]
        ids, learned = [worded.ids[i] for i in kept], [worded.learned[i] for i in kept]
        return Worded(ids, learned), cut or prompt > room


def _without_oldest(example: Example) -> Example | None:
    """The conversation without its oldest question and what follows it; system messages stay.

    None where there is one question only.
    """
    before = example.last_learned
    asked = [n for n, m in enumerate(example.messages[:before]) if m.role == "user"]
    if len(asked) < 2:
        return None
    told = [message for message in example.messages[: asked[0]] if message.role == "system"]
    return replace(example, messages=(*told, *example.messages[asked[1] :]))


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
    probes = wording.words([Example.single(text, "", "b") for text in ("a", "7")])
    one, other = (probe.ids[: probe.prompt_length] for probe in probes)
    length = 1
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return length


@dataclass(frozen=True)
class Untokenized:
    """What tokenised samples were made of, for trainers that read it.

    Attributes:
        examples: for each tokenised sample, what it was made of.
        tokenizer: the model's; its chat template is the one that words them, if any.
    """

    examples: Sequence[Example]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(
        cls,
        tokenized: Tokenized,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        answers: Literal["all", "last"],
    ) -> Untokenized:
        """What ``tokenize`` has made of these examples, which the other arguments are of."""
        taught = learned(examples, answers)
        return cls([taught[i] for i in tokenized.origins], with_template(tokenizer, template))


class PackedExamples(Sequence[TokenizedExample]):
    """Examples for training, one after another in one array; what is not ids is left out.

    They take 2 bytes and a bit a token (4 where the vocabulary has more than 65,536), and 4 an
    example.

    Attributes:
        source: what they were made of, where a trainer reads it.
    """

    def __init__(
        self, examples: Sequence[TokenizedExample], source: Untokenized | None = None
    ) -> None:
        self.source = source
        ids = np.concatenate([example.ids for example in examples] or [np.empty(0, np.int32)])
        small = len(ids) == 0 or int(ids.max()) < 2**16
        self._ids = ids.astype(np.uint16) if small else ids
        learned = [example.learned for example in examples] or [np.empty(0, np.bool_)]
        self._learned = np.packbits(np.concatenate(learned))
        ends = accumulate((len(example) for example in examples), initial=0)
        self._ends = np.fromiter(ends, dtype=np.uint32)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...

    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start, end = int(self._ends[number]), int(self._ends[number + 1])
        bits = np.unpackbits(self._learned[start // 8 : -(-end // 8)])
        learned = bits[start % 8 : start % 8 + end - start].astype(np.bool_)
        return TokenizedExample(self._ids[start:end].astype(np.int32), learned)


def subset(examples: Sequence[TokenizedExample], indices: Sequence[int]) -> PackedExamples:
    """Some of the examples, with what they were made of if that is known."""
    source = examples.source if isinstance(examples, PackedExamples) else None
    if source is not None:
        source = replace(source, examples=[source.examples[i] for i in indices])
    return PackedExamples([examples[i] for i in indices], source)
