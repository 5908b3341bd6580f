"""The runs that trials are made on: small ones of methods that keep different things."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fullfed.config import Recipe
from fullfed.deployment import node_task
from fullfed.federation.log import read_log
from fullfed.federation.messages import Update, decode
from fullfed.runs import assembly, loading, replay, run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import load_base
from runs import cycling
from runs.small import recipe

# Beyond method and codec, what a recipe has of its own; see runs.small.recipe.
METHODS: dict[str, dict[str, Any]] = {
    "sketch": {"method": {"name": "ferret", "coordinates": 300}},
    "residuals": {
        "method": {
            "name": "fedavg",
            "codec": {"name": "dense", "precision": "int8", "error_feedback": True},
        }
    },
    "moments": {
        "method": cycling.METHOD,
        "local": {"optimizer": "adamw", "learning_rate": 0.02},
    },
    "cyclic": {
        "method": {
            "name": "cyclic-ferret",
            "server_step": 0.5,
            "codec": {"name": "sketch", "upload": 476},
        }
    },
    "seeds": {"method": {"name": "fedkseed"}, "local": {"learning_rate": 1e-3}},
    "factors": {"method": {"name": "flora", "rank": 2}},
    "buffered": {
        "method": {
            "name": "fedbuff",
            "buffer": 1,
            "codec": {"name": "dense", "precision": "int8", "error_feedback": True},
        }
    },
    "stacked": {"method": {"name": "fedavg", "codec": {"name": "topk", "upload": 1605}}},
}


class StopError(Exception):
    """Ends a run; stands for a crash between two rounds."""


class StopAfter(run.Callback):
    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def on_round_end(self, record: dict[str, Any]) -> None:
        if record["round"] + 1 == self._rounds:
            raise StopError


def recipe_of(name: str, ingredients: Path, seed: int = 0) -> Recipe:
    changes = copy.deepcopy(METHODS[name])
    federation = {"seed": seed, "snapshot_every": 2}
    return recipe(ingredients, **{**changes, "federation": federation})


def carry_out(name: str, ingredients: Path, out: Path, rounds: int | None, seed: int = 0) -> None:
    """Carry a run out, or only so many of its rounds."""
    callbacks = [] if rounds is None else [StopAfter(rounds)]
    with suppress(StopError):
        run.start(recipe_of(name, ingredients, seed), out, callbacks)


def go(name: str, ingredients: Path, out: Path) -> None:
    """Begin a run, or resume the one that is there."""
    torch.set_num_threads(1)
    if (out / "recipe.toml").exists():
        run.resume(out)
    else:
        run.start(recipe_of(name, ingredients), out)


@dataclass(frozen=True)
class Subject:
    """A run, and what it must come to.

    Attributes:
        name: of the method, and how far the run is.
        folder: nobody changes it.
        neighbour: as far, of the same recipe with another seed.
        log: of the same run, undisturbed to its end.
        hashes: the model's at each version.
        committed: how many rounds metrics.jsonl knows in ``folder``.
    """

    name: str
    folder: Path
    neighbour: Path
    log: bytes
    hashes: list[str]
    committed: int


def subject(name: str, ingredients: Path, home: Path, rounds: int | None) -> Subject:
    """The run of a method, finished (None) or stopped after some rounds."""
    title = f"{name}, {'finished' if rounds is None else f'{rounds} rounds'}"
    folder, whole, neighbour = home / title, home / f"{name}, whole", home / f"{title}, neighbour"
    if not whole.exists():
        carry_out(name, ingredients, whole, None)
    carry_out(name, ingredients, folder, rounds)
    carry_out(name, ingredients, neighbour, rounds, seed=1)
    log = (whole / "updates.log").read_bytes()
    return Subject(title, folder, neighbour, log, hashes(whole), len(RunFolder(folder).metrics()))


def hashes(out: Path) -> list[str]:
    """Of the model at each version, by applying one update after another."""
    replica, _, _ = load_base(RunFolder(out))
    found = [replica.content_hash()]
    for payload in read_log(out / "updates.log"):
        replica.apply(decode(payload, Update))
        found.append(replica.content_hash())
    return found


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


@contextmanager
def models_in_memory() -> Iterator[None]:
    """Inside, a model is read from the disk once and copied from then on."""
    read: Callable[..., Any] = cache(loading.load_model)

    def load(*arguments: Any) -> Any:
        model, tokenizer = read(*arguments)
        return copy.deepcopy(model), tokenizer

    with ExitStack() as stack:
        for module in (assembly, replay, node_task):
            stack.enter_context(mock.patch.object(module, "load_model", load))
        yield
