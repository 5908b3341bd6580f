"""The normal basis' blocks, and how a message says that coordinates are split among them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Update, Value, numbers
from fullfed.methods.codecs.codec import Shapes
from fullfed.sketch import second_moment

ALLOCATION = "allocation"  # in plans and updates: each block's coordinates
ENERGIES = "energies"  # in updates: each block's energy
_LARGEST = 1e100  # of a block's energy: products with sizes are finite
_MEMORY = 0.5  # weight of earlier rounds in a block's energy


def blocks_of(shapes: Shapes) -> list[tuple[range, int]]:
    """The blocks, as consecutive runs of tensors, and the elements of each.

    A block is closed when it holds 0.9 of the median tensor, as in the published code.
    """
    sizes = [shape.numel() for shape in shapes.values()]
    enough = 0.9 * statistics.median(sizes)
    ends, held = [0], 0
    for place, size in enumerate(sizes, start=1):
        held += size
        if held >= enough:
            ends.append(place)
            held = 0
    if held:
        ends.append(len(sizes))
    return [(range(start, end), sum(sizes[start:end])) for start, end in pairwise(ends)]


def allocation_of(plan: Plan) -> dict[str, Value]:
    """What of a plan everybody needs again; the rest may be of one client alone."""
    return {name: value for name, value in plan.values.items() if name == ALLOCATION}


def check_split(message: Plan | Update, count: int, shapes: Shapes) -> None:
    """
    Raises:
        MessageError: the message does not split ``count`` coordinates among the blocks.
    """
    sizes, split = [size for _, size in blocks_of(shapes)], message.values.get(ALLOCATION)
    if not isinstance(split, list) or not all(type(own) is int for own in split):
        raise MessageError(f"the {message.kind} does not split coordinates into whole numbers")
    own = [int(k) for k in split if isinstance(k, int)]
    fits = len(own) == len(sizes) and all(1 <= k <= d for k, d in zip(own, sizes, strict=True))
    if not fits or sum(own) != count:
        raise MessageError(f"the {message.kind} does not split {count} coordinates among blocks")


def check_energies(update: Update, shapes: Shapes) -> None:
    """
    Raises:
        MessageError: the update does not say each block's energy.
    """
    energies = numbers(update, ENERGIES)
    possible = all(0 <= energy <= _LARGEST for energy in energies)
    if len(energies) != len(blocks_of(shapes)) or not possible:
        raise MessageError("the update does not say each block's energy")


def energies_of(coordinates: Tensor, plan: Plan, shapes: Shapes) -> list[float]:
    """Each block's energy: ||y_l||**2 rho_l K_l is unbiased for ||delta_l||**2."""
    counts = [int(k) for k in numbers(plan, ALLOCATION)]
    return [
        float(own.square().sum()) * second_moment(d) * k
        for own, (_, d), k in zip(
            torch.split(coordinates, counts), blocks_of(shapes), counts, strict=True
        )
    ]


def remembered(energies: Sequence[float], last: Update | None) -> dict[str, Value]:
    """The blocks' energies, smoothed, for the next round's split."""
    if last is not None:
        earlier = numbers(last, ENERGIES)
        energies = [
            _MEMORY * old + (1 - _MEMORY) * new for old, new in zip(earlier, energies, strict=True)
        ]
    return {ENERGIES: list(energies)}
