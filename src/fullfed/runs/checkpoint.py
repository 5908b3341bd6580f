"""Whether a checkpoint is a plain causal language model, the only kind that is tuned in full here.

What transformers loads without a word may be something else: an adapter over another model, weights
in few bits, the decoder of an encoder-decoder, a model with a random head, one that looks ahead, or
one that asks for losses of its own. Training and export would each do half of the work on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.peft_utils import find_adapter_config_file

from fullfed.data.batches import Batch, collate
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.training.layers import find_layers
from fullfed.training.loss import answer_logits, answer_loss_value, router_loss_weight
from fullfed.training.memory import InputCache

# How far two ways to one number may lie apart, relative to it.
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE = 0.05  # in 16 bits


def read_config(source: str, path: str) -> PretrainedConfig:
    """The configuration of a plain causal language model; nothing but small files is read for it.

    Args:
        source: what transformers takes. path: what the user calls it.

    Raises:
        UserError: it is of some other kind.
    """
    if find_adapter_config_file(source) is not None:
        raise UserError(
            f"{path}: this is a PEFT adapter, not a model; merge it into its base model "
            "(AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload(), then "
            "save_pretrained) and name the merged one."
        )
    raw, _ = PretrainedConfig.get_config_dict(source)
    if "auto_map" in raw and raw.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"{path}: the model needs code that comes with it, which is never run; take a model "
            "whose architecture transformers has."
        )
    config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if any(getattr(c, "quantization_config", None) for c in (config, config.get_text_config())):
        raise UserError(
            f"{path}: the model's weights are quantised, and all of them are to be trained; take "
            "the checkpoint that it was made from."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{path}: this is an encoder-decoder ({config.model_type}); take a causal language "
            "model."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{path}: {config.model_type} is no causal language model; take one.")
    return config


def check_weights(model: PreTrainedModel, found: Mapping[str, Any], path: str) -> None:
    """See that the checkpoint held the model's weights, all of them, and no other model's.

    Args:
        found: what ``from_pretrained`` tells of loading.

    Raises:
        UserError: some would be random, or some that it holds would be lost.
    """
    missing, further = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise UserError(
            f"{path}: the checkpoint lacks {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ", which would be random; take a checkpoint of the whole language model."
        )
    saved = model.config.architectures or [type(model).__name__]
    if further and type(model).__name__ not in saved:
        raise UserError(
            f"{path}: this is a {saved[0]}, and its {further[0]} has no place in a causal language "
            "model; take a checkpoint of one."
        )


def check_behaviour(model: PreTrainedModel, path: str) -> None:
    """See on a few tokens that the model looks back only, and that its loss is the one we compute.

    Raises:
        UserError: it looks ahead, or its configuration asks for a loss that is not known here.
    """
    tolerance = _TOLERANCES.get(model.dtype, _COARSE)
    batch = _probe(model)
    with torch.no_grad():
        whole, begun = (
            model(input_ids=batch.input_ids[:1, :length], use_cache=False).logits[0, :5].float()
            for length in (batch.input_ids.shape[1], 5)
        )
        own = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            use_cache=False,
        ).loss
    if not _alike(whole, begun, tolerance):
        raise UserError(
            f"{path}: what this model predicts depends on what comes after; take a causal language "
            "model."
        )
    ours = answer_loss_value(model, batch)
    if abs(float(own) - ours) > tolerance * abs(ours):
        raise UserError(
            f"{path}: the model's own loss of a probe is {float(own):.4f} and the cross-entropy of "
            f"its answers, with the losses that are known here, {ours:.4f}; switch the further "
            "loss off in its config.json, or take another model."
        )


def check_passing_over(
    model: PreTrainedModel, key: str, instead: str = "leave the key out"
) -> None:
    """See that a layer hands on its hidden states and nothing else, so that some can be left out.

    Args:
        key: of the recipe, which leaves layers out.
        instead: what to do where it cannot.

    Raises:
        UserError: it hands on more.
    """
    _, layers = find_layers(model)
    more = UserError(
        f"{key}: the layers of this model ({type(model).__name__}) hand on more than their hidden "
        f"states, so none can be left out; {instead}."
    )
    if router_loss_weight(model):
        raise more
    if len(layers) < 2 or model.device.type == "meta":  # a node's, which the server has checked
        return
    batch, outputs = _probe(model), []
    cache = InputCache(list(layers), len(layers) - 1, 1 << 30)
    with torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            hook = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
            hooks.callback(hook.remove)
        with cache.serving(batch):
            plain, _ = answer_logits(model, batch)
        if not all(isinstance(output, torch.Tensor) for output in outputs):
            raise more
        try:
            with cache.serving(batch):
                served, _ = answer_logits(model, batch)
        except Exception as error:  # it looks for what the others would have left for it
            raise more from error
    if not _alike(plain, served, _TOLERANCES.get(model.dtype, _COARSE)):
        raise more


def _probe(model: PreTrainedModel) -> Batch:
    """Two short sequences of different lengths."""
    rows = next(model.get_input_embeddings().parameters()).shape[0]
    ids = (np.arange(3, 11) * 5 % rows).astype(np.int32)
    return collate([TokenizedExample.pair(ids, 3), TokenizedExample.pair(ids[:5], 2)]).to(
        model.device
    )


def _alike(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance * (1 + one.abs().max()))
