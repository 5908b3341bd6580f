"""Local optimizers: those of ``torch.optim``, by name, with their arguments checked."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fullfed.config import LocalTable
from fullfed.errors import UserError

# A step may call for the loss again (LBFGS), or wants gradients that no language model has.
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")
# What a recipe says by keys of their own, and what is about how torch computes, not what.
_OWN_KEYS = ("lr", "momentum", "weight_decay")
_TORCHS = ("self", "params", "foreach", "fused", "capturable", "differentiable", "maximize")
_MATRICES_ONLY = ("Muon",)

CLASSES: Mapping[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and name not in _UNFIT
}


def check_optimizer(local: LocalTable) -> None:
    """
    Raises:
        UserError: there is no optimizer of this name, or it does not take the recipe's arguments.
    """
    weight = torch.zeros(2, 2)
    try:
        optimizer = _make(local, [weight], fused=False)
        for _ in range(2):  # some arguments are first looked at in a step, or in the second
            weight.grad = torch.ones(2, 2)
            optimizer.step()
    except UserError:
        raise
    except Exception as error:  # torch lets through what then fails in any way
        raise _refused(_class(local), error) from error


def normalises(local: LocalTable) -> bool:
    """Whether the optimizer divides by the size of gradients, so that every parameter changes about
    as much as any other; all of torch's do, but for gradient descent and its averages."""
    return local.optimizer.lower() not in ("sgd", "asgd")


def make_optimizers(
    local: LocalTable, parameters: Mapping[str, Tensor], hidden: Collection[str], fused: bool
) -> dict[str, Optimizer]:
    """The optimizer of every parameter, by the parameter's name; several parameters share one.

    Muon (Jordan et al. 2024) orthogonalises the changes of hidden layers' matrices. All else
    (embeddings, the output layer, norms, biases) is AdamW's, at the same learning rate; so that
    one rate serves both, Muon's steps get the size of AdamW's (``adjust_lr_fn``) unless
    ``local.arguments`` says otherwise.

    Args:
        local: the recipe's table.
        parameters: to train, by name.
        hidden: the names of parameters in the model's layers.
        fused: take torch's fused kernels, which need no memory of their own, where there are any.
    """
    groups = [(list(parameters), local)]
    if _class(local).__name__ in _MATRICES_ONLY:
        matrices = [name for name, p in parameters.items() if name in hidden and p.ndim == 2]
        rest = [name for name in parameters if name not in matrices]
        plain = local.model_copy(update={"optimizer": "adamw", "arguments": {}, "momentum": None})
        groups = [(matrices, local), (rest, plain)]
    made: dict[str, Optimizer] = {}
    for names, table in groups:
        if names:
            made |= dict.fromkeys(names, _make(table, [parameters[n] for n in names], fused))
    return {name: made[name] for name in parameters}


def _class(local: LocalTable) -> type[Optimizer]:
    try:
        return CLASSES[local.optimizer.lower()]
    except KeyError:
        known = ", ".join(kind.__name__ for kind in CLASSES.values())
        raise UserError(
            f"local.optimizer: there is no optimizer {local.optimizer!r}; choose among {known}."
        ) from None


def _make(local: LocalTable, tensors: list[Tensor], fused: bool) -> Optimizer:
    kind = _class(local)
    try:
        return kind(tensors, **_arguments(local, kind, fused))
    except (TypeError, ValueError) as error:
        raise _refused(kind, error) from error


def _refused(kind: type[Optimizer], error: Exception) -> UserError:
    return UserError(f"local.arguments: {kind.__name__} refuses them ({error}).")


def _arguments(local: LocalTable, kind: type[Optimizer], fused: bool) -> dict[str, Any]:
    """What the optimizer is called with, beside what it is to train."""
    takes = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"lr": local.learning_rate}
    for name, given in (("momentum", local.momentum), ("weight_decay", local.weight_decay)):
        if name in takes and given is not None:
            arguments[name] = given
        elif given:
            raise UserError(f"local.{name}: {kind.__name__} takes none; leave it out.")
    for name, value in local.arguments.items():
        if name in _OWN_KEYS:
            key = "learning_rate" if name == "lr" else name
            raise UserError(f"local.arguments.{name}: say it by the key local.{key}.")
        if name not in takes or name in _TORCHS:
            known = [n for n in takes if n not in (*_OWN_KEYS, *_TORCHS)]
            raise UserError(
                f"local.arguments.{name}: {kind.__name__} takes no such argument; "
                f"choose among {', '.join(known)}."
            )
        arguments[name] = tuple(value) if isinstance(value, list) else value
    if "adjust_lr_fn" in takes:
        arguments.setdefault("adjust_lr_fn", "match_rms_adamw")
    if fused and "fused" in takes:
        arguments["fused"] = True
    return arguments
