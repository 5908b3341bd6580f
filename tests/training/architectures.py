"""Tiny random models of several families, three layers each."""

from __future__ import annotations

from copy import deepcopy

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
)

VOCABULARY, LAYERS = 11, 3
_WIDTH = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_GATED = {**_WIDTH, "intermediate_size": 12, "num_key_value_heads": 1}

CAUSAL: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_GATED),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=LAYERS, n_head=2, n_positions=32,
        bos_token_id=0, eos_token_id=1,
    ),
    "opt": OPTConfig(**_WIDTH, ffn_dim=12, word_embed_proj_dim=8),
    "gpt-neox": GPTNeoXConfig(**_WIDTH, intermediate_size=12),
    "qwen2": Qwen2Config(**_GATED),
    "gemma": GemmaConfig(**_GATED, head_dim=4),
}  # fmt: skip
ENCODERS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**{**_WIDTH, "pad_token_id": 0}, intermediate_size=12),
    "roberta": RobertaConfig(**{**_WIDTH, "pad_token_id": 0}, intermediate_size=12),
}


def make(name: str) -> PreTrainedModel:
    """The model in float32 and evaluation mode; weights large enough that outputs differ."""
    torch.manual_seed(0)
    if name in ENCODERS:
        model = AutoModelForSequenceClassification.from_config(deepcopy(ENCODERS[name]))
    else:
        model = AutoModelForCausalLM.from_config(deepcopy(CAUSAL[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model.eval()  # type: ignore[no-any-return]
