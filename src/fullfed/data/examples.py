"""One sample of a dataset, whatever file it was read from: messages, some of them learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

TEXT = "text"  # the role of a text that no template words


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: "system", "user", "assistant", "tool", or ``TEXT``.
        content: what is said.
        learned: whether a model is trained to say it.
        context: what a user's request is about, where the data have it apart. Chat templates get
            both, with a blank line between; Alpaca's has a place of its own for it.
        more: what else a chat template is given of the message: tool calls, names, thoughts.
    """

    role: str
    content: str
    learned: bool = False
    context: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The content with its context."""
        return f"{self.content}\n\n{self.context}" if self.context else self.content

    @property
    def blank(self) -> bool:
        """Whether nothing is said, and nothing called."""
        return not self.content.strip() and not self.more

    def templated(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.text, **self.more}


@dataclass(frozen=True, slots=True)
class Example:
    """One sample.

    Attributes:
        messages: at least one of them is learned; or one message, a text.
        references: every accepted answer to what comes before the last learned message; empty
            for a text.
        rejected: of a preference, the answer that is liked less; it takes the place of the
            learned messages.
        tools: what an assistant may call, as chat templates take it.
        task: the name of the task, "" where the source has none.
        category: the kind of task, "" where the source has none.
        owner: whose it is, by what ``data.partition`` names; "" where that needs no owner.
        place: the file and the line, for messages.
    """

    messages: tuple[Turn, ...]
    references: tuple[str, ...] = ()
    rejected: tuple[Turn, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    task: str = ""
    category: str = ""
    owner: str = ""
    place: str = field(default="", compare=False)

    @classmethod
    def single(
        cls,
        instruction: str,
        input: str,
        output: str,
        references: Sequence[str] | None = None,
        task: str = "",
        category: str = "",
    ) -> Example:
        """One request and its answer.

        Args:
            input: what to do it to; "" where the instruction says it all.
            references: every accepted answer; the output alone if None.
        """
        messages = (
            Turn("user", instruction, context=input),
            Turn("assistant", output, learned=True),
        )
        accepted = (output,) if references is None else tuple(references)
        return cls(messages, accepted, task=task, category=category)

    @property
    def instruction(self) -> str:
        """The first request, without its context; "" where there is none."""
        return next((m.content for m in self.messages if m.role == "user"), "")

    @property
    def input(self) -> str:
        """The context of the first request."""
        return next((m.context for m in self.messages if m.role == "user"), "")

    @property
    def output(self) -> str:
        """What is learned last."""
        return self.messages[self.last_learned].content

    @property
    def is_text(self) -> bool:
        """Whether it is a text, which no template words."""
        return self.messages[0].role == TEXT

    @property
    def last_learned(self) -> int:
        """The number of the last learned message."""
        return max(i for i, message in enumerate(self.messages) if message.learned)

    @property
    def empty(self) -> bool:
        """Whether it teaches nothing but to say nothing."""
        return all(message.blank for message in self.messages if message.learned)

    def last_only(self) -> Example:
        """The same, of which only the last answer is learned."""
        last = self.last_learned
        kept = (replace(m, learned=i == last) for i, m in enumerate(self.messages))
        return replace(self, messages=tuple(kept))
