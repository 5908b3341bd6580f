"""How examples are worded and become ids: Alpaca's wording, or the tokenizer's chat template.

A wording gives the ids of a prompt, and of the answer with whatever a model has to say before and
after it. The chat template is the tokenizer's own, and what is trained is what it makes of the
whole conversation.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from functools import cached_property
from string import ascii_letters
from typing import Literal, Protocol

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from fullfed.data.records import Example
from fullfed.errors import UserError

Template = Literal["alpaca", "chat", "auto"]
Pair = tuple[list[int], list[int]]  # the ids of a prompt, and of what is learned after it

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


class Wording(Protocol):
    """One way to word examples.

    Attributes:
        opening: what every answer's ids begin with before the answer, as decoding shows it.
    """

    opening: str

    def pairs(self, examples: Sequence[Example]) -> list[Pair]:
        """The ids of each example's prompt and of its answer, the end that stops it included."""


def choose_wording(
    template: Template, tokenizer: PreTrainedTokenizerBase, today: date | None = None
) -> Wording:
    """The wording of a template's name; "auto" is the chat template where there is one.

    Args:
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
    if has_chat and template != "alpaca":
        return ChatWording(tokenizer, today)
    return AlpacaWording(tokenizer)


class AlpacaWording:
    """Stanford Alpaca's, with and without input, and a line break after "### Response:".

    A sequence starts with the tokenizer's begin-of-sequence token where it has one, whether or not
    the tokenizer adds it by itself, and ends with its end-of-sequence token. Prompt and answer are
    tokenised apart, and text that spells a special token stays text.
    """

    opening = ""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._end = end_of_sequence(tokenizer)
        begin = tokenizer.bos_token_id
        self._begin = [] if begin is None else [begin]

    @staticmethod
    def prompt(example: Example) -> str:
        """All that comes before the answer."""
        wording = _ALPACA_WITH_INPUT if example.input else _ALPACA
        return wording.format(instruction=example.instruction, input=example.input)

    def pairs(self, examples: Sequence[Example]) -> list[Pair]:
        """See Wording."""
        prompts = encode([self.prompt(e) for e in examples], self._tokenizer, special=False)
        answers = encode([e.output for e in examples], self._tokenizer, special=False)
        return [
            ([*self._begin, *prompt], [*answer, self._end])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


_QUESTION, _ANSWER = "Xquestion", "Xanswer"  # stand for texts while a template is looked at


class ChatWording:
    """The tokenizer's chat template: one user message, the instruction, a blank line, the input.

    Prompt and answer together are the ids of ``apply_chat_template`` for the conversation of both
    messages, up to and including the token that ends the answer; a line break that a template
    writes after it says nothing to a model that has stopped. A template that ends answers with no
    token of its own has the tokenizer's end-of-sequence token after them. The prompt is what the
    conversation shares with the template's generation prompt, so whatever the template puts
    between that and an answer (an empty block of thoughts) is learned.

    What a message spells stays text: it never becomes one of the tokenizer's special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: date | None = None) -> None:
        self._tokenizer = tokenizer
        self._today = today
        asked, whole = self._render(_QUESTION), self._render(_QUESTION, _ANSWER)
        shared = _shared(asked, whole)
        if _QUESTION not in whole[:shared] or _ANSWER not in whole[shared:]:
            raise self._failure("it does not give a question and, after it, the answer")
        opening, _, closing = whole[shared:].rpartition(_ANSWER)
        (opened,) = encode([opening], tokenizer, special=True)
        self.opening = _decode(opened, tokenizer).strip()
        self._tail = len(asked) - asked.rfind(_QUESTION) - len(_QUESTION)
        self._end = self._ending_token(closing)
        self._stop = end_of_sequence(tokenizer) if self._end is None else self._end

    def pairs(self, examples: Sequence[Example]) -> list[Pair]:
        """See Wording."""
        texts = [(request(e), e.output) for e in examples]
        odd = [self._spells_special(*pair) for pair in texts]
        plain = iter(self._encoded([t for t, o in zip(texts, odd, strict=True) if not o]))
        guarded = iter(self._guarded([t for t, o in zip(texts, odd, strict=True) if o]))
        return [next(guarded if o else plain) for o in odd]

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Of messages without special tokens in them: simply what the template makes of them."""
        asked = [self._render(question) for question, _ in texts]
        whole = [self._render(*pair) for pair in texts]
        return self._split(asked, whole, lambda texts: encode(texts, self._tokenizer, True))

    def _guarded(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Of messages that spell special tokens, by a tokenizer that knows these by other names."""
        if not texts:
            return []
        guard = _Guard(self._tokenizer, "".join(text for pair in texts for text in pair))
        hidden = [(guard.hide(question), guard.hide(answer)) for question, answer in texts]
        asked = [guard.name(self._render(question)) for question, _ in hidden]
        whole = [guard.name(self._render(*pair)) for pair in hidden]
        return self._split(asked, whole, guard.encode)

    def _split(
        self,
        asked: Sequence[str],
        whole: Sequence[str],
        encoded: Callable[[Sequence[str]], list[list[int]]],
    ) -> list[Pair]:
        pairs = []
        for prompt, full, text, both in zip(
            encoded(asked), encoded(whole), asked, whole, strict=True
        ):
            if not both.startswith(text[: len(text) - self._tail]):
                raise self._failure("it writes a question differently once it is answered")
            shared = _shared(prompt, full)
            pairs.append((full[:shared], self._ended(full[shared:])))
        return pairs

    def _ended(self, answer: list[int]) -> list[int]:
        if self._end in answer:
            return answer[: len(answer) - answer[::-1].index(self._end)]
        return [*answer, self._stop]

    def _ending_token(self, closing: str) -> int | None:
        """The id that ends an answer, in what the template writes after one."""
        added = self._tokenizer.added_tokens_decoder
        (ids,) = encode([closing], self._tokenizer, special=True)
        known = [i for i in ids if i in added]
        return next((i for i in known if added[i].special), next(iter(known), None))

    def _spells_special(self, *texts: str) -> bool:
        return any(self._special.search(text) for text in texts)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return _spelling(special_tokens(self._tokenizer))

    @cached_property
    def _template(self) -> str:
        template = self._tokenizer.get_chat_template()
        return template if self._today is None else on_date(template, self._today)

    def _render(self, question: str, answer: str | None = None) -> str:
        messages = [{"role": "user", "content": question}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=answer is None,
            )
        except Exception as error:  # a template is a program, and may fail in any way
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise self._failure(lines[0].rstrip(".")) from error
        assert isinstance(rendered, str)  # one conversation, not tokenised
        return rendered

    def _failure(self, reason: str) -> UserError:
        return UserError(
            f"The chat template of {self._tokenizer.name_or_path} cannot be used ({reason}); "
            'mend it, or set data.template = "alpaca".'
        )


