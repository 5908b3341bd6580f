"""Scopes: which parameters a visit trains, and which an update changes.

``Everything`` is the whole model. ``Adapters`` is LoRA (Hu et al., "LoRA: Low-rank adaptation of
large language models", arXiv 2106.09685) with the modules of the PEFT library: a linear layer's
frozen matrix W becomes W + alpha / r * B A; A has the shape (r, in) and B the shape (out, r). The
factors are float32 whatever the model is, which is PEFT's own rule.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fullfed.errors import UserError
from fullfed.randomness import Purpose, Stream, uniforms

_ADAPTER = "default"  # PEFT's name for a model's only adapter
# What follows a target's name in the names of its three parameters:
W = ".base_layer.weight"
A = f".lora_A.{_ADAPTER}.weight"
B = f".lora_B.{_ADAPTER}.weight"


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


@dataclass(frozen=True)
class LoraOptions:
    """
    Attributes:
        rank: r, the smaller side of both factors.
        alpha: the product of the factors is scaled by alpha / r.
        targets: the linear layers that get an adapter, by the last parts of their names.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank is at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError("alpha is a positive number")
        if not self.targets:
            raise ValueError("targets names at least one linear layer")

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Adapters:
    """Both factors of every target train; all else is frozen.

    Attributes:
        seed: the recipe's; initial factors follow from it.
        options: the method's.
    """

    seed: int
    options: LoraOptions

    def attach(self, model: PreTrainedModel) -> None:
        """Insert adapters that change nothing yet: A is random, B is 0.

        Raises:
            UserError: PEFT is not installed, a target is no linear layer of this model, or the rank
                is senseless.
        """
        self._check_size(model, _check_targets(model, self.options.targets))
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise UserError(
                'methods with adapters need peft; install it with: pip install "fullfed[lora]".'
            ) from error
        config = LoraConfig(
            r=self.options.rank,
            lora_alpha=self.options.alpha,  # type: ignore[arg-type]  # only ever divided by r
            target_modules=list(self.options.targets),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            task_type="CAUSAL_LM",
            base_model_name_or_path=model.name_or_path,
        )
        # Without memory at first: PEFT would fill it from torch's global generator.
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
        parameters = dict(model.named_parameters())
        for number, target in enumerate(adapted(parameters)):
            device = parameters[target + W].device
            a = initial_a(self.seed, 0, number, parameters[target + A].shape)
            _set(model, target + A, a.to(device))
            _set(model, target + B, torch.zeros(parameters[target + B].shape, device=device))

    def _check_size(self, model: PreTrainedModel, targets: list[Tensor]) -> None:
        """Before there is memory for them; a server may have chosen the rank."""
        added = self.options.rank * sum(sum(matrix.shape) for matrix in targets)
        if added > sum(p.numel() for p in model.parameters()):
            raise UserError(
                f"method.rank: adapters of rank {self.options.rank} would have more numbers than "
                "the model itself; lower it."
            )

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if name.endswith((A, B))}

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return self.trained(model)

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        """Save the adapter in PEFT's format, then merge it into the matrices beside it."""
        save(model, folder)
        merge(model)


def initial_a(seed: int, round: int, number: int, shape: torch.Size) -> Tensor:
    """A of target ``number`` at version ``round``: uniform on +-1 / sqrt(in), as PEFT draws it.

    Returns:
        float32, on the CPU, the same on every machine.
    """
    stream = Stream(seed, Purpose.ADAPTERS, round=round, block=number)
    bound = 1 / math.sqrt(shape[1])
    values = (2 * uniforms(stream, shape.numel()) - 1) * bound
    return torch.from_numpy(values).float().reshape(shape)


def adapted(names: Iterable[str]) -> list[str]:
    """The targets among whose parameters are these, in their order."""
    return [name.removesuffix(A) for name in names if name.endswith(A)]


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter where ``PeftModel.from_pretrained`` loads it; a base model of the hub is
    named in it, and the path of one on this machine is not."""
    config = copy.copy(model.peft_config[_ADAPTER])
    if Path(str(config.base_model_name_or_path)).exists():
        config.base_model_name_or_path = None
    config.save_pretrained(str(folder))
    factors = {
        f"base_model.model.{name}".replace(f".{_ADAPTER}.", "."): p.detach().cpu().contiguous()
        for name, p in model.named_parameters()
        if name.endswith((A, B))
    }
    safetensors.torch.save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})


def merge(model: PreTrainedModel) -> None:
    """Make the model an ordinary one again that computes the same."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config


def _set(model: PreTrainedModel, name: str, value: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(value))


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> list[Tensor]:
    """The targets' matrices."""
    shared = model.get_input_embeddings().weight
    linear = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module.weight is not shared
    }
    found: dict[str, Tensor] = {}
    for target in targets:
        own = {n: w for n, w in linear.items() if n == target or n.endswith(f".{target}")}
        found |= own
        if not own:
            known = dict.fromkeys(name.rpartition(".")[2] for name in linear)
            raise UserError(
                f"method.targets: {target!r} is no linear layer of this model that could have an "
                f"adapter; choose among {', '.join(known)}."
            )
    return list(found.values())
