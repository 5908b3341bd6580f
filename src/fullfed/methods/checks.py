"""What a method's messages may hold: what its choices say, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from fullfed.errors import MessageError
from fullfed.federation.messages import SKIPPED, Plan, Report, Update, check_values
from fullfed.federation.tensors import Computed, Item
from fullfed.methods.codecs.codec import Codec, Shapes
from fullfed.methods.schedules import named_block
from fullfed.methods.server_step import StepRule

STEP = "server_step"  # in every update that changes something
BLOCKS = "blocks"  # in updates of a model in blocks: those that change
CLIENTS = "clients"  # in updates where clients keep a state: whose reports are in it
LEFT_OUT = "left_out"  # in updates where the rule let nothing in of a report: whose

_HEADER_BYTES = 4096  # room for a message's header ...
_HEADER_BYTES_PER_TENSOR = 512  # ... and for each tensor's name and shape in it


@dataclass(frozen=True)
class MessageChecks:
    """Refuses messages with values or tensors that none of a method's choices makes.

    Attributes:
        codec, step, blocks: the method's.
        whole: all that a visit trains where there are no blocks.
        submodels: whether clients hold no replica.
        stateful: whether clients keep something between visits.
    """

    codec: Codec
    step: StepRule
    whole: Shapes
    blocks: tuple[Shapes, ...]
    submodels: bool
    stateful: bool

    def plan(self, plan: Plan) -> None:
        """Raise MessageError unless this is what the server's side makes."""
        shapes = named_block(self.blocks, plan) if self.blocks else self.whole
        own = [*(["block"] if self.blocks else []), *(["dropped"] if self.submodels else [])]
        check_values(plan, [*self.codec.plan_values, *own])
        self.codec.check_plan(plan, shapes)

    def report_limit(self, plan: Plan, shapes: Shapes) -> int:
        """The most bytes of an honest report; ``shapes``: of what the plan has trained."""
        header = _HEADER_BYTES + _HEADER_BYTES_PER_TENSOR * max(len(shapes), 8)
        return header + self.codec.report_bytes(plan, shapes)

    def report(self, report: Report) -> None:
        """Raise MessageError unless the report holds the values that clients say, by name."""
        check_values(report, self.codec.report_values | self.step.report_values)

    def update_values(self, update: Update) -> None:
        """Raise MessageError unless the update holds the values that the server says."""
        changes, due = STEP in update.values, set[str]()
        if changes:
            due |= self.step.update_values | ({BLOCKS} if self.blocks else set())
            for block in self._parts(update):
                names = self.codec.update_values(part_of(update, block))
                due |= {prefix_of(block) + name for name in names}
        if self.stateful:
            due.add(CLIENTS)
        if SKIPPED in update.values or not changes:
            due.add(SKIPPED)
        if changes and LEFT_OUT in update.values:
            due.add(LEFT_OUT)
        check_values(update, due)
        if changes:
            self.step.check_update(update)
        for name in due & {CLIENTS, LEFT_OUT}:
            if not _are_numbers(update.values[name], 2**32):
                raise MessageError(f"the update does not name clients under {name!r}")
        if SKIPPED in due and not _are_numbers([update.values[SKIPPED]], 2**32):
            raise MessageError("the update does not say how many rounds were skipped")

    def update(self, update: Update) -> None:
        """Raise MessageError unless this is what the server's side makes."""
        self.update_values(update)
        parts = [] if SKIPPED in update.values else self._parts(update)
        held = sum(len(part_of(update, block).tensors) for block in parts)
        if held != len(update.tensors):
            raise MessageError("the update holds tensors of a part that it does not change")
        for block in parts:
            shapes = self.whole if block is None else self.blocks[block]
            self.codec.check_update(part_of(update, block), shapes)

    def _parts(self, update: Update) -> list[int] | list[None]:
        return named_blocks(update, len(self.blocks)) if self.blocks else [None]


def named_blocks(update: Update, count: int) -> list[int]:
    """The blocks that an update changes, of ``count``, in increasing order.

    Raises:
        MessageError: it does not name them so.
    """
    found = update.values.get(BLOCKS)
    blocks = [n for n in found if type(n) is int] if isinstance(found, list) else []
    increasing = all(a < b for a, b in pairwise(blocks))
    if not blocks or not increasing or not _are_numbers(found, count):
        raise MessageError(f"the update does not name blocks of {count}")
    return blocks


def prefix_of(block: int | None) -> str:
    """Before the names of a block's values and tensors in an update."""
    return "" if block is None else f"{block}/"


def part_of(update: Update, block: int | None) -> Update:
    """What an update says of one block, under the names that the codec gave; with the step."""
    if block is None:
        return update
    step = {name: update.values[name] for name in (STEP,) if name in update.values}
    values, tensors = (named(prefix_of(block), all) for all in (update.values, update.tensors))
    return Update(update.round, {**values, **step}, tensors)  # type: ignore[arg-type, dict-item]


def prefixed(prefix: str, items: Mapping[str, Item]) -> Mapping[str, Item]:
    """The same by names with the prefix; see ``named``."""
    return Computed([prefix + n for n in items], lambda name: items[name.removeprefix(prefix)])


def changing(last: Update | None) -> Update | None:
    """The last update, for what it says; None if only skipped rounds came before."""
    return None if last is None or last.skipped > last.round else last


def named(prefix: str, items: Mapping[str, Item]) -> Mapping[str, Item]:
    """What is named with the prefix, without it."""
    own = [name.removeprefix(prefix) for name in items if name.startswith(prefix)]
    return Computed(own, lambda name: items[prefix + name])


def _are_numbers(found: object, end: int) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < end for n in found)
