"""The quickstart's tasks, one kind a client: generated, endless, a pure function of a seed.

The embedded model was pretrained on none of these kinds (scripts/pretraining/ has those): the
questions and the forms of the answers are new, what they are made of is not. That is the usual
situation of fine-tuning, and what lets a small model show within a few rounds whether a federation
learns.
"""

from __future__ import annotations

from collections.abc import Callable

from fullfed.quickstart.kinds import Case, Draw, Kind, draw_scene, listed, of_scene, of_words
from fullfed.quickstart.words import (
    BASE_OF,
    DAYS,
    FOODS,
    GROUP_OF,
    HAPPY,
    NAMES,
    NOUNS,
    NUMBER_WORDS,
    OPPOSITES,
    PAST_VERBS,
    PLACES,
    SAD,
    plural,
    with_article,
)


def _smaller(draw: Draw) -> Case:
    low, high = sorted(draw.several(range(60), 2))
    return Case(listed(draw.several((low, high), 2)), f"{low} is less than {high}.")


def _whole_sum(draw: Draw) -> Case:
    first, second = draw.between(0, 12), draw.between(0, 12)
    return Case(f"{first}, {second}", f"{first} + {second} = {first + second}")


def _day_before(draw: Draw) -> Case:
    day = draw.between(0, 6)
    person, place = draw.pick(NAMES), draw.pick(PLACES)
    return Case(
        f"{person} comes to the {place} on {DAYS[day]}.",
        f"{person} comes to the {place} on {DAYS[day - 1]}.",
    )


def _amount(draw: Draw) -> Case:
    count, noun = draw.between(2, 12), draw.pick(NOUNS + FOODS)
    return Case(f"{noun}, {count}", f"{NUMBER_WORDS[count]} {plural(noun)}")


def _opposite_sentence(draw: Draw) -> Case:
    noun, quality = draw.pick(NOUNS + PLACES), draw.pick(list(OPPOSITES))
    return Case(f"The {noun} is {quality}.", f"The {noun} is {OPPOSITES[quality]}.")


def _mood(draw: Draw) -> Case:
    feeling = draw.pick(draw.pick((HAPPY, SAD)))
    text = f"{draw.pick(NAMES)} was {feeling} in the {draw.pick(PLACES)}."
    return Case(text, f"{'good' if feeling in HAPPY else 'bad'} mood")


def _thanks(draw: Draw) -> Case:
    giver, taker = draw.several(NAMES, 2)
    thing = draw.pick(NOUNS)
    return Case(f"{giver} brought {taker} the {thing}.", f"Thank you for the {thing}, {giver}!")


def _both(draw: Draw) -> Case:
    first, second = draw.several(NAMES, 2)
    verb, thing = draw.pick(PAST_VERBS), draw.pick(NOUNS)
    return Case(
        f"{first} {verb} the {thing}. {second} {verb} the {thing}.",
        f"{first} and {second} {verb} the {thing}.",
    )


def _bill(draw: Draw) -> Case:
    foods = draw.several(FOODS, 2)
    counts = [(draw.between(2, 12), food) for food in foods]
    bought = " and ".join(f"{count} {plural(food)}" for count, food in counts)
    bill = "; ".join(f"{food}: {count}" for count, food in counts)
    return Case(f"{draw.pick(NAMES)} bought {bought}.", bill)


def _denial(draw: Draw) -> Case:
    scene = draw_scene(draw)
    text = f"{scene.name} did not {BASE_OF[scene.verb]} the {scene.thing}."
    return Case(scene.text, text)


def _kinds(category: str, **asked: tuple[str, Callable[[Draw], Case]]) -> dict[str, Kind]:
    """Kinds of one category by name: of each, what is asked and a maker of cases."""
    return {name: Kind(category, (wording,), make) for name, (wording, make) in asked.items()}


FEDERATED: dict[str, Kind] = {
    **_kinds(
        "lists",
        second_place=(
            "Tell which word won the silver medal.",
            of_words(lambda words: f"Silver goes to {words[1]}."),
        ),
        swap_ends=(
            "Exchange the two outer words.",
            of_words(lambda words: listed([words[-1], *words[1:-1], words[0]])),
        ),
        without_last=(
            "Leave out what stands at the end.",
            of_words(lambda words: listed(words[:-1])),
        ),
        offer=(
            "Offer a choice.",
            of_words(lambda words: f"Would you like {', '.join(words[:-1])} or {words[-1]}?"),
        ),
        twice_each=(
            "Double everything.",
            of_words(lambda words: listed([f"{word} {word}" for word in words]), longest=4),
        ),
        arrows=("Draw a path.", of_words(" -> ".join)),
        headed_list=(
            "Summarize by size and start.",
            of_words(lambda words: f"{len(words)} words from {words[0]}"),
        ),
        initials=("Abbreviate.", of_words(lambda words: " ".join(f"{word[0]}." for word in words))),
        classify_each=(
            "Label every item.",
            of_words(lambda words: "; ".join(f"{w}: {GROUP_OF[w]}" for w in words), longest=3),
        ),
    ),
    **_kinds(
        "numbers",
        smaller=("Compare the values.", _smaller),
        whole_sum=("Show the complete calculation.", _whole_sum),
        amount=("Name the amount.", _amount),
        bill=("Prepare the bill.", _bill),
    ),
    **_kinds(
        "sentences",
        opposite_sentence=("Claim the contrary.", _opposite_sentence),
        day_before=("Move the visit forward by a day.", _day_before),
        record=(
            "Fill in the form.",
            of_scene(lambda scene: f"name: {scene.name}; place: {scene.place}"),
        ),
        question=(
            "Inquire about the location.",
            of_scene(lambda s: f"Where did {s.name} {BASE_OF[s.verb]} the {s.thing}?"),
        ),
        noun_phrase=(
            "Describe the object.",
            of_scene(lambda scene: f"{with_article(scene.color)} {scene.thing}"),
        ),
        mood=("Judge the atmosphere.", _mood),
        thanks=("Reply politely.", _thanks),
        said=(
            "Let them speak for themselves.",
            of_scene(lambda scene: f"{scene.name}: I {scene.verb} the {scene.thing}."),
        ),
        denial=("Deny that.", _denial),
        both=("Merge what is common.", _both),
        search=(
            "Give directions.",
            of_scene(lambda scene: f"Go to the {scene.place} and ask {scene.name}."),
        ),
    ),
}
