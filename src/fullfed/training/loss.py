"""The loss of answers given their prompts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import IGNORED, Batch
from fullfed.sketch.shards import mesh_of, total
from fullfed.training.devices import shares
from fullfed.training.precision import autocast, matrix_units

Loss = Callable[[PreTrainedModel, Batch], Tensor]


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The predictions of a batch's answer tokens, and the tokens.

    Logits of prompts and padding are never computed: with a large vocabulary they would be most
    of the memory. The hidden states are narrowed down on their way into the output layer, so that
    whatever a model does to its logits afterwards (scaling, soft caps) it still does.

    Returns:
        logits: the model's dtype, shape (batch.tokens, vocabulary).
        targets: int64, shape (batch.tokens,).
    """
    logits, targets, _ = _answers(model, batch)
    return logits, targets


def _answers(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """``answer_logits``, and the loss of the model's routers where it computes one."""
    predicting = torch.zeros_like(batch.labels, dtype=torch.bool)
    predicting[:, :-1] = batch.labels[:, 1:] != IGNORED
    targets = batch.labels[:, 1:][predicting[:, :-1]]

    def narrow(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][predicting].unsqueeze(0),)

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    # No attention mask: padding is on the right, where causal attention cannot look, and without
    # one the fastest attention kernels are available. Losses of routers count what it leaves.
    mask = batch.attention_mask if router_loss_weight(model) else None
    with head.register_forward_pre_hook(narrow) if head is not None else nullcontext():
        output = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
    logits = output.logits[predicting] if head is None else output.logits[0]
    return logits, targets, getattr(output, "aux_loss", None)


def router_loss_weight(model: PreTrainedModel) -> float:
    """The weight of the loss that balances a mixture's experts; 0 unless the config asks for it."""
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return 0.0
    names = ("router_aux_loss_coef", "aux_loss_coef")
    return next((float(getattr(config, name)) for name in names if hasattr(config, name)), 0.0)


def answer_loss_sum(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Summed cross-entropy, in nats, of a batch's answer tokens; a float32 scalar."""
    logits, targets, _ = _answers(model, batch)
    return cross_entropy(logits.float(), targets, reduction="sum")


def answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What training makes less: a float32 scalar.

    It is the mean cross-entropy, in nats, of a batch's answer tokens, and the weighted loss of a
    mixture's routers where the model's configuration asks for that.
    """
    logits, targets, routers = _answers(model, batch)
    loss = cross_entropy(logits.float(), targets, reduction="sum") / batch.tokens
    weight = router_loss_weight(model)
    return loss + weight * routers if weight and routers is not None else loss


@torch.no_grad()
def answer_loss_value(model: PreTrainedModel, batch: Batch) -> float:
    """``answer_loss`` without a graph."""
    return float(answer_loss(model, batch))


@torch.no_grad()
def loss_value(
    model: PreTrainedModel, batch: Batch, local: LocalTable, loss: Loss = answer_loss
) -> float:
    """A loss without a graph, computed as a visit's steps compute it.

    Args:
        local: the recipe's table, of which precision and the size of micro-batches count.
    """
    device, own = batch.input_ids.device, 0.0
    with matrix_units(local.precision):
        for part, share in shares(batch, local.micro_batch_size, model.parameters()):
            with autocast(local.precision, device):
                own += float(loss(model, part)) * share
    mesh = mesh_of(model.parameters())
    return own if mesh is None else total(own, mesh)
