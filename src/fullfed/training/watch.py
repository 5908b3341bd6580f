"""Tells an observer how a visit's training gets on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from fullfed.data.batches import Batch
from fullfed.headway import Headway, Observer

OnStep = Callable[[Tensor | float | None], None]


def unwatched(loss: Tensor | float | None) -> None:
    """Nobody is told of steps."""


class VisitWatch:
    """Counts a visit's steps and tokens, and keeps its mean loss where the losses are.

    Args:
        observer: told at once that the visit begins, and after each step.
        client: whose visit it is.
        steps: how many there will be.
    """

    def __init__(self, observer: Observer, client: int, steps: int) -> None:
        self._observer, self._client, self._steps = observer, client, steps
        self._done = self._tokens = 0
        self._sum: Tensor | float = 0.0
        observer(Headway("train", 0, steps, client=client))

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, which are on the CPU, as they are asked for."""
        for batch in batches:
            self._tokens += int(batch.attention_mask.sum())
            yield batch

    def step(self, loss: Tensor | float | None) -> None:
        """A step was taken; its loss, detached, may still be on its way on a GPU. None is of a loss
        that nobody is to see."""
        self._done += 1
        mean = None
        if loss is not None:
            self._sum = self._sum + loss
            total, done = self._sum, self._done
            mean = lambda: float(total) / done  # noqa: E731
        self._observer(Headway("train", self._done, self._steps, self._tokens, mean, self._client))
