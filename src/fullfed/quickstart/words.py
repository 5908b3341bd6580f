"""The small world that the quickstart's tasks talk about: people, things, places and facts.

Few words, so that each is one token and a very small model can know all of them.
"""

from __future__ import annotations

NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jack",
    "Kate", "Leo", "Maria", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip

ANIMALS = (
    "dog", "cat", "horse", "cow", "sheep", "pig", "bird", "duck", "lion", "tiger",
    "bear", "wolf", "fox", "rabbit", "snake", "frog", "monkey", "goat",
)  # fmt: skip
FOODS = (
    "apple", "banana", "bread", "cheese", "cake", "soup", "rice", "egg", "carrot", "lemon",
    "potato", "pear", "onion", "honey",
)  # fmt: skip
THINGS = (
    "ball", "book", "lamp", "chair", "table", "cup", "box", "key", "hat", "coat",
    "shoe", "bag", "clock", "pen", "spoon", "bell", "ring", "kite",
)  # fmt: skip
PLACES = (
    "garden", "kitchen", "school", "forest", "river", "market", "street", "station",
    "library", "park", "tower", "farm", "castle", "harbor", "village", "museum",
)  # fmt: skip
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "gray", "orange")
JOBS = (
    "doctor", "teacher", "farmer", "baker", "pilot", "singer", "painter", "nurse", "sailor",
    "writer", "driver", "cook",
)  # fmt: skip

GROUPS = {
    "animal": ANIMALS,
    "food": FOODS,
    "thing": THINGS,
    "place": PLACES,
    "color": COLORS,
    "job": JOBS,
}
NOUNS = ANIMALS + THINGS
WORDS = ANIMALS + FOODS + THINGS + PLACES + COLORS + JOBS
GROUP_OF = {word: group for group, words in GROUPS.items() for word in words}

OPPOSITES = {
    "hot": "cold", "big": "small", "old": "new", "fast": "slow", "high": "low",
    "long": "short", "dark": "light", "full": "empty", "hard": "soft", "wet": "dry",
    "clean": "dirty", "rich": "poor", "strong": "weak", "early": "late", "open": "closed",
    "loud": "quiet", "thick": "thin", "good": "bad",
}  # fmt: skip
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}

# Base form to past form.
VERBS = {
    "find": "found", "lose": "lost", "see": "saw", "take": "took", "hide": "hid",
    "leave": "left", "drop": "dropped", "clean": "cleaned", "paint": "painted", "buy": "bought",
    "sell": "sold", "bring": "brought", "throw": "threw", "want": "wanted",
}  # fmt: skip
PAST_VERBS = tuple(VERBS.values())
BASE_OF = {past: base for base, past in VERBS.items()}

HAPPY = ("happy", "glad", "cheerful", "proud", "delighted", "excited")
SAD = ("sad", "angry", "afraid", "lonely", "bored", "worried")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip

_IRREGULAR_PLURALS = {"sheep": "sheep", "wolf": "wolves"}


def plural(noun: str) -> str:
    """The plural of one of the nouns above."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("x", "s", "ch", "sh")) or noun in ("potato",):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def with_article(noun: str) -> str:
    """The noun behind "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
