"""A soft prompt before every input, of few numbers (Sun et al., "Black-box tuning for
language-model-as-a-service", arXiv 2201.03514):

    p = p_0 + M z,    p_0 the embeddings of drawn tokens, M a drawn matrix

p has n rows of the model's width; z has d numbers, and is what changes. The model itself is frozen.
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
from transformers import PreTrainedModel

from fullfed.errors import UserError
from fullfed.methods.virtual_tokens import take_out, take_room
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.training.layers import find_reader

Z = "soft_prompt.z"
_MODULE = "soft_prompt"


class SoftPrompt(nn.Module):
    """Puts p before what the model's layers read, and takes its positions out of what they make.

    Args:
        start: p_0, float32, (n, width).
        matrix: M, float32, (n * width, d).
    """

    def __init__(self, start: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.zeros(matrix.shape[1], device=start.device))
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("matrix", matrix, persistent=False)
        self.start: Tensor
        self.matrix: Tensor
        self._first = True  # whether the pass at work begins a sequence

    def rows(self) -> Tensor:
        """p, float32, (n, width)."""
        return self.start + (self.matrix @ self.z).view(self.start.shape)

    def before(
        self, layers: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A hook before the layers' forward pass; of later tokens, p is in the cache already."""
        changed, count = dict(kwargs), len(self.start)
        ids: Tensor = args[0] if args else changed.pop("input_ids")
        past = changed.get("past_key_values")
        self._first = past is None or past.get_seq_length() == 0
        look_up: Any = layers.get_input_embeddings()
        embedded: Tensor = look_up(ids)
        if self._first:
            rows = self.rows().to(embedded.dtype).expand(len(ids), -1, -1)
            embedded = torch.cat([rows, embedded], dim=1)
        mask, positions = changed.get("attention_mask"), changed.get("position_ids")
        if mask is not None:
            changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        if positions is not None:
            positions = positions + count
            if self._first:
                own = torch.arange(count, device=positions.device).expand(len(positions), -1)
                positions = torch.cat([own, positions], dim=1)
            changed["position_ids"] = positions
        return (), {**changed, "inputs_embeds": embedded}

    def after(self, layers: PreTrainedModel, args: tuple[Any, ...], output: Any) -> Any:
        """A hook after it."""
        if self._first:
            output.last_hidden_state = output.last_hidden_state[:, len(self.start) :]
        return output


@dataclass(frozen=True)
class PromptAlone:
    """A soft prompt's z, and nothing else, changes.

    Attributes:
        seed: the recipe's; p_0 and M follow from it.
        tokens: n.
        dimension: d.
        scale: M's numbers have the standard deviation of the embedding's, times this, over sqrt(d).
    """

    seed: int
    tokens: int
    dimension: int
    scale: float

    def attach(self, model: PreTrainedModel) -> None:
        """
        Raises:
            UserError: the prompt would leave no room in the model's context.
        """
        take_room(model, self.tokens, "method.prompt_tokens")
        table: Any = model.get_input_embeddings()
        embedding: Tensor = table.weight.detach()
        stream = Stream(self.seed, Purpose.PROMPT, block=0)
        ids = [int(word) % len(embedding) for word in stream.words(self.tokens)]
        start = embedding[ids].float()
        # On the meta device numbers are not known, and do not count.
        spread = 1.0 if embedding.is_meta else float(embedding.double().std())
        bound = math.sqrt(3) * self.scale * spread / math.sqrt(self.dimension)
        shape = start.numel(), self.dimension
        drawn = uniforms(Stream(self.seed, Purpose.PROMPT, block=1), math.prod(shape))
        matrix = torch.from_numpy(((2 * drawn - 1) * bound).astype(np.float32)).reshape(shape)
        prompt = SoftPrompt(start, matrix.to(start.device))
        model.add_module(_MODULE, prompt)
        layers = find_reader(model)
        layers.register_forward_pre_hook(prompt.before, with_kwargs=True)
        layers.register_forward_hook(prompt.after)

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {Z: model.get_parameter(Z)}

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return self.trained(model)

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        """Save the prompt where ``PeftModel.from_pretrained`` loads it; the model is the base."""
        prompt: Any = model.get_submodule(_MODULE)
        save(model, prompt.rows().detach(), folder)
        take_out(model, _MODULE, self.tokens)


def save(model: PreTrainedModel, rows: Tensor, folder: Path) -> None:
    """
    Raises:
        UserError: PEFT is not installed.
    """
    try:
        from peft import PromptTuningConfig
    except ImportError as error:
        raise UserError(
            'a soft prompt is saved by peft; install it with: pip install "fullfed[lora]".'
        ) from error
    text = model.config.get_text_config()
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(rows),
        token_dim=rows.shape[1],
        num_transformer_submodules=1,
        num_attention_heads=text.num_attention_heads,
        num_layers=text.num_hidden_layers,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors = {"prompt_embeddings": rows.cpu().contiguous()}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
