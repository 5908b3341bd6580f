"""The loss of answers given their prompts."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from fullfed.data.batches import IGNORED, Batch


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The predictions of a batch's answer tokens, and the tokens.

    Logits of prompts and padding are never computed: with a large vocabulary they would be most
    of the memory. The hidden states are narrowed down on their way into the output layer, so that
    whatever a model does to its logits afterwards (scaling, soft caps) it still does.

    Returns:
        logits: the model's dtype, shape (batch.tokens, vocabulary).
        targets: int64, shape (batch.tokens,).
    """
    predicting = torch.zeros_like(batch.labels, dtype=torch.bool)
    predicting[:, :-1] = batch.labels[:, 1:] != IGNORED
    targets = batch.labels[:, 1:][predicting[:, :-1]]

    def narrow(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][predicting].unsqueeze(0),)

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with head.register_forward_pre_hook(narrow) if head is not None else nullcontext():
        # No attention mask: padding is on the right, where causal attention cannot look, and
        # without one the fastest attention kernels are available.
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    return (logits[predicting] if head is None else logits[0]), targets


def answer_loss_sum(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Summed cross-entropy, in nats, of a batch's answer tokens; a float32 scalar."""
    logits, targets = answer_logits(model, batch)
    return cross_entropy(logits.float(), targets, reduction="sum")


def answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats, of a batch's answer tokens; a float32 scalar."""
    return answer_loss_sum(model, batch) / batch.tokens


@torch.no_grad()
def answer_loss_value(model: PreTrainedModel, batch: Batch) -> float:
    """``answer_loss`` without a graph."""
    return float(answer_loss(model, batch))
