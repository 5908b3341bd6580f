"""A Llama whose layers share one feed-forward block, as MobiLlama's do (arXiv 2402.16840)."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


class SharedConfig(LlamaConfig):
    model_type = "shared-llama"


class SharedLlama(LlamaForCausalLM):
    """As transformers would have it: its class says which weights are one."""

    config_class = SharedConfig
    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "model.embed_tokens.weight",
        **{
            rf"model.layers.[1-9]\d*.mlp.{name}.weight": f"model.layers.0.mlp.{name}.weight"
            for name in ("gate_proj", "up_proj", "down_proj")
        },
    }

    def __init__(self, config: SharedConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers[1:]:
            layer.mlp = self.model.layers[0].mlp


AutoConfig.register("shared-llama", SharedConfig, exist_ok=True)
AutoModelForCausalLM.register(SharedConfig, SharedLlama, exist_ok=True)


def shared_llama(vocabulary: int = 11) -> SharedLlama:
    """Four layers of width 8, with weights large enough that outputs differ."""
    torch.manual_seed(0)
    config = SharedConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return SharedLlama(config).eval()  # type: ignore[no-any-return]
