"""How the catalogue shows a method, a codec, an aggregation rule or a trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fullfed.config import LocalTable
from fullfed.data.examples import Example
from fullfed.methods.aggregation import Aggregation
from fullfed.methods.codecs.codec import Codec
from fullfed.methods.composition import Composition
from fullfed.methods.scopes import Everything, Scope
from fullfed.methods.setting import Setting
from fullfed.training.trainer import Trainer


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
