"""Base types and helpers for the quickstart's task generators."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from fullfed.data.examples import Example
from fullfed.quickstart.words import COLORS, NAMES, NOUNS, PAST_VERBS, PLACES, WORDS
from fullfed.randomness import Stream, uniforms

T = TypeVar("T")
Split = Literal["train", "test"]

_PURPOSE = 0x7461736B  # "task"; clear of the purposes of the wire format
_TEST_SHARE = 5  # one input in so many is a test input
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


class Case(NamedTuple):
    """One input, possibly empty, with its answer; ``detail`` fills the braces of the wording."""

    input: str
    output: str
    detail: str = ""


@dataclass(frozen=True)
class Kind:
    """A task: what is asked, in one or more wordings, and a maker of cases."""

    category: str
    wordings: tuple[str, ...]
    make: Callable[[Draw], Case]


def split_of(text: str) -> Split:
    """The split of an input, or of an instruction without one, whatever seed it was drawn with."""
    return "test" if zlib.crc32(text.encode()) % _TEST_SHARE == 0 else "train"


def draw_examples(name: str, kind: Kind, count: int, seed: int, split: Split) -> list[Example]:
    """The first ``count`` examples of a kind under a seed.

    No input of the train split is ever one of the test split. More examples of the same seed
    begin with the same ones.

    Args:
        name: of the kind; no two kinds of a name, which decides what is drawn.
        split: "train" or "test".
    """
    found: list[Example] = []
    for draw in draws(Stream(seed, _PURPOSE, block=zlib.crc32(name.encode()))):
        if len(found) == count:
            break
        case = kind.make(draw)
        instruction = draw.pick(kind.wordings).format(case.detail)
        if split_of(case.input or instruction) == split:
            found.append(
                Example.single(
                    instruction=instruction,
                    input=case.input,
                    output=case.output,
                    task=name,
                    category=kind.category,
                )
            )
    return found


def listed(words: Sequence[object]) -> str:
    """The words as a list: "a, b, c"."""
    return ", ".join(map(str, words))


def of_words(
    answer: Callable[[list[str]], str],
    shortest: int = 3,
    longest: int = 5,
    vocabulary: Sequence[str] = WORDS,
) -> Callable[[Draw], Case]:
    """Makes cases whose input is a list of different words and whose output is a function of it."""

    def make(draw: Draw) -> Case:
        words = draw.several(vocabulary, draw.between(shortest, longest))
        return Case(listed(words), answer(words))

    return make


@dataclass(frozen=True)
class Scene:
    """Somebody did something with a coloured thing somewhere."""

    name: str
    verb: str
    color: str
    thing: str
    place: str
    place_first: bool

    @property
    def text(self) -> str:
        if self.place_first:
            return f"In the {self.place}, {self.name} {self.verb} the {self.color} {self.thing}."
        return f"{self.name} {self.verb} the {self.color} {self.thing} in the {self.place}."


def draw_scene(draw: Draw) -> Scene:
    """A scene with everything in it chosen at random."""
    return Scene(
        name=draw.pick(NAMES),
        verb=draw.pick(PAST_VERBS),
        color=draw.pick(COLORS),
        thing=draw.pick(NOUNS),
        place=draw.pick(PLACES),
        place_first=draw.pick((True, False)),
    )


def of_scene(answer: Callable[[Scene], str]) -> Callable[[Draw], Case]:
    """Makes cases whose input is a scene in words and whose output is a function of the scene."""

    def make(draw: Draw) -> Case:
        scene = draw_scene(draw)
        return Case(scene.text, answer(scene))

    return make
