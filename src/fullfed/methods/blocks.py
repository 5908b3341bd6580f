"""Blocks: the parts of a model of which a visit trains one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Plan, Report, Update
from fullfed.methods.setting import Setting

Shapes = Mapping[str, torch.Size]


def divide(setting: Setting, count: int | None, outer: bool) -> tuple[Shapes, ...]:
    """The blocks of a model: runs of consecutive layers, as equal as can be, in its order.

    Every block also holds the head, where the model has one that begins at random.

    Args:
        setting: says what the model's layers and its head are.
        count: how many runs; None for every layer alone.
        outer: whether everything else (embeddings, final norm, head) is one more block, the last.

    Returns:
        each block's parameters, by name, with their shapes.

    Raises:
        UserError: the model has no layers to be found, or fewer than there shall be blocks.
    """
    layers = setting.layers
    if not layers:
        raise UserError(
            "model.path: no list of layers can be found in this model; take a method that trains "
            "all of it, such as fedavg."
        )
    count = len(layers) if count is None else count
    if count > len(layers):
        raise UserError(
            f"method.blocks: {count} blocks for a model of {len(layers)} layers; ask for at most "
            "one a layer."
        )
    ends = [len(layers) * n // count for n in range(count + 1)]
    runs = [
        [name for layer in layers[start:end] for name in layer] for start, end in pairwise(ends)
    ]
    if outer:
        inner = {name for layer in layers for name in layer}.union(setting.head)
        runs.append([name for name in setting.shapes if name not in inner])
    return tuple({name: setting.shapes[name] for name in (*run, *setting.head)} for run in runs)


def block_of(message: Plan | Report | Update) -> int:
    """The number of the block a message is about.

    Raises:
        MessageError: it names none.
    """
    block = message.values.get("block")
    if type(block) is not int or block < 0:
        raise MessageError(f"the {message.kind} does not name a block")
    return block


def named_block(blocks: Sequence[Shapes], message: Plan | Report | Update) -> Shapes:
    """The block a message is about.

    Raises:
        MessageError: it names none, or one that does not exist.
    """
    block = block_of(message)
    if block >= len(blocks):
        raise MessageError(f"the {message.kind} is about block {block} of {len(blocks)}")
    return blocks[block]


def dropped_blocks(plan: Plan, count: int) -> list[int] | None:
    """The blocks, of ``count``, that a client goes without; None where it holds the whole model.

    Raises:
        MessageError: there are no such blocks.
    """
    if "dropped" not in plan.values:
        return None
    found = plan.values["dropped"]
    if not isinstance(found, list) or not all(type(b) is int and 0 <= b < count for b in found):
        raise MessageError("the plan's value 'dropped' is not a list of blocks")
    return found  # type: ignore[return-value]


def check_block(report: Report, plan: Plan) -> None:
    """Raise MessageError unless a report is about the block its client was given."""
    told, given = block_of(report), block_of(plan)
    if told != given:
        raise MessageError(f"the report is about block {told}, but the client was given {given}")
