"""Losses at perturbed weights, without changing them: for methods without gradients.

MeZO (Malladi et al. 2023, arXiv 2305.17333, Algorithm 1) adds a perturbation to the weights and
takes it away again, and so drifts by rounding errors. Here each module of the model computes with a
perturbed copy of its weights: no drift, in the memory of inference and the largest module, or the
largest module and the weights that are tied between modules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import Batch
from fullfed.sketch import Stream, perturb_
from fullfed.sketch.directions import Distribution
from fullfed.training.first_order import TrainingError
from fullfed.training.loss import Loss, answer_loss, loss_value

_PLAIN = LocalTable()


@dataclass(frozen=True)
class RandomDirection:
    """z: one random number for each element of a list of tensors.

    Attributes:
        stream: fixes z.
        distribution: "rademacher" (signs) or "gaussian".
    """

    stream: Stream
    distribution: Distribution


# Where a parameter is kept: torch's own table of a module's parameters, the name in that table, and
# the parameter. Assigning to the module itself would want a Parameter.
Place = tuple[MutableMapping[str, Any], str, Tensor]


@dataclass(frozen=True)
class PerturbedModule:
    """A module that computes with perturbed copies of parameters, its own or its submodules'.

    Attributes:
        module: a layer, or a module outside of the layers.
        places: of those parameters, in the order of their numbers.
    """

    module: nn.Module
    places: tuple[Place, ...]

    @property
    def parameters(self) -> list[Tensor]:
        """Each once, even if it is in several places."""
        return list(dict.fromkeys(parameter for *_, parameter in self.places))

    def put(self, tensors: Mapping[Tensor, Tensor]) -> None:
        """Let the module see other tensors, by parameter, where its parameters are."""
        for table, name, parameter in self.places:
            table[name] = tensors[parameter]


class Perturbation:
    """Lets modules of a model compute with perturbed copies of their parameters.

    Args:
        parameters: those to perturb; their order numbers the elements of directions.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        ends = accumulate((p.numel() for p in parameters), initial=0)
        self._starts = dict(zip(parameters, ends, strict=False))
        # NaN in the parameter's shape, in the memory of one number.
        self._hidden = {p: p.new_full((), math.nan).expand(p.shape) for p in parameters}
        self._modules = [
            PerturbedModule(module, places)
            for module, inner in _modules(model)
            if (places := tuple(sorted(self._places(inner), key=lambda p: self._starts[p[2]])))
        ]
        users = Counter(p for module in self._modules for p in module.parameters)
        self._tied = {p for p, count in users.items() if count > 1}

    def _places(self, modules: Iterable[nn.Module]) -> Iterator[Place]:
        for module in modules:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter in self._starts:
                    yield module._parameters, name, parameter

    @contextmanager
    def of(self, direction: RandomDirection, scale: float) -> Iterator[None]:
        """Inside, modules compute with fl(w + fl(scale * z)) instead of w.

        A copy lasts for one call of the module, that of a parameter tied to another module's to
        the end. Between calls a module's parameters are NaN: what reads them elsewhere does not
        go unnoticed.
        """
        tied: dict[Tensor, Tensor] = {}

        def before(module: PerturbedModule) -> None:
            copies = {p: tied[p] if p in tied else p.detach().clone() for p in module.parameters}
            for group in self._groups([p for p in module.parameters if p not in tied]):
                perturb_(
                    [copies[p] for p in group],
                    direction.stream,
                    scale,
                    direction.distribution,
                    start=self._starts[group[0]],
                )
            tied.update((p, copies[p]) for p in copies.keys() & self._tied)
            module.put(copies)

        with ExitStack() as stack:
            for module in self._modules:
                hook = module.module.register_forward_pre_hook(lambda *_, m=module: before(m))
                stack.callback(hook.remove)
                hook = module.module.register_forward_hook(lambda *_, m=module: m.put(self._hidden))
                stack.callback(hook.remove)
                stack.callback(module.put, {p: p for p in module.parameters})
                module.put(self._hidden)
            yield

    def _groups(self, parameters: Sequence[Tensor]) -> list[list[Tensor]]:
        """The parameters, those together whose numbers follow one another: fewer calls."""
        groups: list[list[Tensor]] = []
        for p in parameters:
            last = groups[-1][-1] if groups else None
            if last is not None and self._starts[last] + last.numel() == self._starts[p]:
                groups[-1].append(p)
            else:
                groups.append([p])
        return groups


