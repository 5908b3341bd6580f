"""How far a piece of work has come, for people who wait for it.

Whoever does the work tells an ``Observer`` where it stands: when it begins, and after each part.
An observer must cost next to nothing, because it is told often. ``NowAndThen`` is one: it makes a
line of text of what it hears, but only when one is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fullfed.units import seconds_text

QUIET_SECONDS = 15.0  # in which a log or a file need not hear of a piece of work

Work = Literal["train", "evaluate", "answer", "aggregate", "curvature"]

_PARTS: dict[Work, str] = {
    "train": "step",
    "evaluate": "evaluating, sample",
    "answer": "evaluating, answer",
    "aggregate": "aggregating, report",
    "curvature": "measuring the base model's curvature, text",
}


@dataclass(frozen=True)
class Headway:
    """Where a piece of work stands.

    Attributes:
        work: a visit's training, the loss of the evaluation set, answers to its prompts, the
            aggregation of reports, or the base model's curvature before the first round.
        done, of: its parts: steps, samples, answers, reports or texts. It begins with 0 done.
        tokens: that have gone through the model since it began, without padding.
        loss: returns the mean loss so far, nats per answer token; None where there is none yet.
            Calling it waits for a GPU to come as far.
        client: whose visit it is; None for the server's work.
    """

    work: Work
    done: int
    of: int
    tokens: int = 0
    loss: Callable[[], float] | None = None
    client: int | None = None


Observer = Callable[[Headway], None]


def unobserved(headway: Headway) -> None:
    """The observer of work that nobody watches."""


class NowAndThen:
    """An observer that says where a piece of work stands, but not too often.

    Args:
        say: is given what was observed, and that as text.
        every: seconds from anything said to the next line, at the least.
        clock: seconds from some point on.
    """

    def __init__(
        self,
        say: Callable[[Headway, str], None],
        every: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._every, self._clock = say, every, clock
        self._said = clock()
        self._began: dict[int | None, float] = {}  # whose work began when

    def said(self) -> None:
        """Something else was said just now."""
        self._said = self._clock()

    def __call__(self, headway: Headway) -> None:
        now = self._clock()
        if headway.done == 0 and headway.tokens == 0:
            self._began[headway.client] = now
        if now - self._said >= self._every:
            began = self._began.get(headway.client, now)
            self._say(headway, describe_headway(headway, now - began))
            self.said()


def describe_headway(headway: Headway, seconds: float) -> str:
    """Parts done, loss, tokens a second, and the time left if it goes on like that.

    Args:
        seconds: since the piece of work began.
    """
    done, of = headway.done, headway.of
    text = f"{_PARTS[headway.work]} {done}/{of}"
    if headway.loss is not None:
        text += f"  loss {headway.loss():.4f}"
    if headway.tokens and seconds > 0:
        text += f"  {headway.tokens / seconds:,.0f} tokens/s"
    if 0 < done < of and seconds > 0:
        text += f"  {seconds_text(seconds / done * (of - done))} left"
    return text
