"""What soft prompts and prefixes have in common: they stand before a model's tokens, in hooks."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fullfed.errors import UserError
from fullfed.training.layers import find_reader

_CONTEXT = "max_position_embeddings"


def take_room(model: PreTrainedModel, tokens: int, option: str) -> None:
    """Leave a model's context to samples but for so many tokens.

    Args:
        option: the recipe's key that says how many, for the error.

    Raises:
        UserError: there would be no room left.
    """
    config: Any = model.config.get_text_config()
    context = getattr(config, _CONTEXT, None)
    if context is None:
        return
    if tokens >= context:
        raise UserError(
            f"{option}: {tokens} are not fewer than the {context} tokens that the model reads at "
            "once; lower it."
        )
    setattr(config, _CONTEXT, context - tokens)


def take_out(model: PreTrainedModel, name: str, tokens: int) -> None:
    """Remove a model's module of this name, the hooks that it has on what calls the layers, and
    give back the room that it took."""
    module, reader = model.get_submodule(name), find_reader(model)
    for hooks in (reader._forward_pre_hooks, reader._forward_hooks):
        for number in [n for n, hook in hooks.items() if _is_of(hook, module)]:
            del hooks[number]
    delattr(model, name)
    config: Any = model.config.get_text_config()
    if getattr(config, _CONTEXT, None) is not None:
        setattr(config, _CONTEXT, getattr(config, _CONTEXT) + tokens)


def _is_of(hook: Any, module: nn.Module) -> bool:
    return getattr(hook, "__self__", None) is module
