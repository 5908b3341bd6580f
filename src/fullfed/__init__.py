"""Federated fine-tuning of every parameter of a language model, in kilobytes a round.

    import fullfed

    run = fullfed.run("recipe.toml")            # or a dict of the recipe's tables
    run["loss"], run.bytes_up                   # what came of it
    model, tokenizer = run.model()              # the trained model, for transformers

Runs: ``run`` carries out a recipe, with models and datasets of your own if you like; ``resume``
carries on a run that was stopped; ``RunResult`` is a run that has ended; ``evaluate`` measures a
model; ``export`` writes a run's model for transformers, and ``report`` a page about the run. A
``Callback`` is told how a run gets on; ``TensorBoard`` and ``WeightsAndBiases`` are two.

Recipes: ``load_recipe`` makes a ``Recipe`` of a TOML file or nested dicts. ``estimate`` makes an
``Estimate``: what a recipe costs in bytes, steps and memory, before anything is trained. ``check``
makes a ``Check``: whether it can be carried out here, its samples, and how long it takes.

Beyond one run: ``compare`` carries out several methods on one recipe; ``simulate`` a recipe in
Flower's simulation; ``sketch`` has the random projections alone.

Training of your own: ``run(..., local=train)`` has clients trained by a function that is given a
model, a ``ClientDataset`` and a ``VisitContext``, and returns a ``LocalResult`` or a dict with the
loss. A ``Client`` is a node of a federation in a program with a loop of its own, which it hands one
``ClientVisit`` after another.

Extensions: ``register_method``, ``register_codec``, ``register_aggregation``, ``register_trainer``
let recipes name your own, described by a ``MethodEntry``, ``CodecEntry``, ``AggregationEntry`` or
``TrainerEntry``.

What is wrong with a recipe, data or a folder is a ``UserError`` of one sentence.

These names are for users and stay; everything else may move. They are imported when they are first
used, so that ``import fullfed`` costs nothing. docs/python.md has more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fullfed import sketch
    from fullfed.api import compare, evaluate, export, report, resume, run, simulate
    from fullfed.config import Recipe
    from fullfed.data.client_dataset import ClientDataset
    from fullfed.deployment.client import Client, ClientVisit
    from fullfed.errors import UserError
    from fullfed.methods.entries import AggregationEntry, CodecEntry, MethodEntry, TrainerEntry
    from fullfed.methods.registration import (
        register_aggregation,
        register_codec,
        register_method,
        register_trainer,
    )
    from fullfed.preflight.check import Check, check
    from fullfed.recipe_file import load_recipe
    from fullfed.runs.callback import Callback
    from fullfed.runs.estimate import Estimate, estimate
    from fullfed.runs.result import RunResult
    from fullfed.runs.tracking import TensorBoard, WeightsAndBiases
    from fullfed.training.trainer import LocalResult, VisitContext

__version__ = "0.1.0"

__all__ = [
    "AggregationEntry",
    "Callback",
    "Check",
    "Client",
    "ClientDataset",
    "ClientVisit",
    "CodecEntry",
    "Estimate",
    "LocalResult",
    "MethodEntry",
    "Recipe",
    "RunResult",
    "TensorBoard",
    "TrainerEntry",
    "UserError",
    "VisitContext",
    "WeightsAndBiases",
    "check",
    "compare",
    "estimate",
    "evaluate",
    "export",
    "load_recipe",
    "register_aggregation",
    "register_codec",
    "register_method",
    "register_trainer",
    "report",
    "resume",
    "run",
    "simulate",
    "sketch",
]

_HOMES = {
    **dict.fromkeys(
        ("compare", "evaluate", "export", "report", "resume", "run", "simulate"), "fullfed.api"
    ),
    **dict.fromkeys(
        ("AggregationEntry", "CodecEntry", "MethodEntry", "TrainerEntry"),
        "fullfed.methods.entries",
    ),
    **dict.fromkeys(
        ("register_aggregation", "register_codec", "register_method", "register_trainer"),
        "fullfed.methods.registration",
    ),
    **dict.fromkeys(("Check", "check"), "fullfed.preflight.check"),
    **dict.fromkeys(("Estimate", "estimate"), "fullfed.runs.estimate"),
    **dict.fromkeys(("Client", "ClientVisit"), "fullfed.deployment.client"),
    **dict.fromkeys(("TensorBoard", "WeightsAndBiases"), "fullfed.runs.tracking"),
    **dict.fromkeys(("LocalResult", "VisitContext"), "fullfed.training.trainer"),
    "Callback": "fullfed.runs.callback",
    "ClientDataset": "fullfed.data.client_dataset",
    "Recipe": "fullfed.config",
    "RunResult": "fullfed.runs.result",
    "UserError": "fullfed.errors",
    "load_recipe": "fullfed.recipe_file",
}


def __getattr__(name: str) -> Any:
    if name == "sketch":
        return import_module("fullfed.sketch")
    if name not in _HOMES:
        raise AttributeError(f"module 'fullfed' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
