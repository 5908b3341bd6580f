"""Every method, codec, aggregation rule and trainer there is, by the name a recipe calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from fullfed.config import SKETCH_RULE, LocalTable
from fullfed.data.examples import Example
from fullfed.errors import UserError
from fullfed.methods import fed_sb, fedavg, fedcybgd, fedkseed, fedprox, fedzo, ferret, lora
from fullfed.methods.aggregation import Aggregation, TrimmedMean, WeightedMean
from fullfed.methods.codecs.codec import Codec
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.sketch import Sketch, SketchOptions
from fullfed.methods.codecs.topk import TopK
from fullfed.methods.composition import Composition
from fullfed.methods.majority import MajorityVote
from fullfed.methods.robust import ClippedMean, CoordinateMedian, GeometricMedian, MultiKrum
from fullfed.methods.scopes import Adapters, Everything, LoraOptions, Scope
from fullfed.methods.setting import Setting
from fullfed.training.trainer import OWN, BroughtTraining, Trainer
from fullfed.training.transformers_trainers import (
    DpoTraining,
    SftTraining,
    TransformersTraining,
    check_local,
    check_preferences,
    check_trl_local,
)


@dataclass(frozen=True)
class MethodEntry:
    """A method as the catalogue shows it.

    Attributes:
        title, paper: for people.
        composition: scope x local work x codec x schedule, in words.
        options: the dataclass of the method's own options.
        build: makes the method for a federation from its options.
        codec: the codec table of a recipe that has none; None where the method has a codec of its
            own, and a recipe must not name another.
        learning_rate: where a search for the local learning rate starts; None for the recipe's,
            which is meant for gradients of every parameter.
        scope: from the recipe's seed and the options, which parameters train.
        aggregation: the rule of a recipe that names none, for a method with a codec of its own.

    Examples:
        >>> from fullfed.methods.catalogue import METHODS
        >>> METHODS["ferret"].paper
        'Shu et al. 2024, arXiv 2409.06277'
    """

    title: str
    paper: str
    composition: str
    options: type[Any]
    build: Callable[[Setting, Any], Composition]
    codec: Mapping[str, Any] | None = None
    learning_rate: float | None = None
    scope: Callable[[int, Any], Scope] = lambda seed, options: Everything()
    aggregation: str = "mean"


@dataclass(frozen=True)
class CodecEntry:
    """A codec as the catalogue shows it.

    Attributes:
        description: for people.
        options: the dataclass of its options, which may be the codec itself.
        build: makes it from the recipe's seed and the options.
        aggregation: the rule of a recipe that names none.

    Examples:
        >>> from fullfed.methods.catalogue import CODECS
        >>> CODECS["topk"].description
        'the largest numbers and where they are'
    """

    description: str
    options: type[Any]
    build: Callable[[int, Any], Codec]
    aggregation: str = "mean"


@dataclass(frozen=True)
class AggregationEntry:
    """An aggregation rule as the catalogue shows it; attributes as for ``CodecEntry``, but that
    ``build`` is given the options alone.

    Examples:
        >>> from fullfed.methods.catalogue import AGGREGATIONS
        >>> AGGREGATIONS["mean"].description
        'the mean, weighted by samples'
    """

    description: str
    options: type[Any]
    build: Callable[[Any], Aggregation]


@dataclass(frozen=True)
class TrainerEntry:
    """A trainer as the catalogue shows it.

    Attributes:
        description: for people.
        options: the dataclass of its options, which may be the trainer itself.
        build: makes it from the options.
        check: sees that it does what the recipe's table ``local`` asks; raises a UserError.
        check_examples: sees that it can learn from a client's examples; raises a UserError.

    Examples:
        >>> def train(model, dataset, context):
        ...     return {"loss": 0.0}  # it trains nothing
        >>> entry = fullfed.TrainerEntry("no training", dict, lambda options: train)
    """

    description: str
    options: type[Any]
    build: Callable[[Any], Trainer]
    check: Callable[[LocalTable], None] = lambda local: None
    check_examples: Callable[[Sequence[Example]], None] = lambda examples: None


Entry = TypeVar("Entry", MethodEntry, CodecEntry, AggregationEntry, TrainerEntry)

DENSE: Mapping[str, Any] = {"name": "dense"}

METHODS: dict[str, MethodEntry] = {
    "fedavg": MethodEntry(
        title="FedAvg",
        paper="McMahan et al. 2017, arXiv 1602.05629",
        composition="everything x first-order x dense x sampled cohort",
        options=fedavg.FedAvgOptions,
        build=fedavg.build,
        codec=DENSE,
    ),
    "fedprox": MethodEntry(
        title="FedProx",
        paper="Li et al. 2020, arXiv 1812.06127",
        composition="everything x first-order, proximal x dense x sampled cohort",
        options=fedprox.FedProxOptions,
        build=fedprox.build,
        codec=DENSE,
    ),
    "ferret": MethodEntry(
        title="Ferret",
        paper="Shu et al. 2024, arXiv 2409.06277",
        composition="everything x first-order x sketch x sampled cohort",
        options=ferret.FerretOptions,
        build=ferret.build,
        aggregation=SKETCH_RULE["name"],
    ),
    "fedkseed": MethodEntry(
        title="FedKSeed",
        paper="Qin et al. 2024, arXiv 2312.06353",
        composition="everything x zeroth-order x seeds and scalars x sampled cohort",
        options=fedkseed.FedKSeedOptions,
        build=fedkseed.build,
        learning_rate=1e-4,
    ),
    "fedkseed-pro": MethodEntry(
        title="FedKSeed-Pro",
        paper="Qin et al. 2024, arXiv 2312.06353",
        composition="everything x zeroth-order x seeds and scalars x sampled cohort",
        options=fedkseed.FedKSeedOptions,
        build=fedkseed.build_pro,
        learning_rate=1e-4,
    ),
    "fedcybgd": MethodEntry(
        title="FedCyBGD",
        paper="Wang et al. 2024, arXiv 2406.11187",
        composition="everything x first-order x dense, compressed x cycle of blocks",
        options=fedcybgd.FedCyBGDOptions,
        build=fedcybgd.build,
        codec={"name": "dense", "precision": "bfloat16", "error_feedback": True},
    ),
    "cyclic-ferret": MethodEntry(
        title="Cyclic Ferret",
        paper="no paper; see docs/methods/fedcybgd.md",
        composition="everything x first-order x sketch x cycle of blocks",
        options=fedcybgd.FedCyBGDOptions,
        build=fedcybgd.build,
        codec={"name": "sketch", "coordinates": 1024},
    ),
    "fedzo": MethodEntry(
        title="FedZO",
        paper="Fang et al. 2022, arXiv 2201.09531",
        composition="everything x zeroth-order, spheres x dense x sampled cohort",
        options=fedzo.FedZOOptions,
        build=fedzo.build,
        codec=DENSE,
        learning_rate=1e-4,
    ),
    "fedit": MethodEntry(
        title="FedIT",
        paper="Zhang et al. 2023, arXiv 2305.05644",
        composition="LoRA x first-order x dense x sampled cohort",
        options=LoraOptions,
        build=lora.build_fedit,
        codec=DENSE,
        scope=Adapters,
    ),
    "flora": MethodEntry(
        title="FLoRA",
        paper="Wang et al. 2024, arXiv 2409.05976",
        composition="LoRA, folded in x first-order x stacked x sampled cohort",
        options=LoraOptions,
        build=lora.build_flora,
        scope=lora.Folded,
    ),
    "ffa-lora": MethodEntry(
        title="FFA-LoRA",
        paper="Sun et al. 2024, arXiv 2403.12313",
        composition="LoRA, B only x first-order x dense x sampled cohort",
        options=LoraOptions,
        build=lora.build_ffa_lora,
        codec=DENSE,
        scope=lora.FrozenA,
    ),
    "fed-sb": MethodEntry(
        title="Fed-SB",
        paper="Singhal et al. 2025, arXiv 2502.15436",
        composition="LoRA, R between fixed factors x first-order x dense x sampled cohort",
        options=fed_sb.FedSBOptions,
        build=fed_sb.build,
        scope=fed_sb.scope,
    ),
}

CODECS: dict[str, CodecEntry] = {
    "dense": CodecEntry("every number, in 32, 16 or 8 bits", Dense, lambda seed, codec: codec),
    "sketch": CodecEntry(
        "coordinates on shared random directions", SketchOptions, Sketch, SKETCH_RULE["name"]
    ),
    "topk": CodecEntry("the largest numbers and where they are", TopK, lambda seed, codec: codec),
}

AGGREGATIONS: dict[str, AggregationEntry] = {
    "mean": AggregationEntry("the mean, weighted by samples", WeightedMean, lambda rule: rule),
    "trimmed-mean": AggregationEntry(
        "number by number, the mean without the smallest and the largest",
        TrimmedMean,
        lambda rule: rule,
    ),
    "median": AggregationEntry("number by number, the median", CoordinateMedian, lambda rule: rule),
    "krum": AggregationEntry(
        "the mean of the reports closest to their neighbours", MultiKrum, lambda rule: rule
    ),
    "geometric-median": AggregationEntry(
        "the point closest to all reports", GeometricMedian, lambda rule: rule
    ),
    "clipped-mean": AggregationEntry(
        "the mean of changes, long ones counting less", ClippedMean, lambda rule: rule
    ),
    "majority-vote": AggregationEntry(
        "of one-bit coordinates, the sign that most say", MajorityVote, lambda rule: rule
    ),
}


TRAINERS: dict[str, TrainerEntry] = {
    "transformers": TrainerEntry(
        "transformers.Trainer",
        TransformersTraining,
        lambda trainer: trainer,
        check_local,
    ),
    "sft": TrainerEntry("TRL's SFTTrainer", SftTraining, lambda trainer: trainer, check_trl_local),
    "dpo": TrainerEntry(
        "TRL's DPOTrainer, on preferences",
        DpoTraining,
        lambda trainer: trainer,
        check_trl_local,
        check_preferences,
    ),
    OWN: TrainerEntry(
        "what was given to fullfed.run, or what a node's owner has brought",
        BroughtTraining,
        lambda trainer: trainer,
    ),
}


def register_method(name: str, entry: MethodEntry) -> None:
    """Let recipes name a method from outside of fullfed: ``method.name``.

    A process must have called this before it reads such a recipe. A package that is installed
    on every machine of a federation can have it called everywhere: it names a function that
    registers what it has as an entry point of the group ``fullfed``.

    Raises:
        UserError: there is one of this name already.

    Examples:
        >>> from dataclasses import make_dataclass
        >>> from fullfed.methods.composition import averaging
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
