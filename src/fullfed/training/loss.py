"""The loss of answers given their prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fullfed.data.batches import IGNORED, Batch


def answer_loss_sum(model: nn.Module, batch: Batch) -> Tensor:
    """Summed cross-entropy, in nats, of a batch's answer tokens; a float32 scalar.

    Batches are padded on the right, where causal attention cannot look, so no mask is passed
    and the fastest attention kernels stay available. Logits are computed only for positions
    before some row's answer token: with long prompts and large vocabularies they would
    otherwise be most of the memory.
    """
    targets = batch.labels[:, 1:]
    learned = targets != IGNORED
    positions = learned.any(dim=0).nonzero().squeeze(1)
    logits = model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=positions).logits
    return cross_entropy(
        logits.float().flatten(0, 1),
        targets[:, positions].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats, of a batch's answer tokens; a float32 scalar."""
    return answer_loss_sum(model, batch) / batch.tokens


@torch.no_grad()
def answer_loss_value(model: nn.Module, batch: Batch) -> float:
    """``answer_loss`` without a graph."""
    return float(answer_loss(model, batch))