def request(example: Example) -> str:
    """What the user of a conversation says."""
    return f"{example.instruction}\n\n{example.input}" if example.input else example.instruction


def on_date(template: str, today: date) -> str:
    """A chat template for which it is always the given day, at midnight.

    What a template calls for the time, ``strftime_now(format)``, is defined by a macro before it.
    """
    if "strftime_now" not in template:
        return template
    written = [f"%{flag}{letter}" for flag in ("", "-") for letter in ascii_letters]
    codes = {code: today.strftime(code) for code in written if code in template}
    percent = "\ue000"  # keeps "%%d" from being taken for "%d"
    steps = [("%%", percent), *codes.items(), (percent, "%")]
    filters = "".join(f" | replace({json.dumps(a)}, {json.dumps(b)})" for a, b in steps)
    # The line break is the macro's own: it is removed with it.
    macro = f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro %}}"
    return f"{macro}\n{template}"


class _Guard:
    """Tokenises a template's special tokens as what they are, and the same spelled in text as text.

    While a template is rendered, private characters stand for what messages spell. In the
    rendered text the special tokens are the template's own; other private characters take their
    places, by which a copy of the tokenizer knows them.

    Args:
        texts: of all the messages; no character of theirs is used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: str) -> None:
        self._failure = UserError(
            f"A text of the data spells a special token of {tokenizer.name_or_path}, which this "
            "tokenizer cannot take as text; take it out of the data."
        )
        if not tokenizer.is_fast:
            raise self._failure
        found = special_tokens(tokenizer)
        self._pattern = _spelling(found)
        count, used = len(found), set(texts)
        private = range(0xF0000, 0x10FFFD - 2 * count, 2 * count)
        start = next(n for n in private if not used & {chr(n + i) for i in range(2 * count)})
        self._hidden = {token: chr(start + i) for i, token in enumerate(found)}
        self._named = {token: chr(start + count + i) for i, token in enumerate(found)}
        self._shown = str.maketrans({mark: token for token, mark in self._hidden.items()})
        self._copy = copy.deepcopy(tokenizer)
        self._copy.add_tokens(
            [
                AddedToken(
                    self._named[token],
                    lstrip=added.lstrip,
                    rstrip=added.rstrip,
                    normalized=added.normalized,
                    special=False,
                )
                for token, (_, added) in found.items()
            ]
        )
        self._special = {number for number, _ in found.values()}
        own = self._copy.get_added_vocab()
        self._ids = {own[self._named[token]]: number for token, (number, _) in found.items()}

    def hide(self, text: str) -> str:
        """A message with private characters for what it spells."""
        return self._pattern.sub(lambda match: self._hidden[match[0]], text)

    def name(self, rendered: str) -> str:
        """Rendered text with the template's tokens named, and the messages as they were."""
        named = self._pattern.sub(lambda match: self._named[match[0]], rendered)
        return named.translate(self._shown)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that ``name`` gave.

        Raises:
            UserError: the tokenizer makes a special token of ordinary text.
        """
        encoded = encode(texts, self._copy, special=False)
        if any(self._special & set(ids) for ids in encoded):
            raise self._failure
        return [[self._ids.get(i, i) for i in ids] for ids in encoded]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[int, AddedToken]]:
    """What controls a tokenizer's model, by its spelling: the id, and how it is matched."""
    added = tokenizer.added_tokens_decoder
    return {token.content: (number, token) for number, token in added.items() if token.special}


def _spelling(tokens: dict[str, tuple[int, AddedToken]]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's end-of-sequence token.

    Raises:
        UserError: it has none.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path} has no end-of-sequence token; "
            "set eos_token in its tokenizer_config.json."
        )
    return int(end)


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool
) -> list[list[int]]:
    """Ids of each text with nothing added; `special`: whether "</s>" and the like are tokens."""
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=not special,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return encoded


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How long the common beginning is."""
    length = min(len(one), len(other))
    return next((n for n in range(length) if one[n] != other[n]), length)
