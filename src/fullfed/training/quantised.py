"""Frozen weights in 8 or 4 bits while a visit lasts; the exact ones wait elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from fullfed.training.frozen import forward_replaced
from fullfed.training.parking import parked

Bits = Literal[8, 4]
_GROUP = 64  # elements that share a scale in 4 bits; in 8 bits a whole row does
_ROWS = 256  # taken at a time: a float32 copy of a whole matrix would undo what is saved


class Quantised:
    """A matrix in 8 or 4 bits: round(x / s), s the largest absolute value over 127 or 7.

    One scale a row in 8 bits, one for every 64 elements of a row in 4 (rows of other lengths:
    the whole row). Scales are float32 in 8 bits and of the matrix's own type in 4.

    Args:
        weight: shape (rows, columns); of 4 bits two columns share a byte.
        bits: 8 or 4.
    """

    def __init__(self, weight: Tensor, bits: Bits) -> None:
        self._shape, self._dtype, self._bits = weight.shape, weight.dtype, bits
        rows, columns = weight.shape
        if bits == 4 and columns % 2:
            self._bits = 8
        group = _GROUP if self._bits == 4 and columns % _GROUP == 0 else columns
        grouped = weight.detach().view(rows, columns // group, group)
        parts = [self._rounded(part) for part in torch.split(grouped, _ROWS)]
        self.codes = torch.cat([codes for codes, _ in parts])
        self.scale = torch.cat([scale for _, scale in parts])

    def _rounded(self, part: Tensor) -> tuple[Tensor, Tensor]:
        largest = 127 if self._bits == 8 else 7
        scale = part.abs().amax(dim=2, keepdim=True).float() / largest
        scale = scale if self._bits == 8 else scale.to(part.dtype)
        scale = torch.where(scale > 0, scale, 1)
        codes = (part / scale.float()).round_().clamp_(-largest, largest)
        return self._pack(codes.to(torch.int8)), scale

    def _pack(self, codes: Tensor) -> Tensor:
        if self._bits == 8:
            return codes
        low, high = codes[..., 0::2] & 15, codes[..., 1::2] << 4
        return low | high

    def dequantised(self) -> Tensor:
        """The matrix, in its own shape and type."""
        return self._unpack(self.codes, self.scale).view(self._shape)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of it; the shape is that of the index and one dimension more."""
        return self._unpack(self.codes[index], self.scale[index]).flatten(-2)

    def _unpack(self, codes: Tensor, scale: Tensor) -> Tensor:
        if self._bits == 4:
            low, high = (codes << 4) >> 4, codes >> 4  # shifting back repeats the sign
            codes = torch.stack([low, high], dim=-1).flatten(-2)
        return codes.to(self._dtype).mul_(scale.to(self._dtype))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes


class _Product(torch.autograd.Function):
    """x W' with W quantised: it is unpacked for each use, on the way back too, and let go."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Quantised, bias: Tensor | None, transposed: bool
    ) -> Tensor:
        ctx.weight, ctx.transposed = weight, transposed
        matrix = weight.dequantised()
        return linear(x, matrix.T if transposed else matrix, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        matrix = ctx.weight.dequantised()
        return gradient @ (matrix.T if ctx.transposed else matrix), None, None, None


@contextmanager
def quantised(model: nn.Module, parameters: Sequence[Tensor], bits: Bits) -> Iterator[None]:
    """Hold the matrices of linear layers and embeddings that are not trained in few bits.

    The exact ones wait in the host's memory where the model is on an accelerator, in a
    temporary file where it is on the CPU, and come back bit for bit. Other frozen tensors
    (norms, biases) are few and stay.

    Args:
        parameters: what is trained.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for number, (weight, modules) in enumerate(_frozen(model, parameters).items()):
            stack.callback(parked(weight, Path(folder) / str(number)))
            packed = Quantised(weight, bits)
            weight.data = weight.data.new_empty(0)  # the exact one goes
            for module in modules:
                stack.enter_context(forward_replaced(module, _forward(module, packed)))
        yield


def _frozen(model: nn.Module, parameters: Sequence[Tensor]) -> dict[nn.Parameter, list[nn.Module]]:
    """The matrices to quantise, and the modules that use each.

    Modules of classes of their own (embeddings that are scaled) may do with theirs what they
    like, so those stay.
    """
    trained = {id(p) for p in parameters}
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    can = [p for p, own in users.items() if p.ndim == 2 and all(_can(m, trained) for m in own)]
    # The largest last: while one is packed there are two of it.
    return {p: users[p] for p in sorted(can, key=Tensor.numel)}


def _can(module: nn.Module, trained: set[int]) -> bool:
    known = type(module) in (nn.Linear, nn.Embedding, Conv1D)
    return known and not any(id(p) in trained for p in module.parameters(recurse=False))


def _forward(module: nn.Module, packed: Quantised) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.Embedding):
        return packed.rows
    bias, transposed = module.bias, isinstance(module, Conv1D)
    return lambda x: _Product.apply(x, packed, bias, transposed)  # type: ignore[no-untyped-call]