def _modules(module: nn.Module) -> Iterator[tuple[nn.Module, Iterable[nn.Module]]]:
    """Elements of module lists, layers as a rule, with all in them; else each module by itself."""
    yield module, [module]
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from ((element, element.modules()) for element in child)
        else:
            yield from _modules(child)


class Neighbourhood:
    """Losses of a model at points near its weights.

    Args:
        model: in evaluation mode from now on.
        parameters: those to move, by name; their order numbers the elements of directions.
        loss: of a batch, float32.
        local: the recipe's table, as whose steps losses are computed.

    Attributes:
        elements: of the parameters, d.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        loss: Loss = answer_loss,
        local: LocalTable = _PLAIN,
    ) -> None:
        model.eval()  # type: ignore[no-untyped-call]
        self._model, self._loss, self._local = model, loss, local
        self.elements = sum(p.numel() for p in parameters.values())
        self._perturbation = Perturbation(model, list(parameters.values()))

    def here(self, batch: Batch) -> float:
        """The loss at the weights.

        Raises:
            TrainingError: it is not finite.
        """
        return _finite(self._value(batch))

    def at(self, batch: Batch, direction: RandomDirection, scale: float) -> float:
        """The loss at fl(w + fl(scale * z)).

        Raises:
            TrainingError: it is not finite.
        """
        value = self._value_at(batch, direction, scale)
        if not math.isfinite(value):
            unmoved = self._value_at(batch, direction, 0.0)
            if math.isfinite(self._value(batch)) and not math.isfinite(unmoved):
                raise TrainingError(
                    "the model reads weights of a module that is not computing, where they cannot "
                    "be perturbed; take a method with gradients"
                )
        return _finite(value)

    def derivative(
        self, batch: Batch, direction: RandomDirection, distance: float
    ) -> tuple[float, float]:
        """The mean of the losses at w + distance * z and w - distance * z, and the derivative
        along z that follows from them, float32 (two-sided SPSA: Spall 1992).

        Raises:
            TrainingError: a loss is not finite.
        """
        ahead = self.at(batch, direction, distance)
        behind = self.at(batch, direction, -distance)
        return (ahead + behind) / 2, float(np.float32((ahead - behind) / (2 * distance)))

    def _value(self, batch: Batch) -> float:
        return loss_value(self._model, batch, self._local, self._loss)

    def _value_at(self, batch: Batch, direction: RandomDirection, scale: float) -> float:
        with self._perturbation.of(direction, scale):
            return self._value(batch)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TrainingError("the training loss is not finite; lower local.learning_rate")
    return loss


_STRETCH = 1 << 18  # numbers of a direction held at once ...
_LANES = 128  # ... and summed by torch; the sums of these are added exactly


def length(stream: Stream, elements: int, device: torch.device) -> float:
    """The Euclidean norm of a Gaussian direction of so many elements, in float64.

    Made a stretch at a time, in 3 MiB; the sum does not depend on the number of threads.
    """
    squares = []
    for start in range(0, elements, _STRETCH):
        size = min(_STRETCH, elements - start)
        row = torch.zeros(-(-size // _LANES) * _LANES, device=device)
        perturb_([row[:size]], stream, 1.0, "gaussian", start=start)
        squares += row.double().square_().view(-1, _LANES).sum(dim=1).tolist()
    return math.sqrt(math.fsum(squares))
