"""The kinds of task that the quickstart's model is pretrained on.

They teach it to read an instruction, to find, copy, order and change words, to count a little,
and the facts of its small world. Many kinds in varied wordings, because a model that was made to
tell many instructions apart is quick to learn one more.
"""

from __future__ import annotations

from fullfed.quickstart.kinds import Kind
from pretraining.lists import LISTS
from pretraining.numbers import NUMBERS
from pretraining.sentences import SENTENCES
from pretraining.single_words import SINGLE_WORDS
from pretraining.unknown import UNKNOWN

UNDERSTOOD: dict[str, Kind] = LISTS | SINGLE_WORDS | NUMBERS | SENTENCES
PRETRAINING: dict[str, Kind] = UNDERSTOOD | UNKNOWN
