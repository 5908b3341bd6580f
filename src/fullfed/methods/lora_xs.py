"""LoRA with a small matrix between its factors, as a scope: Bałazy et al., "LoRA-XS: Low-rank
adaptation with extremely small number of parameters" (arXiv 2405.17604).

A linear layer's frozen matrix W becomes W + B R A, of which only R trains, of the shape (r, r).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from fullfed.errors import UserError
from fullfed.methods.adapters import A, Adapters, B, adapted, initial_a

_INNER = B.removesuffix(".weight")
R = f"{_INNER}.core"  # what follows a target's name in the name of its R


class Inner(nn.Module):
    """B R in the place of PEFT's B. They are multiplied first, so that an exported adapter, whose
    B is the product, computes the same bits."""

    def __init__(self, b: Tensor, core: Tensor) -> None:
        super().__init__()
        self.weight, self.core = nn.Parameter(b), nn.Parameter(core)

    def product(self) -> Tensor:
        return self.weight @ self.core

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.product())


@dataclass(frozen=True)
class Core(Adapters):
    """R of every target trains.

    Attributes:
        fixed: whether B and A stay as they were drawn; else an update may bring others.
    """

    fixed: bool

    def attach(self, model: PreTrainedModel) -> None:
        """Insert adapters that change nothing yet: B and A are random, R is 0.

        B's columns and A's rows have length 1 and are orthogonal, in expectation; made exactly so,
        they would differ from machine to machine.

        Raises:
            UserError: as in ``Adapters``, or the rank is more than a matrix can have.
        """
        super().attach(model)
        own, rank = dict(model.named_parameters()), self.options.rank
        for number, target in enumerate(adapted(own)):
            a, b = own[target + A], own[target + B]
            most = min(len(b), a.shape[1])
            if rank > most:
                raise UserError(
                    f"method.rank: {rank} is more than the {most} rows or columns of {target}; "
                    "lower it, or leave that layer out of method.targets."
                )
            # Of variance 1 / in and 1 / out. The second draw of a target is its B.
            drawn = initial_a(self.seed, 1, number, b.T.shape).T.to(b.device).contiguous()
            with torch.no_grad():
                a.mul_(math.sqrt(3))
            inner = Inner(drawn * math.sqrt(3), torch.zeros(rank, rank, device=b.device))
            model.set_submodule(target + _INNER, inner)

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if name.endswith(R)}

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        changed = R if self.fixed else (A, B, R)
        return {name: p for name, p in model.named_parameters() if name.endswith(changed)}

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        """Make it an ordinary adapter of PEFT's, with B R for its B, then as ``Adapters``."""
        for name, module in list(model.named_modules()):
            if isinstance(module, Inner):
                rows, rank = module.weight.shape
                plain = nn.Linear(rank, rows, bias=False, device="meta")
                plain.weight = nn.Parameter(module.product().detach())
                model.set_submodule(name, plain)
        super().detach(model, folder)
