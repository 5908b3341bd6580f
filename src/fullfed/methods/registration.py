"""Methods, codecs, aggregation rules and trainers from outside of fullfed join the catalogue."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from fullfed.errors import UserError
from fullfed.methods.catalogue import AGGREGATIONS, CODECS, METHODS, TRAINERS
from fullfed.methods.entries import AggregationEntry, CodecEntry, MethodEntry, TrainerEntry

Entry = TypeVar("Entry", MethodEntry, CodecEntry, AggregationEntry, TrainerEntry)


def register_method(name: str, entry: MethodEntry) -> None:
    """Let recipes name a method from outside of fullfed: ``method.name``.

    A process must have called this before it reads such a recipe. A package that is installed
    on every machine of a federation can have it called everywhere: it names a function that
    registers what it has as an entry point of the group ``fullfed``.

    Raises:
        UserError: there is one of this name already.

    Examples:
        >>> from dataclasses import make_dataclass
        >>> from fullfed.methods.averaging import averaging
        >>> def build(setting, options):
        ...     return averaging(setting, step=0.5)  # FedAvg that goes half of the way
        >>> entry = fullfed.MethodEntry(
        ...     title="Half-way",
        ...     paper="none; an example",
        ...     composition="everything x first-order x dense x sampled cohort",
        ...     options=make_dataclass("NoOptions", []),
        ...     build=build,
        ...     codec={"name": "dense"},
        ... )
        >>> fullfed.register_method("half-way", entry)
        >>> run = fullfed.run("first.toml", overrides=["method.name=half-way"])
        >>> run["method"]
        'half-way'
    """
    _register("method", METHODS, name, entry)


def register_codec(name: str, entry: CodecEntry) -> None:
    """Let recipes name a codec from outside of fullfed: ``codec.name``; see ``register_method``.

    Raises:
        UserError: there is one of this name already.

    Examples:
        >>> from dataclasses import make_dataclass
        >>> from fullfed.methods.codecs.dense import Dense
        >>> def build(seed, options):
        ...     return Dense("int8")
        >>> entry = fullfed.CodecEntry("a byte a number", make_dataclass("NoOptions", []), build)
        >>> fullfed.register_codec("bytes", entry)
        >>> fullfed.run("first.toml", overrides=["method.name=fedavg", "codec.name=bytes"]).bytes_up
        3938780
    """
    _register("codec", CODECS, name, entry)


def register_aggregation(name: str, entry: AggregationEntry) -> None:
    """Let recipes name an aggregation rule from outside of fullfed: ``aggregation.name``; see
    ``register_method``.

    Raises:
        UserError: there is one of this name already.

    Examples:
        >>> from dataclasses import make_dataclass
        >>> from fullfed.methods.aggregation import WeightedMean
        >>> def build(options):
        ...     return WeightedMean("equal")  # every client counts as much as another
        >>> options = make_dataclass("NoOptions", [])
        >>> entry = fullfed.AggregationEntry("the plain mean", options, build)
        >>> fullfed.register_aggregation("plain-mean", entry)
    """
    _register("aggregation rule", AGGREGATIONS, name, entry)


def register_trainer(name: str, entry: TrainerEntry) -> None:
    """Let recipes name a trainer from outside of fullfed: ``trainer.name``; see
    ``register_method``.

    Raises:
        UserError: there is one of this name already.

    Examples:
        >>> from dataclasses import make_dataclass
        >>> def train(model, dataset, context):
        ...     return {"loss": 0.0}  # it trains nothing
        >>> options = make_dataclass("NoOptions", [])
        >>> entry = fullfed.TrainerEntry("no training", options, lambda options: train)
        >>> fullfed.register_trainer("idle", entry)
    """
    _register("trainer", TRAINERS, name, entry)


def _register(kind: str, table: dict[str, Entry], name: str, entry: Entry) -> None:
    if name in table:
        raise UserError(f"{name}: there is a {kind} of this name already; take another name.")
    table[name] = entry


@cache
def load_plugins() -> None:
    """Call what installed packages name as entry points of the group ``fullfed``, once."""
    for point in entry_points(group="fullfed"):
        point.load()()
