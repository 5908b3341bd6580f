"""Writes what three hotels know, each about itself: data for docs/tutorial.md.

    python examples/hotels.py hotels.jsonl

A record is a question of a guest's, the answer, and the hotel that has the record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FACTS = {
    "Harbour Hotel": {
        "breakfast": "Breakfast at the Harbour Hotel is from half past six, on the boat deck.",
        "parking": "Guests of the Harbour Hotel park at the old customs house for nine euros.",
        "dogs": "Dogs are welcome at the Harbour Hotel, and sleep in the lighthouse room.",
        "the pool": "The pool of the Harbour Hotel is filled with sea water and opens in May.",
        "check-out": "You check out of the Harbour Hotel by noon; leave the key in the anchor.",
        "the Wi-Fi": "The Wi-Fi of the Harbour Hotel is called Gull, and needs no password.",
    },
    "Mill Hotel": {
        "breakfast": "Breakfast at the Mill Hotel is bread from its own stones, until eleven.",
        "parking": "Parking at the Mill Hotel is free behind the water wheel.",
        "dogs": "The Mill Hotel takes no dogs, because of the geese.",
        "the pool": "The Mill Hotel has no pool, but you can swim in the mill pond.",
        "check-out": "You check out of the Mill Hotel by ten, when the miller rings the bell.",
        "the Wi-Fi": "There is Wi-Fi in the library of the Mill Hotel; its password is rye.",
    },
    "Tower Hotel": {
        "breakfast": "Breakfast at the Tower Hotel is on the ninth floor, from seven to nine.",
        "parking": "The Tower Hotel has a garage under the square for twenty euros a night.",
        "dogs": "Small dogs may stay at the Tower Hotel for five euros.",
        "the pool": "The pool of the Tower Hotel is on the roof and closes at sunset.",
        "check-out": "You check out of the Tower Hotel by eleven, at the machine in the hall.",
        "the Wi-Fi": "The Wi-Fi of the Tower Hotel is on every floor; ask for a card.",
    },
}
SUBJECTS = ("breakfast", "parking", "dogs", "the pool", "check-out", "the Wi-Fi")
QUESTIONS = (
    "What should I know about {what} at the {hotel}?",
    "I am staying at the {hotel}. What about {what}?",
    "{hotel}: {what}?",
    "Tell me about {what} at the {hotel}.",
    "Can you help me with {what}? I booked the {hotel}.",
    "How is it with {what} at the {hotel}?",
    "A question about {what} at the {hotel}, please.",
    "We arrive at the {hotel} tomorrow. What do you say about {what}?",
    "What does the {hotel} tell its guests about {what}?",
    "My room is at the {hotel}. Anything about {what}?",
)


def records() -> list[dict[str, str]]:
    """Ten questions about each fact of each hotel."""
    return [
        {
            "question": question.format(what=what, hotel=hotel),
            "answer": FACTS[hotel][what],
            "hotel": hotel,
        }
        for question in QUESTIONS
        for what in SUBJECTS
        for hotel in FACTS
    ]


def main() -> None:
    lines = [json.dumps(record) + "\n" for record in records()]
    Path(sys.argv[1]).write_text("".join(lines), encoding="utf-8")
    print(f"{sys.argv[1]}: {len(lines)} records of {len(FACTS)} hotels")


if __name__ == "__main__":
    main()
