"""How far a model that a server leads a node to is from the node's own base model.

A node cannot know what updates and snapshots are to be. But training moves a model a little, and a
server that sends a model made to reveal data, or to be useless, has to move it far.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fullfed.engines.node_limits import LimitError
from fullfed.errors import UserError
from fullfed.sketch import SignBasis
from fullfed.sketch.checks import is_finite

_COORDINATES = 1024  # of each tensor: its distance within 2 %
_FROM_ZERO = 10.0  # times the usual norm that what begins near zero may come to, as a norm


def reaches(norms: Mapping[str, float], elements: Mapping[str, int]) -> dict[str, float]:
    """The distance of which each tensor may go a share, by name.

    Args:
        norms, elements: of the base model's tensors.
    """
    mean = math.sqrt(sum(n**2 for n in norms.values()) / max(sum(elements.values()), 1))
    usual = {name: mean * math.sqrt(elements[name]) for name in norms}
    return {
        # What begins near zero, as biases and gates do, is trained by many times that.
        name: _FROM_ZERO * usual[name] if norm < usual[name] / 10 else max(norm, usual[name])
        for name, norm in norms.items()
    }


class Drift:
    """Remembers where tensors are, in few numbers each, and tells how far they have gone.

    The numbers are sums with random signs, drawn anew by every process and told to nobody: the
    sum of the squares of their changes is the squared distance, within a few percent, and who does
    not know the signs cannot go far unseen. So no second copy of the model is needed.

    Args:
        tensors: at version 0, by name.
        base: the names of those that the base model has. Others, such as adapters, begin anywhere
            and have only to be finite.
        most: see ``Limits.most_drift``.
        seed: of the signs, 64 bits, where several processes hold a part of the tensors each.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        base: Collection[str],
        most: float,
        seed: int | None = None,
    ) -> None:
        self._seed = secrets.randbits(64) if seed is None else seed
        self._most = most
        self._base = [name for name in tensors if name in base and tensors[name].numel()]
        self._start = {name: self._numbers(name, tensors[name]) for name in self._base}
        norms = {name: float(numbers.norm()) for name, numbers in self._start.items()}
        self._reach = reaches(norms, {name: tensors[name].numel() for name in self._base})

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """One pass over the tensors as they are now.

        Raises:
            LimitError: a number is not finite, or a tensor is further away than is allowed.
        """
        for name, tensor in tensors.items():
            if name not in self._start:
                if not is_finite(tensor.detach()):
                    raise LimitError("most_drift", f"{name} of the run's model is not finite")
                continue
            moved = float((self._numbers(name, tensor) - self._start[name]).norm())
            if not moved <= self._most * self._reach[name]:
                raise LimitError(
                    "most_drift",
                    f"{name} of the run's model is further than {self._most:g} of its norm from "
                    "where the base model has it",
                )

    def _numbers(self, name: str, tensor: Tensor) -> Tensor:
        """float64, on the CPU."""
        place = self._base.index(name)
        count = min(_COORDINATES, tensor.numel())
        basis = SignBasis(self._seed, 0, owner=place, coordinates=count)
        flat = tensor.detach().contiguous()
        try:
            projected = basis.project([flat if flat.dtype != torch.float64 else flat.float()])
        except UserError as error:
            raise LimitError("most_drift", f"{name} of the run's model is not finite") from error
        return projected.cpu().double()
