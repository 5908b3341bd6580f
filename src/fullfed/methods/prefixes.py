"""Keys and values that every layer's attention finds before those of the tokens (P-tuning v2: Liu
et al., arXiv 2110.07602; prefix tuning: Li and Liang, arXiv 2101.00190).

    attention of layer l:    softmax(q [P_l^K; K]^T / sqrt(width of a head)) [P_l^V; V]

P_l^K and P_l^V have n rows, and are what trains; the model itself is frozen. They stand where the
keys and values of n earlier tokens would stand in a cache, so tokens begin at position n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from fullfed.errors import UserError
from fullfed.methods.virtual_tokens import take_out, take_room
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.training.layers import find_reader

_MODULE = "prefixes"
_SPREAD = 0.02  # standard deviation of a prefix's first numbers, as published


class Prefixes(nn.Module):
    """Puts the prefixes into the cache from which a model's layers read.

    Args:
        layers: each layer's, float32, (2, n, width): keys, then values; all heads' side by side.
        heads: how many of keys and values a layer has.
    """

    def __init__(self, layers: list[Tensor], heads: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(layer) for layer in layers)
        self._heads = heads

    def of_layer(self, number: int, samples: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, float32, (samples, heads, n, width of a head)."""
        layer: Tensor = self.layers[number]
        split = layer.view(2, layer.shape[1], self._heads, -1).transpose(1, 2)
        keys, values = split.unsqueeze(1).expand(-1, samples, -1, -1, -1)
        return keys, values

    def before(
        self, reader: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A hook before the layers' forward pass.

        Who brings a cache gets the prefixes in it once, with what comes after them.
        """
        changed, count = dict(kwargs), self.layers[0].shape[1]
        ids = args[0] if args else changed.get("input_ids")
        given: Tensor = changed["inputs_embeds"] if ids is None else ids
        past = changed.get("past_key_values")
        if past is None:
            changed["past_key_values"] = PrefixCache(self)
        elif past.get_seq_length() == 0:
            for number in range(len(self.layers)):
                own = self.of_layer(number, len(given))
                past.update(*(t.to(reader.dtype) for t in own), number)
        mask, positions = changed.get("attention_mask"), changed.get("position_ids")
        if mask is not None:
            changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        if positions is not None:
            changed["position_ids"] = positions + count
        return args, changed


class PrefixCache(Cache):
    """Holds the prefixes and nothing else, for a pass that keeps no cache: gradients reach them,
    and a layer that is computed again finds the same."""

    def __init__(self, prefixes: Prefixes) -> None:
        layers: list[Any] = [DynamicLayer() for _ in prefixes.layers]  # type: ignore[no-untyped-call]
        super().__init__(layers=layers)
        self._prefixes = prefixes

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._prefixes.of_layer(layer_idx, len(key_states))
        keys, values = keys.to(key_states.dtype), values.to(value_states.dtype)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        count: int = self._prefixes.layers[0].shape[1]
        return count

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


@dataclass(frozen=True)
class PrefixesAlone:
    """Every layer's prefix changes, and nothing else does.

    Attributes:
        seed: the recipe's; the first prefixes follow from it.
        tokens: n.
    """

    seed: int
    tokens: int

    def attach(self, model: PreTrainedModel) -> None:
        """
        Raises:
            UserError: the prefixes would leave no room in the model's context, or its layers do not
                all keep keys and values of all tokens before.
        """
        config = model.config.get_text_config()
        _check(model)
        take_room(model, self.tokens, "method.prefix_tokens")
        heads, width = _heads(config)
        shape, device = (2, self.tokens, heads * width), model.device
        layers = range(config.num_hidden_layers)
        started = [initial_prefix(self.seed, number, shape).to(device) for number in layers]
        prefixes = Prefixes(started, heads)
        model.add_module(_MODULE, prefixes)
        find_reader(model).register_forward_pre_hook(prefixes.before, with_kwargs=True)

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {n: p for n, p in model.named_parameters() if n.startswith(f"{_MODULE}.")}

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return self.trained(model)

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        """Save the prefixes where ``PeftModel.from_pretrained`` loads them, and leave the base."""
        prefixes: Any = model.get_submodule(_MODULE)
        save(model, [layer.detach() for layer in prefixes.layers], folder)
        take_out(model, _MODULE, self.tokens)


def initial_prefix(seed: int, layer: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """A layer's prefix at version 0: uniform numbers of the published standard deviation.

    Returns:
        float32, on the CPU, the same on every machine.
    """
    drawn = uniforms(Stream(seed, Purpose.PREFIX, block=layer), math.prod(shape))
    numbers = ((2 * drawn - 1) * (math.sqrt(3) * _SPREAD)).astype(np.float32)
    return torch.from_numpy(numbers).reshape(shape)


def save(model: PreTrainedModel, layers: list[Tensor], folder: Path) -> None:
    """
    Args:
        layers: each one's prefix, as ``Prefixes`` has it.

    Raises:
        UserError: PEFT is not installed.
    """
    try:
        from peft import PrefixTuningConfig
    except ImportError as error:
        raise UserError(
            'prefixes are saved by peft; install it with: pip install "fullfed[lora]".'
        ) from error
    heads, width = _heads(model.config.get_text_config())
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=layers[0].shape[1],
        token_dim=heads * width,
        num_transformer_submodules=1,
        num_attention_heads=heads,
        num_layers=len(layers),
        encoder_hidden_size=heads * width,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    # A row a token: the keys of the first layer, its values, the keys of the second, ...
    rows = torch.cat([half for layer in layers for half in layer], dim=1).cpu().contiguous()
    path = folder / "adapter_model.safetensors"
    safetensors.torch.save_file({"prompt_embeddings": rows}, path, {"format": "pt"})


def _heads(config: Any) -> tuple[int, int]:
    """How many heads of keys and values a layer has, and the width of one."""
    queries: int = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    return heads, width


def _check(model: PreTrainedModel) -> None:
    """See that a cache of a model is keys and values of all earlier tokens, layer by layer."""
    config = model.config.get_text_config()
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if not model.can_generate() or kinds != {DynamicLayer} or hasattr(config, "kv_lora_rank"):
        raise UserError(
            "model.path: prefixes need a causal model whose layers all attend to all earlier "
            "tokens; take another model, or another method, such as fedit."
        )
