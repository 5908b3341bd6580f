"""The quickstart's instruction data: generated, endless, and a pure function of a seed."""

from __future__ import annotations

import zlib

from fullfed.data.examples import Example
from fullfed.errors import UserError
from fullfed.quickstart.draw import draws
from fullfed.quickstart.federated import FEDERATED
from fullfed.quickstart.pretraining import PRETRAINING
from fullfed.quickstart.unknown import UNKNOWN
from fullfed.randomness import Stream

PRETRAINING_KINDS = (*PRETRAINING, *UNKNOWN)
FEDERATED_KINDS = tuple(FEDERATED)
SPLITS = ("train", "test")

_KINDS = PRETRAINING | UNKNOWN | FEDERATED
_PURPOSE = 0x7461736B  # "task"; clear of the purposes of the wire format
_TEST_SHARE = 5  # one input in so many is a test input


def split_of(text: str) -> str:
    """The split of an input, or of an instruction without one, whatever seed it was drawn with."""
    return "test" if zlib.crc32(text.encode()) % _TEST_SHARE == 0 else "train"


def examples(kind: str, count: int, seed: int, split: str) -> list[Example]:
    """The first ``count`` examples of a kind under a seed.

    No input of the train split is ever one of the test split. More examples of the same seed
    begin with the same ones.
    """
    if kind not in _KINDS:
        raise UserError(f"There is no quickstart task {kind!r}; there are {', '.join(_KINDS)}.")
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; there are {' and '.join(SPLITS)}.")
    task = _KINDS[kind]
    found: list[Example] = []
    stream = Stream(seed, _PURPOSE, block=zlib.crc32(kind.encode()))
    for draw in draws(stream):
        if len(found) == count:
            break
        case = task.make(draw)
        instruction = draw.pick(task.wordings).format(case.detail)
        if split_of(case.input or instruction) == split:
            found.append(
                Example(
                    instruction=instruction,
                    input=case.input,
                    output=case.output,
                    references=(case.output,),
                    task=kind,
                    category=task.category,
                )
            )
    return found
