"""How examples become ids: by the words of a template, or as the texts that they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fullfed.data.examples import Example


class Worded(NamedTuple):
    """One example's ids.

    Attributes:
        ids: of all of it, with the token that ends the last answer.
        learned: of each id, whether it is.
    """

    ids: list[int]
    learned: list[bool]

    @property
    def prompt_length(self) -> int:
        """How many ids come before the last answer."""
        backwards = self.learned[::-1]
        return len(self.ids) - (backwards.index(False) if False in backwards else len(backwards))


class Wording(Protocol):
    """One way to word conversations.

    Attributes:
        opening: what every answer's ids begin with before the answer, as decoding shows it.
    """

    opening: str

    def words(self, examples: Sequence[Example]) -> list[Worded]:
        """The ids of each example, the end that stops the last answer included.

        Raises:
            UserError: an example cannot be worded so.
        """
