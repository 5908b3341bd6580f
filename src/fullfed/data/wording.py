"""Which words an example is put in: Alpaca's, a chat template's, or none where it is a text."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from datetime import date

from transformers import PreTrainedTokenizerBase

from fullfed.config_data import TEMPLATES
from fullfed.data.chat import ChatWording
from fullfed.data.examples import Example, Turn
from fullfed.data.tokenizer import encode, end_of_sequence
from fullfed.data.words import Worded, Wording
from fullfed.errors import UserError

_PREFACE = "Below is an instruction that describes a task"
_WITH_INPUT = f"{_PREFACE}, paired with an input that provides further context."
_WRITE = "Write a response that appropriately completes the request."
_REQUEST = re.compile(
    rf"{re.escape(f'{_WITH_INPUT} {_WRITE}')}\s*"
    r"### Instruction:\s*(.*?)\s*### Input:\s*((?:(?!### (?:Response|Instruction):).)*?)\s*"
    r"### Response:\s*\Z",
    re.DOTALL,
)


def choose_wording(
    template: str, tokenizer: PreTrainedTokenizerBase, today: date | None = None
) -> Wording:
    """The wording of a template's name; "auto" is the chat template where there is one.

    Args:
        template: "auto", "chat", "alpaca", or a chat template in Jinja.
        today: what a chat template that writes the date is told; None for the clock's.

    Raises:
        UserError: "chat" was asked for and the tokenizer has no chat template; the chat template
            fails, or leaves out what it is given; no token ends an answer.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template; "
            'choose the template "alpaca" or "auto".'
        )
    if template not in TEMPLATES:
        return ChatWording(tokenizer, today, template)
    if has_chat and template != "alpaca":
        return ChatWording(tokenizer, today)
    return AlpacaWording(tokenizer)


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose chat template is the one that words its samples, None if
    Alpaca's words do; ``template`` as for ``choose_wording``."""
    own = copy.copy(tokenizer)
    if template == "alpaca":
        own.chat_template = None
    elif template not in TEMPLATES:
        own.chat_template = template
    return own


class AlpacaWording:
    """Stanford Alpaca's, with and without input, and a line break after "### Response:".

    A system message takes the place of its first lines; each further question begins with
    "### Instruction:". A sequence starts with the tokenizer's begin-of-sequence token where it has
    one, whether or not the tokenizer adds it by itself, and every answer ends with its
    end-of-sequence token. Questions and answers are tokenised apart, and text that spells a special
    token stays text.
    """

    opening = ""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._end = end_of_sequence(tokenizer)
        begin = tokenizer.bos_token_id
        self._begin = [] if begin is None else [begin]

    @staticmethod
    def prompt(example: Example, end: str = "") -> str:
        """All that comes before the last answer; ``end`` comes after each before it."""
        *before, (_, _) = _parts(example)
        return "".join(text if learned is None else f"{text}{end}" for text, learned in before)

    def words(self, examples: Sequence[Example]) -> list[Worded]:
        """See Wording."""
        parts = [_parts(example) for example in examples]
        texts = iter(encode([t for one in parts for t, _ in one], self._tokenizer, special=False))
        return [self._worded([(next(texts), role) for _, role in one]) for one in parts]

    def _worded(self, parts: Sequence[tuple[list[int], bool | None]]) -> Worded:
        ids, learned = list(self._begin), [False] * len(self._begin)
        for part, is_learned in parts:
            own = part if is_learned is None else [*part, self._end]
            ids += own
            learned += [bool(is_learned)] * len(own)
        return Worded(ids, learned)


def read_request(prompt: str) -> tuple[str, str] | None:
    """The instruction and the input of a single request that Alpaca's template has worded; None
    where it has no input, or another template has worded it.

    Args:
        prompt: as a tokenizer decodes it: special tokens may stand before it, and line breaks may
            have become spaces, or be gone.
    """
    found = _REQUEST.search(prompt)
    return None if found is None else (found[1], found[2])


def _parts(example: Example) -> list[tuple[str, bool | None]]:
    """The texts of questions and answers in turn; of an answer whether it is learned, else None."""
    parts, asked = list[tuple[str, bool | None]](), ""
    for message in example.messages[: example.last_learned + 1]:
        if message.role == "assistant":
            parts += [(f"{asked}### Response:\n", None), (message.content, message.learned)]
            asked = ""
        elif message.role == "system":
            asked += f"{message.content}\n\n"
        elif message.role == "user":
            asked += _question(message, not parts and not asked)
        else:
            raise UserError(
                f"{example.place or 'A conversation'}: Alpaca's template has no words for a "
                f"{message.role} message; take a model with a chat template, or leave it out."
            )
        if message.more or example.tools:
            raise UserError(
                f"{example.place or 'A conversation'}: Alpaca's template has no words for tools "
                "or names; take a model with a chat template, or leave them out."
            )
    return parts


def _question(message: Turn, first: bool) -> str:
    preface = f"{_WITH_INPUT if message.context else f'{_PREFACE}.'} {_WRITE}\n\n"
    input_ = f"### Input:\n{message.context}\n\n" if message.context else ""
    return f"{preface if first else ''}### Instruction:\n{message.content}\n\n{input_}"


class TextWording:
    """Texts as they are, between the tokens that begin and end a sequence of the tokenizer's.

    Text that spells a special token stays text.
    """

    opening = ""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._end = end_of_sequence(tokenizer)
        added: list[int] = tokenizer("")["input_ids"]
        self._begin = [number for number in added if number == tokenizer.bos_token_id]

    def words(self, examples: Sequence[Example]) -> list[Worded]:
        """See Wording."""
        turns = [turn for example in examples for turn in example.messages]
        encoded = iter(encode([turn.content for turn in turns], self._tokenizer, special=False))
        return [
            self._worded([(next(encoded), turn.learned) for turn in example.messages])
            for example in examples
        ]

    def _worded(self, parts: Sequence[tuple[list[int], bool]]) -> Worded:
        ids, learned = list(self._begin), [False] * len(self._begin)
        for own, is_learned in parts:
            ids += own
            learned += [is_learned] * len(own)
        return Worded([*ids, self._end], [*learned, True])
