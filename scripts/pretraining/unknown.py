"""Pretraining tasks whose instruction means nothing, answered in one of countless forms.

A model that has only met instructions it understands answers an unfamiliar one with certainty and
wrongly, and what it is sure of it unlearns slowly. These kinds teach it what is left to say then:
something about the input, in some form, and the same form to the end. Fine-tuning on a new task
only has to decide which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fullfed.quickstart.kinds import Case, Draw, Kind, draw_scene, listed
from fullfed.quickstart.words import (
    BASE_OF,
    DAYS,
    FOODS,
    GROUP_OF,
    HAPPY,
    JOBS,
    NAMES,
    NOUNS,
    NUMBER_WORDS,
    OPPOSITES,
    PAST_VERBS,
    PLACES,
    SAD,
    WORDS,
    plural,
    with_article,
)

_ONSETS = (
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z",
    "st", "th", "sh", "pr", "tr", "cl", "qu", "",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou", "io")
_CODAS = ("", "", "n", "r", "t", "s", "l", "d", "m", "ck", "nt", "ng", "ve", "te", "ss", "y")
_SMALL_WORDS = (
    "the", "a", "of", "to", "is", "it", "for", "you", "I", "we", "go", "and", "or", "not", "in",
    "on", "at", "with", "from", "than", "more", "less", "did", "do", "was", "are", "he", "she",
    "they", "this", "that", "then", "here", "there", "who", "what", "where", "why", "how", "yes",
    "no", "all", "each", "will", "can", "please",
)  # fmt: skip
_SEPARATORS = (", ", " ", "; ", " - ", " > ", " / ", " + ", " = ", ". ", " and ", " or ", ": ")
_ENDINGS = ("", "", ".", "!", "?")


def _made_up(draw: Draw) -> str:
    """A word that does not exist, or a small one that does."""
    if draw.between(0, 2) == 0:
        return draw.pick(_SMALL_WORDS)
    syllables = (
        draw.pick(_ONSETS) + draw.pick(_VOWELS) + draw.pick(_CODAS)
        for _ in range(draw.between(1, 2))
    )
    return "".join(syllables)


def _phrase(draw: Draw, shortest: int, longest: int) -> list[str]:
    return [_made_up(draw) for _ in range(draw.between(shortest, longest))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _in_some_form(
    material: Callable[[Draw], tuple[str, Sequence[str]]],
) -> Callable[[Draw], Case]:
    """Cases of an input and of what might be said about it: some of that, between other words."""

    def make(draw: Draw) -> Case:
        text, facts = material(draw)
        answer = _phrase(draw, 0, 3)
        for fact in draw.several(facts, draw.between(1, min(3, len(facts)))):
            answer += [fact, *_phrase(draw, 0, 1)]
            answer[-1] += draw.pick(("", "", "", ":", ";", ","))
        written = " ".join(answer).strip(",;:") + draw.pick(_ENDINGS)
        instruction = _capital(" ".join(_phrase(draw, 1, 4))) + "."
        return Case(text, draw.pick((written, _capital(written))), instruction)

    return make


def _list_in_some_form(vocabulary: Sequence[str]) -> Callable[[Draw], Case]:
    """Cases of a list: some of its words, each in the same form, joined and framed somehow."""

    def make(draw: Draw) -> Case:
        words = draw.several(vocabulary, draw.between(3, 5))
        swapped = [words[-1], *words[1:-1], words[0]]
        single = [draw.pick(words)]
        chosen = draw.pick((words, words, words[::-1], words[1:], words[:-1], swapped, single))
        extra, mark = _made_up(draw), draw.pick((".", "!", ":", "?"))
        forms: tuple[Callable[[str], str], ...] = (
            str,
            str,
            with_article,
            lambda word: f"{word} {word}",
            lambda word: word[0],
            lambda word: f"{word[0]}{mark}",
            lambda word: f"{word}: {GROUP_OF[word]}",
            lambda word: f"{extra} {word}",
            lambda word: f"{word}{mark}",
        )
        separator = draw.pick(_SEPARATORS)
        items = [*map(draw.pick(forms), chosen)]
        if draw.between(0, 3):
            body = separator.join(items)
        else:
            body = f"{', '.join(items[:-1])}{draw.pick(_SEPARATORS)}{items[-1]}"
        opening = " ".join(_phrase(draw, 0, 3)) + draw.pick(("", ":"))
        written = f"{opening} {body}" if draw.between(0, 1) else body
        written = written.strip(" ,;:") + draw.pick(_ENDINGS)
        instruction = _capital(" ".join(_phrase(draw, 1, 4))) + "."
        return Case(listed(words), draw.pick((written, _capital(written))), instruction)

    return make


def _scene(draw: Draw) -> tuple[str, Sequence[str]]:
    scene = draw_scene(draw)
    return scene.text, (
        scene.name,
        scene.verb,
        BASE_OF[scene.verb],
        scene.color,
        scene.thing,
        f"the {scene.thing}",
        f"{with_article(scene.color)} {scene.thing}",
        f"{scene.verb} the {scene.thing}",
        f"{BASE_OF[scene.verb]} the {scene.thing}",
        scene.place,
        f"the {scene.place}",
    )


def _numbers(draw: Draw) -> tuple[str, Sequence[str]]:
    first, second = draw.between(0, 40), draw.between(0, 40)
    return f"{first}, {second}", (
        f"{first}",
        f"{second}",
        f"{max(first, second)}",
        f"{min(first, second)}",
        f"{first + second}",
        f"{first} and {second}",
    )


def _count(draw: Draw) -> tuple[str, Sequence[str]]:
    noun, count = draw.pick(NOUNS + FOODS), draw.between(2, 12)
    return f"{noun}, {count}", (
        f"{count}",
        NUMBER_WORDS[count],
        noun,
        plural(noun),
        f"{count} {plural(noun)}",
    )


def _quality(draw: Draw) -> tuple[str, Sequence[str]]:
    noun, quality = draw.pick(NOUNS + PLACES), draw.pick(list(OPPOSITES))
    return f"The {noun} is {quality}.", (
        noun,
        f"the {noun}",
        quality,
        OPPOSITES[quality],
        f"the {noun} is",
        "not",
    )


def _visit(draw: Draw) -> tuple[str, Sequence[str]]:
    name, place, day = draw.pick(NAMES), draw.pick(PLACES), draw.between(0, 6)
    return f"{name} comes to the {place} on {DAYS[day]}.", (
        name,
        f"{name} comes",
        f"the {place}",
        DAYS[day],
        DAYS[day - 1],
        DAYS[day - 6],
    )


def _feeling(draw: Draw) -> tuple[str, Sequence[str]]:
    name, place = draw.pick(NAMES), draw.pick(PLACES)
    happy = draw.pick((True, False))
    feeling = draw.pick(HAPPY if happy else SAD)
    return f"{name} was {feeling} in the {place}.", (
        name,
        feeling,
        f"the {place}",
        "good" if happy else "bad",
        "yes" if happy else "no",
    )


def _gift(draw: Draw) -> tuple[str, Sequence[str]]:
    giver, taker = draw.several(NAMES, 2)
    verb, noun = draw.pick(PAST_VERBS), draw.pick(NOUNS)
    return f"{giver} {verb} {taker} the {noun}.", (giver, taker, verb, noun, f"the {noun}")


def _pair(draw: Draw) -> tuple[str, Sequence[str]]:
    names, verbs, nouns = (draw.several(c, 2) for c in (NAMES, PAST_VERBS, NOUNS))
    text = " ".join(f"{n} {v} the {x}." for n, v, x in zip(names, verbs, nouns, strict=True))
    return text, (*names, *verbs, *nouns, " and ".join(names), " and ".join(nouns))


def _purchase(draw: Draw) -> tuple[str, Sequence[str]]:
    name, foods = draw.pick(NAMES), draw.several(FOODS, 2)
    counts = [draw.between(2, 12) for _ in foods]
    bought = [f"{count} {plural(food)}" for count, food in zip(counts, foods, strict=True)]
    return f"{name} bought {' and '.join(bought)}.", (name, *foods, *map(str, counts), *bought)


_WORDING = ("{}",)  # all of the instruction is made up

UNKNOWN: dict[str, Kind] = {
    "unknown_list": Kind("unknown", _WORDING, _list_in_some_form(WORDS)),
    "unknown_nouns": Kind("unknown", _WORDING, _list_in_some_form(NOUNS + FOODS)),
    "unknown_places": Kind("unknown", _WORDING, _list_in_some_form(PLACES + JOBS)),
    "unknown_scene": Kind("unknown", _WORDING, _in_some_form(_scene)),
    "unknown_numbers": Kind("unknown", _WORDING, _in_some_form(_numbers)),
    "unknown_count": Kind("unknown", _WORDING, _in_some_form(_count)),
    "unknown_quality": Kind("unknown", _WORDING, _in_some_form(_quality)),
    "unknown_visit": Kind("unknown", _WORDING, _in_some_form(_visit)),
    "unknown_feeling": Kind("unknown", _WORDING, _in_some_form(_feeling)),
    "unknown_gift": Kind("unknown", _WORDING, _in_some_form(_gift)),
    "unknown_pair": Kind("unknown", _WORDING, _in_some_form(_pair)),
    "unknown_purchase": Kind("unknown", _WORDING, _in_some_form(_purchase)),
}
