"""What the visits of a run compute: their steps, their tokens, their largest batch.

All of it follows from the recipe's seed, so it is known before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fullfed.config import Recipe
from fullfed.data.batches import training_order
from fullfed.data.federated import ClientData
from fullfed.federation.messages import Plan
from fullfed.methods.composition import Composition
from fullfed.randomness import Purpose, Stream


class BatchShape(NamedTuple):
    """Samples that are computed together.

    Attributes:
        samples: how many.
        length: of the longest, in tokens.
        learned: learned tokens of all of them.
    """

    samples: int
    length: int
    learned: int


@dataclass(frozen=True)
class Workload:
    """Of all visits of a run, if none fails.

    Attributes:
        visits, steps: how many.
        tokens: of all steps, without padding.
        padded: of all steps, with padding.
        largest: of all that is computed together, a batch or a micro-batch, what has the most
            tokens, padding included.
        plan: of a typical visit of the first rounds: where visits train blocks, one to the block
            in the middle.
    """

    visits: int
    steps: int
    tokens: int
    padded: int
    largest: BatchShape
    plan: Plan


def workload(recipe: Recipe, clients: Sequence[ClientData], method: Composition) -> Workload:
    """The work of a recipe's visits. Trainers that make batches of their own count as if they made
    ours."""
    local, seed = recipe.local, recipe.federation.seed
    visits = steps = tokens = padded = 0
    largest = BatchShape(0, 0, 0)
    plan_of: dict[int, Plan] = {}  # by the part of the model
    lengths = [[len(example) for example in client.examples] for client in clients]
    learned = [[example.learned_tokens for example in client.examples] for client in clients]
    for plan in _plans(recipe, method):
        plan_of.setdefault(method.part(plan) or 0, plan)
        own, count = lengths[plan.client], local.batches(len(lengths[plan.client]))
        visits, steps = visits + 1, steps + count
        stream = Stream(seed, Purpose.BATCHES, plan.round, plan.client)
        for batch in training_order(own, local.batch_size, count, stream):
            tokens += sum(own[i] for i in batch)
            for part in _parts(batch, own, local.micro_batch_size):
                longest = max(own[i] for i in part)
                padded += len(part) * longest
                shape = BatchShape(len(part), longest, sum(learned[plan.client][i] for i in part))
                largest = max(largest, shape, key=lambda r: (r.samples * r.length, r.learned))
    parts = sorted(plan_of)
    typical = plan_of[parts[len(parts) // 2]]
    return Workload(visits, steps, tokens, padded, largest, typical)


def _plans(recipe: Recipe, method: Composition) -> Iterator[Plan]:
    for round in range(recipe.federation.rounds):
        yield from method.plans(round, None)


def _parts(batch: Sequence[int], lengths: Sequence[int], size: int | None) -> list[list[int]]:
    """What of a batch is computed together; see ``Batch.split``."""
    if size is None or size >= len(batch):
        return [list(batch)]
    order = sorted(batch, key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]
