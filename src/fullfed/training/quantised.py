"""Holds frozen weights in 8 or 4 bits while a client trains, and builds submodels from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fullfed.training.layers import find_layers, forward_replaced, pass_on
from fullfed.training.offload import Offload

Bits = Literal[8, 4]
_GROUP = 64  # elements that share a scale in 4 bits; in 8 bits a whole row does
_ROWS = 256  # taken at a time: a float32 copy of a whole matrix would undo what is saved


class Quantised:
    """A matrix in 8 or 4 bits: round(x / s), s the largest absolute value over 127 or 7.

    One scale a row in 8 bits, one for every 64 elements of a row in 4 (rows of other lengths:
    the whole row).

    Args:
        codes: int8, shape (rows, groups, columns of a group); of 4 bits two columns share a byte.
        scale: of the matrix's own type, shape (rows, groups, 1).
        shape: of the matrix, (rows, columns).
    """

    def __init__(self, codes: Tensor, scale: Tensor, shape: torch.Size) -> None:
        self.codes, self.scale, self._shape = codes, scale, shape
        self._halves = codes.numel() < shape.numel()

    @classmethod
    def of(cls, weight: Tensor, bits: Bits) -> Quantised:
        """A matrix, of shape (rows, columns), in few bits; 8 where 4 leave half a byte over."""
        rows, columns = weight.shape
        if columns % 2:
            bits = 8
        group = _GROUP if bits == 4 and columns % _GROUP == 0 else columns
        grouped = weight.detach().view(rows, columns // group, group)
        parts = [_rounded(part, bits) for part in torch.split(grouped, _ROWS)]
        codes, scale = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return cls(codes, scale, weight.shape)

    def dequantised(self) -> Tensor:
        """The matrix, in its own shape and type."""
        return self._unpack(self.codes, self.scale).view(self._shape)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of it; the shape is that of the index and one dimension more."""
        return self._unpack(self.codes[index], self.scale[index]).flatten(-2)

    def _unpack(self, codes: Tensor, scale: Tensor) -> Tensor:
        if self._halves:
            low, high = (codes << 4) >> 4, codes >> 4  # shifting back repeats the sign
            codes = torch.stack([low, high], dim=-1).flatten(-2)
        return codes.to(scale.dtype).mul_(scale)


def _rounded(part: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    codes, scale = quantise(part, 127 if bits == 8 else 7, part.dtype)
    if bits == 4:
        codes = (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)
    return codes, scale


def quantise(rows: Tensor, largest: int, scale_type: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes round(x / s), int8, and s for each row of the last dimension, its largest absolute
    value over ``largest``; codes are of the rounded scale, so nothing is lost."""
    scale = (rows.abs().amax(dim=-1, keepdim=True).float() / largest).to(scale_type)
    scale = torch.where(scale > 0, scale, 1)
    return (rows / scale.float()).round_().clamp_(-largest, largest).to(torch.int8), scale


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
        matrix = ctx.weight.dequantised().to(gradient.dtype)  # autocast's, forward and back
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
    with Offload() as store, ExitStack() as stack:
        for weight, modules in quantisable(model, parameters).items():
            stack.callback(_back, weight, store.put(weight))
            packed = Quantised.of(weight, bits)
            weight.data = weight.data.new_empty(0)  # the exact one goes
            for module in modules:
                stack.enter_context(forward_replaced(module, forward_with(packed, module)))
        yield


def _back(weight: nn.Parameter, fetch: Callable[[], Tensor]) -> None:
    weight.data = fetch().to(weight.device)


def quantisable(
    model: nn.Module, parameters: Sequence[Tensor]
) -> dict[nn.Parameter, list[nn.Module]]:
    """The matrices to quantise while ``parameters`` are trained, and the modules that use each.

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


def forward_with(packed: Quantised, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a module computes, its matrix quantised."""
    if isinstance(module, nn.Embedding):
        return packed.rows
    bias, transposed = module.bias, isinstance(module, Conv1D)
    return lambda x: _Product.apply(x, packed, bias, transposed)  # type: ignore[no-untyped-call]


def blank(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model in evaluation mode whose tensors have names and shapes, and take no memory."""
    with torch.device("meta"):
        model = kind(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def assemble(
    model: PreTrainedModel,
    exact: Mapping[str, Tensor],
    packed: Mapping[str, Quantised],
    buffers: Mapping[str, Tensor],
) -> None:
    """Give a blank model what there is of it, in place. Nothing is copied or unpacked.

    What comes into a layer of which there is nothing comes out of it unchanged: transformer
    layers add to what comes in, so the others still make sense of it.

    Args:
        exact: parameters, by name; at least one.
        packed: matrices that ``quantisable`` lists, by name.
        buffers: all of the model's, by name.
    """
    names = {p: name for name, p in model.named_parameters()}
    nothing = next(iter(exact.values())).new_empty(0)
    found = {name: nn.Parameter(exact.get(name, nothing), False) for name in names.values()}
    users: list[tuple[nn.Module, Quantised]] = []
    for module in model.modules():
        for place, parameter in list(module.named_parameters(recurse=False)):
            name = names[parameter]
            setattr(module, place, found[name])
            if name in packed:
                users.append((module, packed[name]))
    for module, matrix in users:  # whose biases are there by now
        module.forward = forward_with(matrix, module)
    for name, buffer in buffers.items():
        owner, _, place = name.rpartition(".")
        setattr(model.get_submodule(owner), place, buffer)
    _pass_over_layers(model, exact.keys() | packed.keys())


def _pass_over_layers(model: nn.Module, there: set[str]) -> None:
    prefix, layers = find_layers(model)
    for number, layer in enumerate(layers):
        if there.isdisjoint(name for name, _ in layer.named_parameters(f"{prefix}.{number}")):
            layer.forward = pass_on
