"""Scopes: which parameters a visit trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Everything:
    """Every parameter of the model."""

    def parameters(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The trained parameters by name, in the model's order; tied ones once."""
        return dict(model.named_parameters())
