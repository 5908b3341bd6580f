"""Models of random weights in the shapes of known ones, and clients of random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from fullfed.data.tokens import TokenizedExample


@dataclass(frozen=True)
class Shape:
    """A Llama model's.

    Attributes:
        hidden, feed_forward, layers, heads, vocabulary: of the model.
        groups: heads of keys and values, where they are fewer.
        tied: whether input and output embeddings are one.
        coordinates: K of Ferret, half of the paper's "parameters up + down" where it has one.
    """

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    vocabulary: int = 32000
    tied: bool = False
    coordinates: int = 3900
    groups: int | None = None

    def model(self, device: str) -> PreTrainedModel:
        """Random weights: float32 on a CPU, bfloat16 on a GPU (the paper's have 16 bits)."""
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups or self.heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
        )
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with torch.device(device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model


SHAPES = {
    "tiny": Shape(64, 172, 5, 8, vocabulary=512, tied=True),
    "4m": Shape(256, 688, 4, 8, vocabulary=4096, tied=True),
    "15m": Shape(288, 768, 6, 6, tied=True),  # stories15M
    "58m": Shape(512, 1376, 8, 8),
    "1b": Shape(2048, 5504, 16, 16),  # 0.94 billion parameters
    # SmolLM2-135M; 20 coordinates for each of the paper's kind of blocks.
    "smollm2": Shape(576, 1536, 30, 9, 49152, tied=True, coordinates=3040, groups=3),
    # datajuicer/LLaMA-1B-dj-refine-150B; its feed-forward width follows from the file's size.
    "llama-1b": Shape(2048, 5504, 24, 16),
    "llama-3b": Shape(3200, 8640, 26, 32),  # openlm-research/open_llama_3b; table 4
    "llama-7b": Shape(4096, 11008, 32, 32, coordinates=3200),  # Llama-2-7b; table 5
}


def random_clients(
    clients: int, samples: int, length: int, vocabulary: int
) -> list[list[TokenizedExample]]:
    """Random tokens; all but the first of a sample are learned."""
    draw = np.random.default_rng(0)
    return [
        [
            TokenizedExample.pair(draw.integers(0, vocabulary, length, dtype=np.int32), 1)
            for _ in range(samples)
        ]
        for _ in range(clients)
    ]
