"""What a kind of task is, and the material that kinds are made of: word lists and scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fullfed.quickstart.draw import Draw
from fullfed.quickstart.words import COLORS, NAMES, NOUNS, PAST_VERBS, PLACES, WORDS


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


def of_each(answer: Callable[[str], str], vocabulary: Sequence[str]) -> Callable[[Draw], Case]:
    """Makes cases whose input is one to three words and whose output is the answer to each.

    Not always one word, or the words of the test inputs would be missing from the training split.
    """

    def make(draw: Draw) -> Case:
        words = draw.several(vocabulary, draw.between(1, 3))
        return Case(listed(words), listed([answer(word) for word in words]))

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
