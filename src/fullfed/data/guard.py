"""Messages that spell a template's special tokens, and are to stay text."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from fullfed.data.tokenizer import encode
from fullfed.errors import UserError


class Guard:
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
        self._pattern = spelling(found)
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

    def hide(self, value: Any) -> Any:
        """A message, or whatever it consists of, with private characters for what it spells."""
        return replaced(
            value, lambda text: self._pattern.sub(lambda match: self._hidden[match[0]], text)
        )

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


def spelling(tokens: dict[str, tuple[int, AddedToken]]) -> re.Pattern[str]:
    """What finds any of the tokens in a text, the longest first."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def replaced(value: Any, change: Callable[[str], str]) -> Any:
    """A value of lists, tables and texts, with every text changed, keys of tables too."""
    match value:
        case str(text):
            return change(text)
        case list() | tuple():
            return [replaced(one, change) for one in value]
        case dict():
            return {replaced(key, change): replaced(one, change) for key, one in value.items()}
        case _:
            return value


def texts_in(value: Any) -> list[str]:
    """Every text in a value of lists, tables and texts, keys of tables among them."""
    match value:
        case str(text):
            return [text]
        case list() | tuple():
            return [text for one in value for text in texts_in(one)]
        case dict():
            return [text for pair in value.items() for one in pair for text in texts_in(one)]
        case _:
            return []
