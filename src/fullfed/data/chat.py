"""The tokenizer's chat template: what it makes of a whole conversation is what is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from string import ascii_letters
from typing import Any

from transformers import PreTrainedTokenizerBase

from fullfed.data.examples import Example
from fullfed.data.guard import Guard, special_tokens, spelling, texts_in
from fullfed.data.tokenizer import decode, encode, end_of_sequence, shared_length
from fullfed.data.words import Worded
from fullfed.errors import UserError

_QUESTION, _ANSWER = "Xquestion", "Xanswer"  # stand for texts while a template is looked at
Messages = list[dict[str, Any]]
Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class _Conversation:
    """A sample as a template takes it, up to the last message that is learned.

    Attributes:
        messages, tools: as chat templates take them.
        learned: the numbers of the learned messages, ascending.
        place: for errors.
    """

    messages: Messages
    tools: list[dict[str, Any]]
    learned: Sequence[int]
    place: str


class ChatWording:
    """The tokenizer's chat template, or another: a context follows its request after a blank line.

    A sequence is the ids of ``apply_chat_template`` for the whole conversation, up to and including
    the token that ends the last learned answer; a line break that a template writes after it says
    nothing to a model that has stopped. A template that ends answers with no token of its own has
    the tokenizer's end-of-sequence token after the last. What is learned of an answer begins where
    the conversation goes on after the template's generation prompt, so whatever the template puts
    between that and an answer (an empty block of thoughts) is learned, and ends with the token that
    ends the answer.

    What a message spells stays text: it never becomes one of the tokenizer's special tokens.

    Args:
        today: what a template that writes the date is told; None for the clock's.
        template: in Jinja; None for the tokenizer's own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        today: date | None = None,
        template: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        own = tokenizer.get_chat_template() if template is None else template
        self._name = f"of {tokenizer.name_or_path}" if template is None else "that data.template is"
        self._template = own if today is None else on_date(own, today)
        question, answer = (
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
        )
        asked, whole = self._render([question], asking=True), self._render([question, answer])
        shared = shared_length(asked, whole)
        if _QUESTION not in whole[:shared] or _ANSWER not in whole[shared:]:
            raise self._failure("it does not give a question and, after it, the answer")
        opening, _, closing = whole[shared:].rpartition(_ANSWER)
        (opened,) = encode([opening], tokenizer, special=True)
        self.opening = decode(opened, tokenizer).strip()
        self._tail = len(asked) - asked.rfind(_QUESTION) - len(_QUESTION)
        self._end = self._ending_token(closing)
        self._stop = end_of_sequence(tokenizer) if self._end is None else self._end

    def words(self, examples: Sequence[Example]) -> list[Worded]:
        """See Wording."""
        conversations = [_conversation(example) for example in examples]
        odd = [self._spells_special(one) for one in conversations]
        plain = iter(self._encoded([c for c, o in zip(conversations, odd, strict=True) if not o]))
        guarded = iter(self._guarded([c for c, o in zip(conversations, odd, strict=True) if o]))
        return [next(guarded if o else plain) for o in odd]

    def _encoded(self, conversations: Sequence[_Conversation]) -> list[Worded]:
        """Of messages without special tokens in them: simply what the template makes of them."""
        rendered = [self._rendered(one) for one in conversations]
        return self._split(rendered, lambda texts: encode(texts, self._tokenizer, True))

    def _guarded(self, conversations: Sequence[_Conversation]) -> list[Worded]:
        """Of messages that spell special tokens, by a tokenizer that knows these by other names."""
        if not conversations:
            return []
        said = [text for c in conversations for text in texts_in([c.messages, c.tools])]
        guard = Guard(self._tokenizer, "".join(said))
        hidden = [
            _Conversation(guard.hide(c.messages), guard.hide(c.tools), c.learned, c.place)
            for c in conversations
        ]
        rendered = [self._rendered(one) for one in hidden]
        return self._split([one.named(guard.name) for one in rendered], guard.encode)

    def _rendered(self, one: _Conversation) -> _Rendered:
        """The conversation, and for each learned message what the template asks for it with."""
        whole = self._render(one.messages, one)
        lost = next((name for name in _called(one) if name not in whole), None)
        if lost is not None:
            raise self._failure(f"it leaves out the tool {lost!r}", one)
        asked = [self._render(one.messages[:n], one, asking=True) for n in one.learned]
        for text in asked:
            if not whole.startswith(text[: len(text) - self._tail]):
                raise self._failure("it writes a question differently once it is answered", one)
        upto = [self._render(one.messages[: n + 1], one) for n in one.learned[:-1]]
        return _Rendered(whole, asked, upto)

    def _split(self, rendered: Sequence[_Rendered], encoded: Encode) -> list[Worded]:
        """The ids of rendered conversations, and which of them are learned."""
        flat = encoded([text for one in rendered for text in (one.whole, *one.asked, *one.upto)])
        parts, worded = iter(flat), list[Worded]()
        for one in rendered:
            ids = next(parts)
            asked = [next(parts) for _ in one.asked]
            worded.append(self._worded(ids, asked, [next(parts) for _ in one.upto]))
        return worded

    def _worded(
        self, ids: list[int], asked: Sequence[list[int]], upto: Sequence[list[int]]
    ) -> Worded:
        starts = [shared_length(prompt, ids) for prompt in asked]
        ends = [
            self._end_of(ids, start, most, text)
            for start, most, text in zip(starts[:-1], starts[1:], upto, strict=True)
        ]
        last = starts[-1]
        ids = [*ids[:last], *self._ended(ids[last:])]
        learned = [False] * len(ids)
        for start, end in zip(starts, [*ends, len(ids)], strict=True):
            learned[start:end] = [True] * (end - start)
        return Worded(ids, learned)

    def _end_of(self, ids: Sequence[int], start: int, most: int, upto: Sequence[int]) -> int:
        """Where an earlier answer ends, the token that ends it included.

        Args:
            start, most: the answer begins at the one, and the next at the other.
            upto: the conversation up to this answer, as it would be without more after it.
        """
        ended = next((n + 1 for n in range(start, most) if ids[n] == self._end), None)
        if ended is not None:
            return ended
        # Earlier answers end with another token than the last one, or with none.
        shared = shared_length(upto, ids)
        return shared + (ids[shared] in self._special_ids)

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

    def _spells_special(self, one: _Conversation) -> bool:
        return any(self._special.search(text) for text in texts_in([one.messages, one.tools]))

    @cached_property
    def _special_ids(self) -> set[int]:
        return {number for number, _ in special_tokens(self._tokenizer).values()}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return spelling(special_tokens(self._tokenizer))

    def _render(
        self, messages: Messages, of: _Conversation | None = None, asking: bool = False
    ) -> str:
        """What the template makes of messages.

        Args:
            of: the conversation that they are from.
            asking: whether an answer is asked for.
        """
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tools=of.tools if of and of.tools else None,  # type: ignore[arg-type]
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=asking,
            )
        except Exception as error:  # a template is a program, and may fail in any way
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise self._failure(lines[0].rstrip("."), of) from error
        assert isinstance(rendered, str)  # one conversation, not tokenised
        return rendered

    def _failure(self, reason: str, of: _Conversation | None = None) -> UserError:
        place = f"{of.place}: the" if of and of.place else "The"
        return UserError(
            f"{place} chat template {self._name} cannot be used ({reason}); "
            'mend it, or set data.template = "alpaca".'
        )


@dataclass(frozen=True)
class _Rendered:
    """What a template makes of a conversation.

    Attributes:
        whole: all of it.
        asked: for each learned message, what comes before it, with the generation prompt.
        upto: for each but the last, all up to and with it.
    """

    whole: str
    asked: Sequence[str]
    upto: Sequence[str]

    def named(self, name: Callable[[str], str]) -> _Rendered:
        """The same, every text changed."""
        return _Rendered(
            name(self.whole), [name(text) for text in self.asked], [name(t) for t in self.upto]
        )


def _conversation(example: Example) -> _Conversation:
    messages = example.messages[: example.last_learned + 1]
    learned = [n for n, message in enumerate(messages) if message.learned]
    return _Conversation(
        [message.templated() for message in messages],
        [dict(tool) for tool in example.tools],
        learned,
        example.place,
    )


def _called(one: _Conversation) -> Iterator[str]:
    """The names of the tools that a conversation offers and calls."""
    calls = (call for message in one.messages for call in message.get("tool_calls", ()))
    for tool in (*one.tools, *calls):
        match tool:
            case {"function": {"name": str(name)}}:
                yield name


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
