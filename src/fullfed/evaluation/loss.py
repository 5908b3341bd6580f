"""The loss a federation is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from fullfed.data.batches import evaluation_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.evaluation.mode import evaluating
from fullfed.training.loss import answer_loss_sum


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
            total += answer_loss_sum(model, batch.to(model.device)).item()
            tokens += batch.tokens
    return total / tokens
