"""The kinds of task that the quickstart's model is pretrained on.

They teach it to read an instruction, to find, copy, order and change words, to count a little,
and the facts of its small world. Many kinds in varied wordings, because a model that was made to
tell many instructions apart is quick to learn one more.
"""

from __future__ import annotations

from fullfed.quickstart.draw import Draw
from fullfed.quickstart.kinds import Case, Kind, draw_scene, listed, of_each, of_scene, of_words
from fullfed.quickstart.words import (
    ANIMALS,
    BASE_OF,
    COLORS,
    DAYS,
    GROUP_OF,
    GROUPS,
    HAPPY,
    JOBS,
    MONTHS,
    NAMES,
    NOUNS,
    NUMBER_WORDS,
    OPPOSITES,
    PAST_VERBS,
    PLACES,
    SAD,
    SOUNDS,
    VERBS,
    WORDS,
    plural,
    with_article,
)

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


def _belongs_to_group(draw: Draw) -> Case:
    word, other = draw.several(WORDS, 2)
    group = GROUP_OF[draw.pick((word, other))]
    return Case(word, "yes" if GROUP_OF[word] == group else "no", group)


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


def _is_that_color(draw: Draw) -> Case:
    scene = draw_scene(draw)
    color = draw.pick((scene.color, draw.pick(COLORS)))
    question = f"Is the {scene.thing} {color}?"
    return Case(f"{scene.text} {question}", "yes" if color == scene.color else "no")


def _replace_name(draw: Draw) -> Case:
    scene = draw_scene(draw)
    other = draw.pick([name for name in NAMES if name != scene.name])
    return Case(scene.text, scene.text.replace(scene.name, other), other)


def _replace_color(draw: Draw) -> Case:
    scene = draw_scene(draw)
    other = draw.pick([color for color in COLORS if color != scene.color])
    return Case(scene.text, scene.text.replace(scene.color, other), other)


def _make_scene(draw: Draw) -> Case:
    scene = draw_scene(draw)
    parts = (scene.name, BASE_OF[scene.verb], scene.color, scene.thing, scene.place)
    text = f"{scene.name} {scene.verb} the {scene.color} {scene.thing} in the {scene.place}."
    return Case(listed(parts), text)


def _sentence_about(draw: Draw) -> Case:
    scene = draw_scene(draw)
    return Case("", scene.text, f"{scene.name}, {scene.color}, {scene.thing}, {scene.place}")


def _where_is(draw: Draw) -> Case:
    names = draw.several(NAMES, 2)
    places = draw.several(PLACES, 2)
    text = " ".join(f"{name} is in the {place}." for name, place in zip(names, places, strict=True))
    asked = draw.between(0, 1)
    return Case(text, places[asked], names[asked])


def _who_is_in(draw: Draw) -> Case:
    names = draw.several(NAMES, 2)
    places = draw.several(PLACES, 2)
    text = " ".join(
        f"{name} went to the {place}." for name, place in zip(names, places, strict=True)
    )
    asked = draw.between(0, 1)
    return Case(text, names[asked], places[asked])


def _negate(draw: Draw) -> Case:
    noun, quality = draw.pick(NOUNS), draw.pick(list(OPPOSITES))
    return Case(f"The {noun} is {quality}.", f"The {noun} is not {quality}.")


def _ask_whether(draw: Draw) -> Case:
    name, quality = draw.pick(NAMES), draw.pick(HAPPY + SAD + JOBS)
    quality = with_article(quality) if quality in JOBS else quality
    return Case(f"{name} is {quality}.", f"Is {name} {quality}?")


def _job_of(draw: Draw) -> Case:
    name, job = draw.pick(NAMES), draw.pick(JOBS)
    return Case(f"{name} is {with_article(job)} in the {draw.pick(PLACES)}.", job)


def _feels_well(draw: Draw) -> Case:
    feeling = draw.pick(draw.pick((HAPPY, SAD)))
    text = f"{draw.pick(NAMES)} is {feeling} in the {draw.pick(PLACES)}."
    return Case(text, "yes" if feeling in HAPPY else "no")


def _to_past(draw: Draw) -> Case:
    name, base, noun = draw.pick(NAMES), draw.pick(list(VERBS)), draw.pick(NOUNS)
    return Case(f"{name} will {base} the {noun}.", f"{name} {VERBS[base]} the {noun}.")


def _compare(draw: Draw) -> Case:
    first, second = draw.several(NOUNS, 2)
    quality = draw.pick(list(OPPOSITES))
    text = f"The {first} is {quality}. The {second} is {OPPOSITES[quality]}."
    asked, answer = draw.pick(((quality, first), (OPPOSITES[quality], second)))
    return Case(text, answer, asked)


