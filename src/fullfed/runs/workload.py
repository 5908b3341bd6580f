"""What the visits of a run compute: their steps, their tokens, their largest batch.

All of it follows from the recipe's seed, so it is known before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        held_out_passes: over the held-out samples of the recipe's check: of each round one for
            every report, and one for every part of the model that they are about.
        plan_of: the first plan for each part of the model that visits train; of a method without
            blocks there is one part, 0.
    """

    visits: int
    steps: int
    tokens: int
    padded: int
    largest: BatchShape
    held_out_passes: int
    plan_of: Mapping[int, Plan]

    @property
    def plan(self) -> Plan:
        """Of a typical visit: where visits train blocks, one to the block in the middle."""
        parts = sorted(self.plan_of)
        return self.plan_of[parts[len(parts) // 2]]


def workload(recipe: Recipe, clients: Sequence[ClientData], method: Composition) -> Workload:
    """The work of a recipe's visits. Trainers that make batches of their own count as if they made
    ours."""
    local, seed = recipe.local, recipe.federation.seed
    visits = steps = tokens = padded = 0
    largest = BatchShape(0, 0, 0)
    plan_of = plans_by_part(recipe, method)
    lengths = [[len(example) for example in client.examples] for client in clients]
    learned = [[example.learned_tokens for example in client.examples] for client in clients]
    for plan in _plans(recipe, method):
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
    passes = 0 if recipe.check is None else visits + _parts_of_rounds(recipe, method)
    return Workload(visits, steps, tokens, padded, largest, passes, plan_of)


def plans_by_part(recipe: Recipe, method: Composition) -> dict[int, Plan]:
    """The first plan of a run for each part of the model that its visits train."""
    found: dict[int, Plan] = {}
    for plan in _plans(recipe, method):
        found.setdefault(method.part(plan) or 0, plan)
    return found


def _parts_of_rounds(recipe: Recipe, method: Composition) -> int:
    return len({(plan.round, method.part(plan)) for plan in _plans(recipe, method)})


def _plans(recipe: Recipe, method: Composition) -> Iterator[Plan]:
    for round in range(recipe.federation.rounds):
        yield from method.plans(round, None)


def _parts(batch: Sequence[int], lengths: Sequence[int], size: int | None) -> list[list[int]]:
    """What of a batch is computed together; see ``Batch.split``."""
    if size is None or size >= len(batch):
        return [list(batch)]
    order = sorted(batch, key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]
