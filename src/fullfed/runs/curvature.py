"""The scales of a run: what its base model says of its own curvature, without anybody's data.

A sketch's noise costs the loss sum(h_i n_i**2) / 2, h the diagonal of its Hessian and n the noise.
With factors s (``fullfed.sketch.Scales``) the energy of n_i is s_i**2 sum_j(delta_j / s_j)**2 / K,
so the cost is least where s_i**4 is delta_i**2 / h_i. Optimizers such as AdamW change parameters
by as much where the loss is flat as where it is steep: there s = h**(-1/4), whatever the data. For
h stand squared gradients (the diagonal of the Fisher information matrix), their means over rows
times their means over columns. They are of texts that the base model writes itself, on which it is
as sure as it has been trained to be. docs/research-log.md, entry 17, has what it saves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch, collate
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError, UserError
from fullfed.evaluation.generation import context_length, evaluating
from fullfed.headway import Headway, Observer, unobserved
from fullfed.methods.codecs.scaling import MOST_EXPONENT, ModelScales
from fullfed.methods.composition import Composition
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.runs.assembly import Assembly
from fullfed.runs.folder import RunFolder
from fullfed.sketch.scales import STEPS, matrix
from fullfed.training.layers import training_only
from fullfed.training.loss import answer_loss

TEXTS, LENGTH = 8, 128  # texts, and tokens of each
_LEAST = 0.1  # of a tensor's mean: no row's or column's curvature counts as less
# The largest exponent of a row: a factor of 8. Some tensors make no difference to the loss at all,
# such as the bias of an attention's keys, and noise without a bound would carry them off.
_MOST = 24

# Exponents are multiples of it: half as many bytes, and some 2 % more noise.
_ROUNDED = 2

Curvature = Mapping[str, tuple[Tensor, Tensor]]
"""Mean squared gradients of each parameter's rows and of its columns, float64, by name."""


def with_scales(
    method: Composition, model: PreTrainedModel, observer: Observer = unobserved
) -> Composition:
    """The method with the scales of its base model, where it wants some; itself where not.

    Args:
        observer: is told of each text.
    """
    if not method.wants_scales:
        return method
    observer(Headway("curvature", 0, TEXTS))
    texts = own_texts(model, method.setting.seed)
    trained = method.scope.trained(model)
    return method.scaled(scales_of(squared_gradients(model, trained, texts, observer)))


def take_scales(folder: RunFolder, assembly: Assembly, observer: Observer) -> Composition:
    """The assembly's method with the scales of a run; they are measured, and kept in its folder,
    before the run begins.

    Raises:
        UserError: as for ``with_scales_of``.
    """
    if folder.begun:
        return with_scales_of(folder, assembly.method)
    scaled = with_scales(assembly.method, assembly.model, observer)
    folder.write_scales(scaled.scales)
    return scaled


def with_scales_of(folder: RunFolder, method: Composition) -> Composition:
    """The method with the scales of a run that has begun; itself where the run has none.

    Raises:
        UserError: their file is missing, or was changed; or the model is another.
    """
    data = folder.scales()
    if not data:
        return method
    try:
        return method.scaled(ModelScales.read(data, method.setting.shapes))
    except MessageError as error:
        raise UserError(
            f"{folder.recipe().model.path}: this is not the base model the run began with "
            f"({error}); put that one back."
        ) from error


def own_texts(model: PreTrainedModel, seed: int) -> list[Batch]:
    """Texts that a model writes from its first token on, each token drawn as likely as it says.

    Returns:
        TEXTS batches of one text; LENGTH tokens each, or as many as the model can read.
    """
    config = model.config.get_text_config()
    first = config.bos_token_id if isinstance(config.bos_token_id, int) else 0
    length = min(LENGTH, context_length(model) or LENGTH)
    drawn = torch.from_numpy(uniforms(Stream(seed, Purpose.PROBE), TEXTS * length))
    ids, cache = torch.full((TEXTS, 1), first, device=model.device), None
    with evaluating(model):
        for chances in drawn.view(length, TEXTS)[1:].to(model.device):
            given: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
            out = model(ids if cache is None else ids[:, -1:], use_cache=True, **given)
            cache = getattr(out, "past_key_values", None)
            up_to = out.logits[:, -1].double().softmax(-1).cumsum(-1)
            token = (up_to < chances[:, None]).sum(-1).clamp(max=up_to.shape[-1] - 1)
            ids = torch.cat([ids, token[:, None]], dim=1)
    written = ids.cpu().numpy()
    return [collate([TokenizedExample(text, np.arange(length) > 0)]) for text in written]


