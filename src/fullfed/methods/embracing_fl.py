"""EmbracingFL: clients train as many of the last layers as their memory allows (Lee et al.,
"Embracing federated learning: Enabling weak client participation via partial model training",
arXiv 2406.15125).

    theta = (y, z), z the layers at the output that a client's memory allows
    client:    z' = z after local steps, y frozen
    everyone:  each layer <- mean of those who trained it

y is there a layer at a time, once a visit, and what comes out of it is kept (training/prefix.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fullfed.errors import UserError
from fullfed.federation.messages import Value
from fullfed.methods.codecs.codec import elements
from fullfed.methods.composition import Composition
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import Everything
from fullfed.methods.server_step import ConstantStep, check_server_step, server_step
from fullfed.methods.setting import Setting
from fullfed.methods.suffixes import (
    BySegment,
    SuffixComposition,
    SuffixTraining,
    segments_of,
    suffix,
)
from fullfed.randomness import Purpose, Stream, permutation


def _memory() -> dict[str, float]:
    return {"strong": 1.0, "moderate": 0.4, "weak": 0.15}


def _clients() -> dict[str, float]:
    return {"strong": 0.25, "moderate": 0.25, "weak": 0.5}


@dataclass(frozen=True)
class EmbracingFLOptions:
    """
    Attributes:
        memory (share): of what training the whole model takes, that each class of clients has; if
            it is not said strong 1.0, moderate 0.4 and weak 0.15.
        clients (share): of all, that are in each class; who is in none takes no part. If it is not
            said strong 0.25, moderate 0.25 and weak 0.5.
        server_step: how much of the change is applied; "auto" is all of it.
    """

    memory: dict[str, float] = field(default_factory=_memory)
    clients: dict[str, float] = field(default_factory=_clients)
    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not self.memory or not all(0 < share <= 1 for share in self.memory.values()):
            raise ValueError("memory has a share above 0 and at most 1 for each class")
        if not self.clients.keys() <= self.memory.keys():
            raise ValueError("clients names classes that memory names")
        shares = list(self.clients.values())
        if not all(share >= 0 for share in shares) or not 0 < math.fsum(shares) <= 1 + 1e-9:
            raise ValueError("clients has shares that together are above 0 and at most 1")
        check_server_step(self.server_step)


@dataclass(frozen=True)
class ClassCohort:
    """Each round some of the clients that are in a class, uniformly at random, in parallel.

    Attributes:
        seed: the recipe's.
        suffix_of: the suffix that each client's class trains; None for who is in no class.
        size: how many take part in a round.
    """

    seed: int
    suffix_of: tuple[int | None, ...]
    size: int

    def visits(self, round: int) -> Mapping[int, Mapping[str, Value]]:
        own = [
            (client, number) for client, number in enumerate(self.suffix_of) if number is not None
        ]
        if self.size > len(own):
            raise UserError(
                f"federation.clients_per_round: {self.size} clients a round, and only "
                f"{len(own)} are in a class; lower it or raise the shares of method.clients."
            )
        cohort = SampledCohort(self.seed, len(own), self.size).cohort(round)
        return {client: {"block": number} for client, number in (own[n] for n in cohort)}

    @property
    def patience(self) -> int:
        return 0

    @property
    def fewest_together(self) -> int:
        """A round's cohort may have one client only of the class that trains most."""
        return 1


def dealt(seed: int, count: int, shares: Mapping[str, float]) -> tuple[str | None, ...]:
    """The class of each of ``count`` clients, at random; the sizes of classes are their shares,
    rounded so that together they are the rounded sum of shares."""
    order = permutation(Stream(seed, Purpose.CLASSES), count).tolist()
    classes: list[str | None] = [None] * count
    done, total = 0, 0.0
    for name, share in shares.items():
        total += share
        end = min(round(total * count), count)
        for client in order[done:end]:
            classes[client] = name
        done = max(done, end)
    return tuple(classes)


def build(setting: Setting, options: EmbracingFLOptions) -> Composition:
    """EmbracingFL for a federation.

    Raises:
        UserError: the model has no layers to be found, or the recipe asks for what does not go
            with suffixes.
    """
    _check(setting, options)
    of_class = {name: suffix(setting, options.memory[name]) for name in options.clients}
    suffixes = sorted(of_class.values(), key=elements, reverse=True)
    suffixes = [own for n, own in enumerate(suffixes) if n == 0 or own != suffixes[n - 1]]
    number_of = {name: suffixes.index(own) for name, own in of_class.items()}
    classes = dealt(setting.seed, setting.clients, options.clients)
    suffix_of = tuple(None if name is None else number_of[name] for name in classes)
    step = server_step(options.server_step, setting.seed, setting.codec, setting.cohort_size)
    assert isinstance(step, ConstantStep)  # as ``_check`` saw to
    return SuffixComposition(
        setting=setting,
        scope=Everything(),
        local=SuffixTraining(setting),
        codec=BySegment(setting.codec, segments_of(suffixes)),
        step=step,
        schedule=ClassCohort(setting.seed, suffix_of, setting.cohort_size),
        blocks=tuple(suffixes),
        classes=tuple(number_of.items()),
    )


def _check(setting: Setting, options: EmbracingFLOptions) -> None:
    memory, directions = setting.memory, setting.codec.directions
    faults = {
        "method.server_step: the automatic step is measured on one part of the model, and a "
        "round's clients train several; set it to a number": (
            options.server_step == "auto" and directions is not None
        ),
        "memory.frozen: what a visit does not train waits in a file anyway; leave the key out": (
            memory.frozen != "exact"
        ),
        "memory.cache_inputs: what comes into the first trained layer is kept anyway; leave the "
        "key out": memory.cache_inputs > 0,
    }
    for fault, found in faults.items():
        if found:
            raise UserError(f"{fault}, or take another method than embracing-fl.")
