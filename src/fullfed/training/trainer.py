"""Training that users bring: what a visit hands to their code, and what it takes from it."""

from __future__ import annotations

import copy
import math
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.client_dataset import ClientDataset
from fullfed.errors import UserError
from fullfed.training.first_order import Improvement, TrainingError
from fullfed.training.layers import training_only

OWN = "own"  # the name of a trainer that whoever carries a recipe out brings


@dataclass(frozen=True)
class VisitContext:
    """What a visit is about, for the code that trains in it.

    Examples:
        >>> def look(model, dataset, context):
        ...     print(context.round, context.rounds, context.local.learning_rate)
        ...     return {"loss": 0.0}
        >>> alone = ["federation.clients_per_round=1"]
        >>> run = fullfed.run("first.toml", local=look, overrides=alone)
        0 2 0.3
        1 2 0.3

    Attributes:
        client: the client's number.
        round: from 0.
        rounds: how many there are to be.
        seed: of this visit, below 2**31. Python's, NumPy's and torch's own generators begin from it
            while the trainer runs.
        local: the recipe's table, with the learning rate that its schedule has for the round.
        memory: the recipe's table.
        tokenizer: the model's.
        log: to be told the loss of every step, for progress.
    """

    client: int
    round: int
    rounds: int
    seed: int
    local: LocalTable
    memory: MemoryTable
    tokenizer: PreTrainedTokenizerBase
    log: Callable[[float], None]


@dataclass(frozen=True)
class LocalResult:
    """What a trainer says of its visit.

    Examples:
        >>> def train(model, dataset, context):
        ...     return fullfed.LocalResult(loss=0.5, metrics={"steps": 0})
        >>> run = fullfed.run("first.toml", local=train)
        >>> run.history[0]["train_loss"]
        0.5

    Attributes:
        loss: the mean over the visit; what the report tells the server.
        metrics: whatever else there is to say; it stays with the client.
        measure: computes, without gradients, the loss that was trained on some samples of the
            visit, for the model as it then is. An automatic server step calls it a few times. Where
            it is None, the loss of answers on the visit's first batch is taken.
    """

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    measure: Callable[[], float] | None = None


class Trainer(Protocol):
    """A client's local work, as a function or an object of the user's."""

    def __call__(
        self, model: PreTrainedModel, dataset: ClientDataset, context: VisitContext, /
    ) -> LocalResult | Mapping[str, float]:
        """Train the parameters of ``model`` that require gradients, in place.

        The model is the visit's to do with as it likes, but that its parameters stay the same
        tensors, and that those without gradients stay as they are.

        Returns:
            the result, or a table with at least the mean ``loss``.
        """


@dataclass(frozen=True)
class BroughtTraining:
    """Stands in a recipe for what whoever carries it out brings."""

    def __call__(
        self, model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
    ) -> LocalResult:
        raise UserError(
            "trainer.name: clients train with a function of their owners'; on a node name it in "
            'node.toml (trainer = "module:function").'
        )


def named_trainer(name: str) -> Trainer:
    """The function or object that "module:name" names.

    Raises:
        UserError: there is none.
    """
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"trainer: {name} cannot be imported ({error}); write module:function, of a module "
            "that Python finds."
        ) from error
    if not callable(found):
        raise UserError(f"trainer: {name} is no function; name one.")
    return cast(Trainer, found)


def train_with(
    trainer: Trainer,
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    dataset: ClientDataset,
    context: VisitContext,
    exact: Mapping[str, Tensor],
) -> Improvement:
    """Have a trainer train ``parameters``, in place.

    What it does to the model besides (wrappers, hooks, modes) is gone afterwards.

    Args:
        exact: float32, by name: what parameters in 16 bits are rounded from. What the trainer adds
            to a parameter is added to it.

    Raises:
        TrainingError: it returned no finite loss, or changed what it must not.
    """
    trained = list(parameters.values())
    before = {name: parameters[name].detach().clone() for name in exact}
    shown, storage = _view(model), {p: p.data for p in model.parameters()}
    frozen = _prints(model, parameters)
    try:
        with training_only(model, trained), _seeded(context.seed):
            result = _result(trainer(shown, dataset, context))
        _check_tensors(model, shown)
        _put_back(model, storage)
        changed = [
            name for name, seen in _prints(model, parameters).items() if seen != frozen[name]
        ]
        if changed:
            raise TrainingError(
                f"the trainer changed {changed[0]}, which this visit does not train; leave what "
                "requires no gradient as it is"
            )
    finally:
        for parameter, values in storage.items():
            parameter.data, parameter.grad = values, None
    moved = {
        name: value + (parameters[name].detach().float() - before[name].float())
        for name, value in exact.items()
    }
    return Improvement(
        [result.loss],
        exact=moved,
        measure=result.measure,
        metrics=result.metrics,
        first_known=False,
    )


def _view(model: PreTrainedModel) -> PreTrainedModel:
    """Another object of the model, with the same tensors."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def _prints(model: PreTrainedModel, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Sums of the bytes of each tensor that is to stay as it is, by which a change shows."""
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: _sums(tensor) for name, tensor in named if name not in parameters}


def _sums(tensor: Tensor) -> tuple[int, ...]:
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return tuple(int(octets[start::3].sum(dtype=torch.int64)) for start in range(3))


def _result(returned: LocalResult | Mapping[str, float]) -> LocalResult:
    if isinstance(returned, Mapping) and "loss" in returned:
        numbers = {name: _number(name, value) for name, value in returned.items()}
        returned = LocalResult(numbers.pop("loss"), numbers)
    if not isinstance(returned, LocalResult):
        raise TrainingError("the trainer returned no loss; return {'loss': ...}, of the visit")
    if not math.isfinite(returned.loss):
        raise TrainingError("the training loss is not finite; lower local.learning_rate")
    return returned


def _number(name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TrainingError(
            f"the trainer returned {name!r} as {type(value).__name__}; return numbers"
        )
    return float(value)


def _check_tensors(model: PreTrainedModel, shown: PreTrainedModel) -> None:
    """See that the trained parameters are the model's own, tied ones in each of their places."""
    own = dict(shown.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if own.get(name) is not parameter:
            raise TrainingError(
                f"the trainer put another tensor in the place of {name}; train the model's own"
            )


def _put_back(model: PreTrainedModel, storage: Mapping[nn.Parameter, Tensor]) -> None:
    """Have the parameters' values where they were before: a trainer may have moved them."""
    for name, parameter in model.named_parameters():
        values = storage[parameter]
        if (parameter.shape, parameter.dtype) != (values.shape, values.dtype):
            raise TrainingError(
                f"the trainer made {name} {parameter.dtype} of shape {tuple(parameter.shape)}; "
                "leave the model's types and sizes as they are, and use torch.autocast"
            )
        if parameter.data_ptr() != values.data_ptr():
            values.copy_(parameter.data)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators begin from a seed; afterwards they are where they were."""
    python, numpy_ = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_)
