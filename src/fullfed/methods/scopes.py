"""Scopes: which parameters a visit trains, and which an update changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel


class Scope(Protocol):
    def attach(self, model: PreTrainedModel) -> None:
        """Make version 0 of a base checkpoint: add what the scope trains beside it."""

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        """Make it an ordinary checkpoint again that computes the same; what was trained beside
        the base is also saved by itself in ``folder``, if anything was."""

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What a visit trains, by name, in the model's order; tied parameters once."""

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What an update changes, by name; everything else stays as in version 0."""


@dataclass(frozen=True)
class Everything:
    """Every parameter of the model."""

    def attach(self, model: PreTrainedModel) -> None:
        pass

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        pass

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return dict(model.named_parameters())

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return self.trained(model)
