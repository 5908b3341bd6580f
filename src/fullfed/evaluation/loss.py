"""The loss a federation is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from fullfed.data.batches import IGNORED, Batch, evaluation_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.evaluation.mode import evaluating


def evaluate_loss(
    model: PreTrainedModel, examples: Sequence[TokenizedExample], batch_size: int
) -> float:
    """Mean negative log-likelihood in nats over all answer tokens of all examples.

    Every token weighs the same, the end-of-sequence token included; prompts do not count. The
    model's mode is restored.

    Args:
        model: any causal language model, on any device.
        examples: at least one.
        batch_size: examples computed together; the result depends on it by rounding only.
    """
    total, tokens = 0.0, 0
    with evaluating(model):
        for batch in evaluation_batches(examples, batch_size):
            logits, targets = answer_logits(model, batch.to(model.device))
            total += functional.cross_entropy(logits.float(), targets, reduction="sum").item()
            tokens += batch.tokens
    return total / tokens


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
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

    def narrow(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][predicting].unsqueeze(0),)

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with head.register_forward_pre_hook(narrow) if head is not None else nullcontext():
        # No attention mask: padding is on the right, where causal attention cannot look, and
        # without one the fastest attention kernels are available.
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    return (logits[predicting] if head is None else logits[0]), targets
