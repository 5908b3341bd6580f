"""Schedules: who takes part when, and which part of the model each one trains.

The parts of a model are blocks of its layers; a plan names one where there are several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, Value
from fullfed.methods.codecs.codec import Shapes
from fullfed.methods.setting import Setting
from fullfed.randomness import Purpose, Stream, permutation


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


Order = Literal["ascending", "descending", "rotating", "permutation"]


@dataclass(frozen=True)
class Surrogate:
    """The reduced model that a weak client trains on, and nobody evaluates, saves or averages.

    The client's own block is whole, and other blocks are left out at random, but not the first and
    the last. What is kept of them is held, and sent, in 8 or 4 bits.

    Attributes:
        seed: the recipe's.
        layers: how many blocks of layers there are.
        kept: rho, the share of the other blocks that a client gets, rounded up.
    """

    seed: int
    layers: int
    kept: float

    def dropped(self, round: int, client: int, block: int) -> list[Value]:
        """The blocks that a client goes without, in increasing order."""
        others = self.layers - (block < self.layers)
        free = [b for b in range(1, self.layers - 1) if b != block]
        count = min(others - math.ceil(self.kept * others), len(free))
        order = permutation(Stream(self.seed, Purpose.BLOCKS, round, client), len(free))
        return [*sorted(free[n] for n in order[:count])]


class Schedule(Protocol):
    def visits(self, round: int) -> Mapping[int, Mapping[str, Value]]:
        """The clients of a round, in increasing order, and what only their own plan says.

        Raises:
            UserError: the schedule does not fit the federation.
        """

    @property
    def patience(self) -> int:
        """How many rounds in a row may pass without a report before the run stops."""

    @property
    def fewest_together(self) -> int:
        """The fewest clients that train the same parameters in a round."""


@dataclass(frozen=True)
class SampledCohort:
    """Each round ``size`` of ``clients``, uniformly at random, in parallel.

    Attributes:
        seed: the recipe's.
        clients: how many there are in the federation.
        size: how many take part in a round.
    """

    seed: int
    clients: int
    size: int

    def visits(self, round: int) -> Mapping[int, Mapping[str, Value]]:
        return {client: {} for client in self.cohort(round)}

    @property
    def patience(self) -> int:
        return 0

    @property
    def fewest_together(self) -> int:
        return self.size

    def cohort(self, round: int) -> tuple[int, ...]:
        order = permutation(Stream(self.seed, Purpose.COHORT, round=round), self.clients)
        return tuple(sorted(order[: self.size].tolist()))


@dataclass(frozen=True)
class PoissonCohort:
    """Each round every client by itself with the same probability, in parallel; nobody but the
    server knows who.

    Attributes:
        key: 32 bytes that only the server knows; empty where no rounds are planned.
        clients: how many there are in the federation.
        size: how many take part in a round, in the mean.
    """

    key: bytes
    clients: int
    size: int

    def visits(self, round: int) -> Mapping[int, Mapping[str, Value]]:
        from fullfed.privacy.keystream import KeyStream, derived

        stream = KeyStream(derived(self.key, f"cohort of round {round}"))
        drawn = stream.uniforms(self.clients) < self.size / self.clients
        return {client: {} for client in range(self.clients) if drawn[client]}

    @property
    def patience(self) -> int:
        return 0

    @property
    def fewest_together(self) -> int:
        return self.size


@dataclass(frozen=True)
class Cycle:
    """Visits every client once a cycle, each for one block (FedCyBGD; docs/methods/fedcybgd.md).

    A visit is that of ``together`` clients to the same block: visit v of a cycle is that of
    clients v, v + V, v + 2 V, ... where V is the number of visits. A round is ``size / together``
    visits at once, to different blocks; the last of a cycle may be smaller.

    Attributes:
        seed: the recipe's.
        clients: how many there are in the federation.
        blocks: B, how many the model has.
        order: the block of visit v in cycle e: "ascending" v mod B, "descending" B - 1 - v mod B,
            "rotating" (v + e) mod B, or "permutation", where orders of all B blocks drawn at
            random follow one another.
        size: clients in a round.
        together: clients who train the same block.
        surrogate: what a client goes without; None where all hold the whole model.
    """

    seed: int
    clients: int
    blocks: int
    order: Order
    size: int = 1
    together: int = 1
    surrogate: Surrogate | None = None

    @property
    def visits_per_cycle(self) -> int:
        """V."""
        return -(-self.clients // self.together)

    @property
    def fewest_together(self) -> int:
        return self.clients // self.visits_per_cycle

    @property
    def rounds_per_cycle(self) -> int:
        return -(-self.visits_per_cycle // self._at_once)

    @property
    def patience(self) -> int:
        """Those who drop out are passed over, but not a whole cycle of them."""
        return self.rounds_per_cycle - 1

    @property
    def _at_once(self) -> int:
        return self.size // self.together

    def visits(self, round: int) -> Mapping[int, Mapping[str, Value]]:
        self._check()
        cycle, turn = divmod(round, self.rounds_per_cycle)
        start = turn * self._at_once
        plans: dict[int, Mapping[str, Value]] = {}
        for visit in range(start, min(start + self._at_once, self.visits_per_cycle)):
            block = self.block(cycle, visit)
            for client in range(visit, self.clients, self.visits_per_cycle):
                plans[client] = {"block": block}
                if self.surrogate is not None:
                    dropped = self.surrogate.dropped(round, client, block)
                    plans[client] = {"block": block, "dropped": dropped}
        return dict(sorted(plans.items()))

    def block(self, cycle: int, visit: int) -> int:
        """The block that a visit of a cycle trains."""
        match self.order:
            case "ascending":
                return visit % self.blocks
            case "descending":
                return self.blocks - 1 - visit % self.blocks
            case "rotating":
                return (visit + cycle) % self.blocks
            case "permutation":
                return self._drawn(cycle, visit)

    def _drawn(self, cycle: int, visit: int) -> int:
        """The block where orders are drawn at random.

        Every B visits cover all blocks, counted from the start of a cycle, or of B cycles where
        one is too short for that.
        """
        visits = self.visits_per_cycle
        cycles = 1 if visits >= self.blocks else self.blocks
        stretch, earlier = divmod(cycle, cycles)
        sizes = [min(self._at_once, visits - v) for v in range(0, visits, self._at_once)]
        drawn: list[int] = []
        queue: list[int] = []
        for size in sizes * cycles:
            if len(queue) < size:
                number = (len(drawn) + len(queue)) // self.blocks
                stream = Stream(self.seed, Purpose.BLOCKS, round=stretch, block=number)
                order: list[int] = permutation(stream, self.blocks).tolist()
                # The rest of one order and the begin of the next share a round: no block twice.
                queue += sorted(order, key=queue.__contains__)
            drawn += queue[:size]
            del queue[:size]
        return drawn[earlier * visits + visit]

    def _check(self) -> None:
        if self.size % self.together:
            raise UserError(
                f"federation.clients_per_round: {self.size} clients a round do not make whole "
                f"groups of method.clients_per_block = {self.together}; take a multiple of it."
            )
        if self._at_once > self.blocks:
            raise UserError(
                f"federation.clients_per_round: {self._at_once} blocks at once, but there are only "
                f"{self.blocks}; lower it or raise method.clients_per_block."
            )
        if self.order in ("ascending", "descending") and self.visits_per_cycle < self.blocks:
            raise UserError(
                f"method.order: in {self.order} order {self.visits_per_cycle} visits a cycle never "
                f"reach all {self.blocks} blocks; take 'rotating' or 'permutation', or lower "
                "method.blocks."
            )
