"""Optimizer steps on some tensors: all at once after a backward pass, or each during it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


class Stepper:
    """One visit's steps on the trained parameters.

    16-bit parameters are trained as float32 copies, and follow them: steps smaller than a
    parameter's own precision add up.

    Args:
        parameters: to train, by name.
        make: torch's optimizer of some tensors.
        clip: gradients are scaled down to this norm; None for no clipping.
        one_by_one: whether each tensor steps, and its gradient goes, as soon as the backward pass
            has come to it. ``clip`` is then of each gradient by itself.
        clip_each: whether ``clip`` is of each gradient by itself in any case.
        kept: an earlier visit's ``state``, to go on from.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        make: Make,
        clip: float | None,
        one_by_one: bool,
        clip_each: bool,
        kept: Mapping[str, Tensor],
    ) -> None:
        self._parameters = parameters
        self._clip, self._clip_each = clip, clip_each or one_by_one
        self._one_by_one = one_by_one
        self.masters = {
            name: p.detach().float() if p.dtype.itemsize == 2 else p
            for name, p in parameters.items()
        }
        groups = [[name] for name in parameters] if one_by_one else [list(parameters)]
        self._optimizers = {
            name: optimizer
            for group in groups
            for optimizer in [make([self.masters[name] for name in group])]
            for name in group
        }
        self._take(kept)
        self._hooks = ExitStack()

    def __enter__(self) -> Stepper:
        if self._one_by_one:
            for name, p in self._parameters.items():
                hook = p.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _, n=name: self._step([n])
                )
                self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        for name, p in self._parameters.items():
            p.grad = self.masters[name].grad = None

    def step(self) -> None:
        """What is left to be done when a backward pass has ended."""
        if not self._one_by_one:
            self._step(list(self._parameters))

    def _step(self, names: list[str]) -> None:
        tensors = [self.masters[name] for name in names]
        for name, master in zip(names, tensors, strict=True):
            p = self._parameters[name]
            if p is not master and p.grad is not None:
                master.grad, p.grad = p.grad.float(), None
        if self._clip is not None:
            for group in [[t] for t in tensors] if self._clip_each else [tensors]:
                clip_grad_norm_(group, self._clip)
        self._optimizers[names[0]].step()
        with torch.no_grad():
            for name, master in zip(names, tensors, strict=True):
                if (p := self._parameters[name]) is not master:
                    p.copy_(master)
                master.grad = None

    def state(self) -> dict[str, Tensor]:
        """The optimizer's own state: a parameter's name, a slash, and torch's name of it."""
        return {
            f"{name}/{key}": value
            for name, master in self.masters.items()
            for key, value in self._optimizers[name].state[master].items()
            if isinstance(value, Tensor)
        }

    def _take(self, kept: Mapping[str, Tensor]) -> None:
        for place, value in kept.items():
            name, _, key = place.rpartition("/")
            master = self.masters[name]
            optimizer = self._optimizers[name]
            # torch keeps an unfused optimizer's step count on the CPU.
            device = value.device if key == "step" and not self._one_by_one else master.device
            optimizer.state[master][key] = value.to(device)
