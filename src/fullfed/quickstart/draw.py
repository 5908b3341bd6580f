"""The random choices behind one generated example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from fullfed.randomness import Stream, uniforms

T = TypeVar("T")

_CHOICES = 96  # random numbers set aside for an example, more than any kind of task uses
_BATCH = 128  # examples whose numbers are computed at once, since one call costs much more than one


class Draw:
    """A short, fixed supply of random numbers, spent by choosing."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(next(self._numbers) * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.between(0, len(choices) - 1)]

    def several(self, choices: Sequence[T], count: int) -> list[T]:
        """That many different choices, in random order."""
        rest = list(choices)
        return [rest.pop(self.between(0, len(rest) - 1)) for _ in range(count)]


def draws(stream: Stream) -> Iterator[Draw]:
    """Endless draws; the n-th depends on the stream and n alone."""
    start = 0
    while True:
        numbers = uniforms(stream, _BATCH * _CHOICES, start).reshape(_BATCH, _CHOICES)
        yield from (Draw(row) for row in numbers.tolist())
        start += _BATCH * _CHOICES