def squared_gradients(
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    batches: Sequence[Batch],
    observer: Observer = unobserved,
) -> Curvature:
    """Those of the loss of each batch, one at a time; no gradient is kept."""
    sums = {name: _RowsAndColumns(p) for name, p in parameters.items()}
    model.eval()  # type: ignore[no-untyped-call]
    observer(Headway("curvature", 0, len(batches)))
    with training_only(model, list(parameters.values())), ExitStack() as hooks:
        for name, p in parameters.items():
            hook = p.register_post_accumulate_grad_hook(sums[name].add)  # type: ignore[no-untyped-call]
            hooks.callback(hook.remove)
        for number, batch in enumerate(batches, start=1):
            answer_loss(model, batch.to(model.device)).backward()  # type: ignore[no-untyped-call]
            observer(Headway("curvature", number, len(batches)))
    return {name: one.means() for name, one in sums.items()}


class _RowsAndColumns:
    """Sums of a parameter's squared gradients, over its rows and over its columns."""

    def __init__(self, parameter: Tensor) -> None:
        self._shape = matrix(parameter.shape)
        self._rows, self._columns = (
            torch.zeros(size, dtype=torch.float64, device=parameter.device) for size in self._shape
        )

    def add(self, parameter: Tensor) -> None:
        """Add those of the gradient that it has now, and take that away."""
        assert parameter.grad is not None
        squares = parameter.grad.float().square_().reshape(self._shape)
        self._rows += squares.sum(1, dtype=torch.float64)
        self._columns += squares.sum(0, dtype=torch.float64)
        parameter.grad = None

    def means(self) -> tuple[Tensor, Tensor]:
        rows, columns = self._shape
        return self._rows.cpu() / max(columns, 1), self._columns.cpu() / max(rows, 1)


def scales_of(curvature: Curvature) -> ModelScales:
    """Factors curvature**(-1/4) by row and column, and such that 1 / factor**2 is 1 in the mean: a
    change that is as large everywhere has the norm with scales that it has without.

    Parameters without a gradient have the factor 1.
    """
    exact = {
        name: _exponents(rows, columns)
        for name, (rows, columns) in curvature.items()
        if 0 < float(rows.sum()) < math.inf
    }
    shift = _shift(list(exact.values()))
    found = {}
    for name, (rows, columns) in curvature.items():
        none = torch.zeros_like(rows) - shift, torch.zeros_like(columns)
        own = exact.get(name, none)
        found[name] = _rounded((own[0] + shift).clamp(max=_MOST)), _rounded(own[1])
    return ModelScales(found)


def _exponents(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Of one parameter, not rounded yet; those of its rows have what is common to all of it."""
    mean = rows.mean()
    own, across = (
        -STEPS / 4 * (means / mean).clamp(min=_LEAST).log2() for means in (rows, columns)
    )
    return own - STEPS / 4 * mean.log2(), across


def _shift(exponents: Sequence[tuple[Tensor, Tensor]]) -> float:
    """What is to be added to make the mean of 1 / factor**2 over all elements 1."""
    if not exponents:
        return 0.0
    sums = [float(torch.exp2(-2 / STEPS * r).sum() * torch.exp2(-2 / STEPS * c).sum())
            for r, c in exponents]  # fmt: skip
    mean = math.fsum(sums) / sum(len(rows) * len(columns) for rows, columns in exponents)
    return STEPS / 2 * math.log2(mean)


def _rounded(exponents: Tensor) -> Tensor:
    rounded = (exponents / _ROUNDED).round() * _ROUNDED
    return rounded.clamp(-MOST_EXPONENT, MOST_EXPONENT).to(torch.int8)
