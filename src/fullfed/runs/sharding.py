"""Which runs a node of several devices can take part in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.methods.codecs.sketch_options import SketchOptions
from fullfed.training.trainer import Trainer

# What they do to an element depends on no other element.
_OPTIMIZERS = ("sgd", "adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta")
_ALONE = "a node of several devices"


def check_sharded(recipe: Recipe, sent: Any, trainer: Trainer | None) -> None:
    """
    Args:
        sent: the options that say how changes are sent: the codec's, or the method's own.
        trainer: the node's own.

    Raises:
        UserError: the recipe asks for what cannot be done where each device has its rows of the
            parameters.
    """
    averages = recipe.method.name in ("ferret", "fedavg")
    if not averages or not isinstance(sent, SketchOptions) or sent.basis != "sign":
        raise UserError(
            f"method.name: {_ALONE} takes part in ferret, and in fedavg with codec.name = 'sketch' "
            f"(basis 'sign'); {recipe.method.name} as the run has it needs one device."
        )
    if recipe.trainer is not None or trainer is not None:
        raise UserError(f"trainer: {_ALONE} trains by the recipe's optimizer; leave it out.")
    if recipe.privacy is not None:
        raise UserError(f"privacy: {_ALONE} adds no noise and takes part in no secure sums.")
    if recipe.local.optimizer.lower() not in _OPTIMIZERS:
        raise UserError(
            f"local.optimizer: {_ALONE} takes {', '.join(_OPTIMIZERS)}; "
            f"{recipe.local.optimizer} looks at whole matrices."
        )
    if recipe.local.optimizer_state == "kept":
        raise UserError(f"local.optimizer_state: {_ALONE} keeps none between visits.")
    if recipe.memory.optimizer_in_backward:
        raise UserError(f"memory.optimizer_in_backward: {_ALONE} has sharded gradients; leave it.")


def check_shards(model: nn.Module) -> None:
    """
    Raises:
        UserError: the model cannot be held in shards as replicas hold it.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"model.dtype: {_ALONE} holds float32, and {name} is {parameter.dtype}; the run's "
                "recipe is to say model.dtype = 'float32' (and local.precision = 'bfloat16' to "
                "compute in 16 bits)."
            )
        if parameter.dim() == 0:
            raise UserError(f"{name} has no rows; {_ALONE} cannot divide it.")
