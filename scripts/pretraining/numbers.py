"""Kinds of task with numbers: a little counting and reckoning."""

from __future__ import annotations

from fullfed.quickstart.kinds import Case, Draw, Kind
from fullfed.quickstart.words import NAMES, NOUNS, NUMBER_WORDS, PAST_VERBS, plural
from pretraining.single_words import of_each

_NUMBERS = [str(number) for number in range(61)]
_NUMBER_OF_WORD = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
_WORD_OF_NUMBER = {number: word for word, number in _NUMBER_OF_WORD.items()}


def _add(draw: Draw) -> Case:
    first, second = draw.between(0, 12), draw.between(0, 12)
    return Case(f"{first} + {second}", str(first + second))


def _subtract(draw: Draw) -> Case:
    second, rest = draw.between(0, 12), draw.between(0, 12)
    return Case(f"{second + rest} - {second}", str(rest))


def _ask_sum(draw: Draw) -> Case:
    first, second = draw.between(0, 12), draw.between(0, 12)
    return Case("", str(first + second), f"{first} + {second}")


def _larger(draw: Draw) -> Case:
    numbers = draw.several(range(60), 2)
    return Case(f"{numbers[0]} and {numbers[1]}", str(max(numbers)))


def _count_up(draw: Draw) -> Case:
    first = draw.between(0, 30)
    last = first + draw.between(2, 6)
    return Case(f"from {first} to {last}", " ".join(map(str, range(first, last + 1))))


def _count_down(draw: Draw) -> Case:
    last = draw.between(0, 30)
    first = last + draw.between(2, 5)
    return Case(f"from {first} to {last}", " ".join(map(str, range(first, last - 1, -1))))


def _how_many_things(draw: Draw) -> Case:
    name, count, noun = draw.pick(NAMES), draw.between(2, 12), draw.pick(NOUNS)
    return Case(f"{name} {draw.pick(PAST_VERBS)} {count} {plural(noun)}.", str(count))


NUMBERS: dict[str, Kind] = {
    "add": Kind("numbers", ("Add the numbers.", "Work out the sum."), _add),
    "subtract": Kind("numbers", ("Subtract.", "Work out the difference."), _subtract),
    "ask_sum": Kind("numbers", ("What is {}?", "How much is {}?"), _ask_sum),
    "larger": Kind("numbers", ("Write the larger number.", "Which one is more?"), _larger),
    "following_number": Kind(
        "numbers",
        ("Write the next number.",),
        of_each(lambda number: str(int(number) + 1), _NUMBERS),
    ),
    "count_up": Kind("numbers", ("Count up.", "Write the numbers in between."), _count_up),
    "count_down": Kind("numbers", ("Count down.", "Count backwards."), _count_down),
    "number_in_words": Kind(
        "numbers",
        ("Write the number as a word.",),
        of_each(_WORD_OF_NUMBER.__getitem__, list(_WORD_OF_NUMBER)),
    ),
    "word_in_numbers": Kind(
        "numbers",
        ("Write the word as a number.",),
        of_each(_NUMBER_OF_WORD.__getitem__, NUMBER_WORDS),
    ),
    "how_many_things": Kind(
        "numbers", ("How many are there?", "Write how many."), _how_many_things
    ),
}
