"""Kinds of task on single words: their letters, forms and groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fullfed.quickstart.kinds import Case, Draw, Kind, listed
from fullfed.quickstart.words import (
    BASE_OF,
    COLORS,
    DAYS,
    GROUP_OF,
    NOUNS,
    NUMBER_WORDS,
    OPPOSITES,
    PAST_VERBS,
    VERBS,
    WORDS,
    plural,
    with_article,
)

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack",
    "lion": "roar", "snake": "hiss", "bird": "tweet", "pig": "oink", "horse": "neigh",
}  # fmt: skip

_DAY_AFTER = dict(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True))
_MONTH_AFTER = dict(zip(_MONTHS, _MONTHS[1:] + _MONTHS[:1], strict=True))


def of_each(answer: Callable[[str], str], vocabulary: Sequence[str]) -> Callable[[Draw], Case]:
    """Makes cases whose input is one to three words and whose output is the answer to each.

    Not always one word, or the words of the test inputs would be missing from the training split.
    """

    def make(draw: Draw) -> Case:
        words = draw.several(vocabulary, draw.between(1, 3))
        return Case(listed(words), listed([answer(word) for word in words]))

    return make


def _say_after(draw: Draw) -> Case:
    word, opening = draw.several(WORDS, 2)
    return Case(word, f"{opening}: {word}", opening)


def _say_before(draw: Draw) -> Case:
    word, ending = draw.several(WORDS, 2)
    return Case(word, f"{word} {ending}", ending)


def _repeat(draw: Draw) -> Case:
    word = draw.pick(WORDS)
    count = draw.between(2, 5)
    return Case(word, " ".join([word] * count), NUMBER_WORDS[count])


def _unspell(draw: Draw) -> Case:
    words = draw.several(WORDS, draw.between(1, 3))
    return Case(listed([" ".join(word) for word in words]), listed(words))


def _belongs_to_group(draw: Draw) -> Case:
    word, other = draw.several(WORDS, 2)
    group = GROUP_OF[draw.pick((word, other))]
    return Case(word, "yes" if GROUP_OF[word] == group else "no", group)


SINGLE_WORDS: dict[str, Kind] = {
    "spell": Kind(
        "words",
        ("Spell the word.", "Write the letters of the word."),
        of_each(" ".join, WORDS),
    ),
    "unspell": Kind(
        "words",
        ("Which word do the letters make?", "Read the letters as a word."),
        _unspell,
    ),
    "first_letter": Kind(
        "words",
        ("Write the first letter.", "With which letter does the word begin?"),
        of_each(lambda word: word[0], WORDS),
    ),
    "upper_case": Kind(
        "words",
        ("Write the word in upper case.", "Use capital letters."),
        of_each(str.upper, NOUNS + COLORS),
    ),
    "say_after": Kind("words", ("Write {} and a colon first.", "Begin with {}."), _say_after),
    "say_before": Kind("words", ("End with {}.", "Write {} after the word."), _say_before),
    "repeat_word": Kind("words", ("Write the word {} times.", "Say it {} times."), _repeat),
    "plural": Kind(
        "words", ("Write the plural.", "What are many of them called?"), of_each(plural, NOUNS)
    ),
    "opposite": Kind(
        "words",
        ("Write the opposite.", "What is the opposite of the word?"),
        of_each(OPPOSITES.__getitem__, list(OPPOSITES)),
    ),
    "past": Kind(
        "words",
        ("Write the past form.", "What is the past of the verb?"),
        of_each(VERBS.__getitem__, list(VERBS)),
    ),
    "present": Kind(
        "words",
        ("Write the base form.", "What is the verb in the present?"),
        of_each(BASE_OF.__getitem__, PAST_VERBS),
    ),
    "group": Kind(
        "words",
        ("Which group is it?", "Write the group of the word."),
        of_each(GROUP_OF.__getitem__, WORDS),
    ),
    "belongs_to_group": Kind("words", ("Does it belong to the group {}?",), _belongs_to_group),
    "sound": Kind(
        "words",
        ("Which sound does the animal make?", "What does it say?"),
        of_each(_SOUNDS.__getitem__, list(_SOUNDS)),
    ),
    "article": Kind(
        "words", ("Write the word with a or an.", "Put the article."), of_each(with_article, WORDS)
    ),
    "following_day": Kind(
        "words",
        ("Which day comes next?", "Write the day after."),
        of_each(_DAY_AFTER.__getitem__, DAYS),
    ),
    "following_month": Kind(
        "words",
        ("Which month comes next?", "Write the month after."),
        of_each(_MONTH_AFTER.__getitem__, _MONTHS),
    ),
}
