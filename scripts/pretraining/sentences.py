"""Kinds of task on sentences: reading them, changing them, making them."""

from __future__ import annotations

from fullfed.quickstart.kinds import Case, Draw, Kind, draw_scene, listed, of_scene
from fullfed.quickstart.words import (
    ANIMALS,
    BASE_OF,
    COLORS,
    HAPPY,
    JOBS,
    NAMES,
    NOUNS,
    OPPOSITES,
    PLACES,
    SAD,
    VERBS,
    with_article,
)


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


SENTENCES: dict[str, Kind] = {
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
