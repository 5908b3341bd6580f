"""Kinds of task on lists of words: finding, ordering, changing, counting."""

from __future__ import annotations

from fullfed.quickstart.kinds import Case, Draw, Kind, listed, of_words
from fullfed.quickstart.words import GROUPS, WORDS

_POSITIONS = ("first", "second", "third", "fourth", "fifth")


def _position(draw: Draw) -> Case:
    words = draw.several(WORDS, draw.between(3, 5))
    index = draw.between(0, len(words) - 1)
    return Case(listed(words), words[index], _POSITIONS[index])


def _next_in_list(draw: Draw) -> Case:
    words = draw.several(WORDS, draw.between(3, 5))
    index = draw.between(0, len(words) - 2)
    return Case(listed(words), words[index + 1], words[index])


def _before_in_list(draw: Draw) -> Case:
    words = draw.several(WORDS, draw.between(3, 5))
    index = draw.between(1, len(words) - 1)
    return Case(listed(words), words[index - 1], words[index])


def _remove_word(draw: Draw) -> Case:
    words = draw.several(WORDS, draw.between(3, 5))
    unwanted = draw.pick(words)
    return Case(listed(words), listed([word for word in words if word != unwanted]), unwanted)


def _add_word(draw: Draw) -> Case:
    *words, extra = draw.several(WORDS, draw.between(3, 5))
    return Case(listed(words), listed([*words, extra]), extra)


def _is_in_list(draw: Draw) -> Case:
    *words, other = draw.several(WORDS, draw.between(4, 6))
    asked = draw.pick((draw.pick(words), other))
    return Case(listed(words), "yes" if asked in words else "no", asked)


def _say_list(draw: Draw) -> Case:
    words = draw.several(WORDS, draw.between(1, 4))
    return Case("", listed(words), listed(words))


def _odd_one_out(draw: Draw) -> Case:
    group, other = draw.several(list(GROUPS), 2)
    odd = draw.pick(GROUPS[other])
    words = draw.several(GROUPS[group], draw.between(2, 3))
    words.insert(draw.between(0, len(words)), odd)
    return Case(listed(words), odd)


def _find_group(draw: Draw) -> Case:
    groups = draw.several(list(GROUPS), draw.between(2, 4))
    words = [draw.pick(GROUPS[group]) for group in groups]
    index = draw.between(0, len(words) - 1)
    return Case(listed(words), words[index], groups[index])


LISTS: dict[str, Kind] = {
    "copy_list": Kind(
        "lists",
        ("Copy the list.", "Repeat the words.", "Write the list again."),
        of_words(listed),
    ),
    "say_list": Kind("lists", ("Say {}.", "Write the words {}."), _say_list),
    "position": Kind(
        "lists",
        ("Write the {} word.", "What is the {} word?", "Which word comes {} in the list?"),
        _position,
    ),
    "last_word": Kind(
        "lists",
        ("Write the last word.", "Which word ends the list?", "What comes last?"),
        of_words(lambda words: words[-1]),
    ),
    "next_in_list": Kind(
        "lists", ("Which word comes after {}?", "Write the word that follows {}."), _next_in_list
    ),
    "before_in_list": Kind(
        "lists", ("Which word comes before {}?", "Write the word ahead of {}."), _before_in_list
    ),
    "reverse_list": Kind(
        "lists",
        ("Reverse the list.", "Write the words backwards.", "Turn the order of the list around."),
        of_words(lambda words: listed(words[::-1])),
    ),
    "sort_list": Kind(
        "lists",
        ("Sort the words.", "Put the list in alphabetical order."),
        of_words(lambda words: listed(sorted(words)), longest=4),
    ),
    "join_with_and": Kind(
        "lists",
        ("Join the words with and.", "Make one phrase of the list."),
        of_words(lambda words: f"{', '.join(words[:-1])} and {words[-1]}"),
    ),
    "number_the_list": Kind(
        "lists",
        ("Number the list.", "Write a number before each word."),
        of_words(lambda words: " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))),
    ),
    "separate_with_bars": Kind(
        "lists",
        ("Separate the words with bars.", "Put a bar between the words."),
        of_words(" | ".join),
    ),
    "count_words": Kind(
        "lists",
        ("Count the words.", "How many words are in the list?"),
        of_words(lambda words: str(len(words)), shortest=1, longest=6),
    ),
    "without_first": Kind(
        "lists",
        ("Drop the first word.", "Write the list without its first word."),
        of_words(lambda words: listed(words[1:])),
    ),
    "first_and_last": Kind(
        "lists",
        ("Write the first and the last word.", "Which words begin and end the list?"),
        of_words(lambda words: f"{words[0]} {words[-1]}"),
    ),
    "remove_word": Kind("lists", ("Remove {} from the list.", "Write all but {}."), _remove_word),
    "add_word": Kind("lists", ("Add {} to the list.", "Put {} at the end."), _add_word),
    "is_in_list": Kind("lists", ("Is {} in the list?", "Does the list have {}?"), _is_in_list),
    "odd_one_out": Kind(
        "lists", ("Find the odd one out.", "Which word is not like the others?"), _odd_one_out
    ),
    "find_group": Kind(
        "lists", ("Find the {} in the list.", "Which word is of the group {}?"), _find_group
    ),
}