def _story(draw: Draw) -> Case:
    name, friend = draw.several(NAMES, 2)
    animal, place, color = draw.pick(ANIMALS), draw.pick(PLACES), draw.pick(COLORS)
    feeling = draw.pick(HAPPY + SAD)
    return Case(
        f"{name}, {animal}, {place}",
        f"{name} went to the {place}. There {name} saw a {color} {animal}. "
        f"The {animal} was {feeling}. {name} told {friend} about the {animal}.",
    )


def _greet(draw: Draw) -> Case:
    name = draw.pick(NAMES)
    time = draw.pick(("morning", "evening"))
    return Case(f"{name} comes in the {time}.", f"Good {time}, {name}!")


_NUMBERS = [str(number) for number in range(61)]
_DAY_AFTER = dict(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True))
_MONTH_AFTER = dict(zip(MONTHS, MONTHS[1:] + MONTHS[:1], strict=True))
_NUMBER_OF_WORD = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
_WORD_OF_NUMBER = {number: word for word, number in _NUMBER_OF_WORD.items()}

PRETRAINING: dict[str, Kind] = {
    # Lists of words.
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
    # Single words and letters.
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
        of_each(SOUNDS.__getitem__, list(SOUNDS)),
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
        of_each(_MONTH_AFTER.__getitem__, MONTHS),
    ),
    # Numbers.
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
    # Sentences.
    "copy_sentence": Kind(
        "sentences",
        ("Copy the sentence.", "Write the same again."),
        of_scene(lambda scene: scene.text),
    ),
    "who": Kind(
        "sentences", ("Who did it?", "Write the name."), of_scene(lambda scene: scene.name)
    ),
    "where": Kind(
        "sentences", ("Where was it?", "Write the place."), of_scene(lambda scene: scene.place)
    ),
    "which_color": Kind(
        "sentences",
        ("Which color was it?", "Write the color."),
        of_scene(lambda scene: scene.color),
    ),
    "what": Kind(
        "sentences", ("What was it?", "Write the thing."), of_scene(lambda scene: scene.thing)
    ),
    "what_happened": Kind(
        "sentences", ("What happened?", "Write the verb."), of_scene(lambda scene: scene.verb)
    ),
    "thing_and_place": Kind(
        "sentences",
        ("What and where?", "Write the thing and the place."),
        of_scene(lambda scene: f"the {scene.thing} in the {scene.place}"),
    ),
    "name_and_thing": Kind(
        "sentences",
        ("Who and what?", "Write the name and the thing."),
        of_scene(lambda scene: f"{scene.name} and the {scene.thing}"),
    ),
    "shorten": Kind(
        "sentences",
        ("Shorten the sentence.", "Tell it in a few words."),
        of_scene(lambda scene: f"{scene.name} {scene.verb} the {scene.thing}."),
    ),
    "it_was": Kind(
        "sentences",
        ("Who was it? Answer in a sentence.",),
        of_scene(lambda scene: f"It was {scene.name}."),
    ),
    "is_that_color": Kind("sentences", ("Answer yes or no.", "Is it so?"), _is_that_color),
    "replace_name": Kind(
        "sentences", ("Use the name {}.", "Replace the name by {}."), _replace_name
    ),
    "replace_color": Kind("sentences", ("Make it {}.", "Replace the color by {}."), _replace_color),
    "make_scene": Kind(
        "sentences", ("Make a sentence of the words.", "Write a sentence."), _make_scene
    ),
    "sentence_about": Kind(
        "sentences", ("Write a sentence about {}.", "Tell about {}."), _sentence_about
    ),
    "where_is": Kind("sentences", ("Where is {}?", "Write the place of {}."), _where_is),
    "who_is_in": Kind("sentences", ("Who went to the {}?", "Who is at the {}?"), _who_is_in),
    "negate": Kind("sentences", ("Say that it is not so.", "Use the word not."), _negate),
    "ask_whether": Kind("sentences", ("Make a question.", "Ask about it."), _ask_whether),
    "job_of": Kind("sentences", ("Write the job.", "What is the work of the person?"), _job_of),
    "feels_well": Kind("sentences", ("Does the person feel well?",), _feels_well),
    "to_past": Kind("sentences", ("Tell it in the past.", "It is over. Tell it."), _to_past),
    "compare": Kind("sentences", ("Which one is {}?",), _compare),
    "story": Kind("sentences", ("Tell a story.", "Write a short story with the words."), _story),
    "greet": Kind("sentences", ("Greet the person.", "What do you say?"), _greet),
}
