"""How differently a model's layers see a batch's samples: FedPepTAO's score of layers (Che et al.,
arXiv 2310.15080).

    S_l = the cosines of the samples' hidden states after layer l, (samples, samples)
    score_l = sum_k log(lambda_k + e) + 1 / (lambda_k + e),    lambda the eigenvalues of S_l

It is the larger, the more alike samples look to a layer: with all at right angles every lambda is
1, and the score is the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.training.layers import find_layers

_SMALL = 1e-5  # e, as published


def score(hidden: Tensor, mask: Tensor) -> Tensor:
    """
    Args:
        hidden: what a layer made of a batch, (samples, length, width).
        mask: 1 on samples, 0 on padding, which does not count; (samples, length).

    Returns:
        float64, a number, on the CPU.
    """
    rows = (hidden * mask.unsqueeze(-1)).flatten(1).double()
    rows = normalize(rows)
    eigenvalues = torch.linalg.eigvalsh((rows @ rows.T).cpu()).clamp(min=0) + _SMALL
    return torch.sum(eigenvalues.log() + 1 / eigenvalues)


@contextmanager
def scored(model: PreTrainedModel, batch: Batch) -> Iterator[list[Tensor]]:
    """Inside, a forward pass of the whole batch, which is on the model's device, is listened to.

    Yields:
        each layer's score, in the model's order, once it is computed.
    """
    scores: list[Tensor] = []

    def listen(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        scores.append(score(hidden.detach(), batch.attention_mask))

    with ExitStack() as stack:
        for layer in find_layers(model)[1]:
            stack.callback(layer.register_forward_hook(listen).remove)
        yield scores


def chosen_layers(scores: Sequence[float], count: int) -> list[int]:
    """The layers of the highest scores, in the model's order; of equal ones the earlier."""
    ranked = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    return sorted(ranked[:count])
