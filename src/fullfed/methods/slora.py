"""SLoRA: a sparse phase finds where LoRA begins (Babakniya et al., "SLoRA: Federated parameter
efficient fine-tuning of language models", arXiv 2308.06522).

    rounds before the switch:  W_0 + S, S zero but for entries that the seed draws; these train
    at the switch:             S ~ (alpha / r) B A, by a truncated singular value decomposition;
                               S is 0 again
    rounds after it:           W_0 + (alpha / r) B A; A and B train, as in FedIT

Everybody knows which entries train, so only their values are sent, with any codec. The server
decomposes S, and the last update of the sparse phase brings A and B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Update, Value
from fullfed.federation.method import NOTHING
from fullfed.methods.checks import BLOCKS, named, part_of, prefixed
from fullfed.methods.codecs.codec import Shapes, check_tensors
from fullfed.methods.composition import Composition
from fullfed.methods.own_training import gradient_work
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import A, Adapters, B, LoraOptions, W, adapted, merge
from fullfed.methods.server_step import server_step
from fullfed.methods.setting import Setting
from fullfed.randomness import Purpose, Stream

_BASE = W.removesuffix(".weight")
VALUES = f"{_BASE}.values"  # what follows a target's name in the name of its entries' values
SPARSE, LOW_RANK = 0, 1  # the blocks: what the two phases train
_FACTORS = "factors/"  # before the names of A and B in the update that brings them


@dataclass(frozen=True)
class SLoRAOptions:
    """
    Attributes:
        rank: r, the smaller side of both factors.
        alpha: the product of the factors is scaled by alpha / r.
        targets: the linear layers that are trained, by the last parts of their names.
        density (share): of a target's entries, that train in the sparse phase.
        sparse_rounds (rounds): how many the sparse phase has.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    density: float = 0.01
    sparse_rounds: int = 5

    def __post_init__(self) -> None:
        LoraOptions(self.rank, self.alpha, self.targets)  # complains of them
        if not 0 < self.density <= 1:
            raise ValueError("density is a share, above 0 and at most 1")
        if self.sparse_rounds < 1:
            raise ValueError("sparse_rounds is at least 1; without them take fedit")

    @property
    def lora(self) -> LoraOptions:
        return LoraOptions(self.rank, self.alpha, self.targets)


def drawn_entries(seed: int, number: int, elements: int, density: float) -> NDArray[np.int64]:
    """The entries of target ``number`` that train, in increasing order: one in each of as many runs
    of equal length, which is a mask of even density without a sort of all entries.

    Args:
        elements: of the target, in the order in which it keeps them; below 2**32.
    """
    count = max(round(density * elements), 1)
    ends = np.arange(count + 1, dtype=np.int64) * elements // count
    words = Stream(seed, Purpose.MASK, block=number).words(count).astype(np.uint64)
    inside = (words * np.diff(ends).astype(np.uint64)) >> np.uint64(32)
    return ends[:-1] + inside.astype(np.int64)


class AddSparse(torch.autograd.Function):
    """x (W + S)'. For the way back it keeps W and the values of S, and not their sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, layer: SparseLayer) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        return linear(x, layer.matrix(values).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, values = ctx.saved_tensors
        layer: SparseLayer = ctx.layer
        back = entries = None
        if ctx.needs_input_grad[0]:
            back = (gradient @ layer.matrix(values).to(gradient.dtype)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            rows = gradient.flatten(0, -2).to(values.dtype)
            whole = rows.T @ x.flatten(0, -2).to(values.dtype)
            entries = layer.kept(whole).flatten()[layer.entries]
        return back, entries, None


class SparseLayer(nn.Module):
    """A linear layer with a sparse matrix added to its own.

    Args:
        layer: the layer; its weight stays as it is.
        entries: int64, which of the weight's, as the layer keeps it, have a value added.

    Attributes:
        values: float32, one for each.
    """

    def __init__(self, layer: nn.Linear | Conv1D, entries: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.values = nn.Parameter(torch.zeros(len(entries), device=layer.weight.device))
        self.register_buffer("entries", entries.to(layer.weight.device), persistent=False)
        self.entries: Tensor
        self._transposed = isinstance(layer, Conv1D)

    def kept(self, matrix: Tensor) -> Tensor:
        """A matrix of the shape (out, in) as the layer keeps its own; and the other way round."""
        return matrix.T if self._transposed else matrix

    def sparse(self, values: Tensor) -> Tensor:
        """S, of the shape (out, in), in the values' type."""
        flat = torch.zeros(self.weight.numel(), dtype=values.dtype, device=values.device)
        return self.kept(flat.index_put_((self.entries,), values).view(self.weight.shape))

    def matrix(self, values: Tensor) -> Tensor:
        """W + S, of the shape (out, in)."""
        return self.kept(self.weight.detach()).to(values.dtype) + self.sparse(values)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = AddSparse.apply(x, self.values, self)  # type: ignore[no-untyped-call]
        return found if self.bias is None else found + self.bias

    def plain(self) -> nn.Linear | Conv1D:
        """An ordinary layer that computes the same."""
        rows, columns = self.kept(self.weight).shape
        with torch.device("meta"):
            made = Conv1D(rows, columns) if self._transposed else nn.Linear(columns, rows)  # type: ignore[no-untyped-call]
        total = self.kept(self.matrix(self.values.detach())).to(self.weight.dtype)
        made.weight, made.bias = nn.Parameter(total.contiguous()), self.bias
        return made


@dataclass(frozen=True)
class SparseAndAdapters(Adapters):
    """Values of drawn entries of every target, and both factors. Which of them a visit trains, its
    plan says.

    Attributes:
        density: the share of entries.
    """

    density: float

    def attach(self, model: PreTrainedModel) -> None:
        super().attach(model)
        for number, target in enumerate(adapted(dict(model.named_parameters()))):
            layer = model.get_submodule(target + _BASE)
            assert isinstance(layer, nn.Linear | Conv1D)  # PEFT's adapters have no other targets
            entries = drawn_entries(self.seed, number, layer.weight.numel(), self.density)
            model.set_submodule(target + _BASE, SparseLayer(layer, torch.from_numpy(entries)))

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if name.endswith((VALUES, A, B))}

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        """Add what was learned to the matrices. Before the switch there is no adapter to save."""
        layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
        sparse = any(bool(layer.values.any()) for layer in layers.values())
        for name, layer in layers.items():
            model.set_submodule(name, layer.plain())
        if sparse:
            merge(model)
        else:
            super().detach(model, folder)


@dataclass(frozen=True)
class Phases(SampledCohort):
    """A cohort a round; plans say which phase it is in.

    Attributes:
        sparse_rounds: of the first phase.
    """

    sparse_rounds: int

    def visits(self, round: int) -> Mapping[int, Mapping[str, Value]]:
        return {client: {"block": self.phase(round)} for client in self.cohort(round)}

    def phase(self, round: int) -> int:
        return SPARSE if round < self.sparse_rounds else LOW_RANK


def low_rank(change: Tensor, drawn: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Factors whose product times ``scaling`` is the best approximation of a change of its rank:
    B = U sqrt(S / scaling), A = sqrt(S / scaling) V'.

    Args:
        change: (out, in).
        drawn: (rank, in); its last rows take the places of A's that the change has not, because it
            is of a lower rank. B is 0 there.

    Returns:
        B and A, float32.
    """
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    least = float(s[0]) * max(change.shape) * torch.finfo(change.dtype).eps
    found = min(len(drawn), int((s > least).sum()))
    root = (s[:found] / scaling).sqrt()
    b, a = change.new_zeros(len(change), len(drawn)), drawn.detach().clone()
    b[:, :found], a[:found] = u[:, :found] * root, root[:, None] * v[:found]
    return b, a


@dataclass(frozen=True, kw_only=True)
class TwoPhases(Composition):
    """A composition whose first block's last update brings the second block's start.

    Attributes:
        schedule: says the phases.
        scaling: alpha / r.
    """

    schedule: Phases
    scaling: float

    def completed(self, update: Update, model: PreTrainedModel) -> Update:
        """With the factors, in the last round of the sparse phase. The server alone decomposes, so
        its bits are nobody else's to reproduce."""
        if not self.completion(update.round):
            return update
        own = dict(model.named_parameters())
        values = {name: own[name].detach().clone() for name in self.blocks[SPARSE]}
        self.codec.apply(values, part_of(update, SPARSE), self.blocks[SPARSE])
        factors: dict[str, Tensor] = {}
        for target in adapted(own):
            layer = model.get_submodule(target + _BASE)
            assert isinstance(layer, SparseLayer)
            change = layer.sparse(values[target + VALUES])
            b, a = low_rank(change, own[target + A], self.scaling)
            factors |= {target + A: a.contiguous(), target + B: b}
        return replace(update, tensors={**update.tensors, **prefixed(_FACTORS, factors)})

    def completion(self, round: int) -> Shapes:
        last = round == self.schedule.sparse_rounds - 1
        return prefixed(_FACTORS, self.blocks[LOW_RANK]) if last else {}

    def check_update(self, update: Update) -> None:
        factors, rest = _parted(update)
        due = {} if update.skipped else named(_FACTORS, self.completion(update.round))
        kinds = {name: (shape, torch.float32) for name, shape in due.items()}
        check_tensors(replace(update, tensors=factors), kinds)
        super().check_update(rest)
        if not update.skipped and update.values[BLOCKS] != [self.schedule.phase(update.round)]:
            raise MessageError("the update is of another phase than its round")

    def apply(
        self, model: PreTrainedModel, update: Update, moments: Mapping[str, Tensor] = NOTHING
    ) -> None:
        factors, rest = _parted(update)
        super().apply(model, rest, moments)
        if factors:
            parameters = self.scope.replicated(model)
            for name, factor in factors.items():
                parameters[name].copy_(factor)
            for name in self.blocks[SPARSE]:
                parameters[name].zero_()


def _parted(update: Update) -> tuple[Mapping[str, Tensor], Update]:
    """The factors that an update brings, and the update without them."""
    rest = {n: t for n, t in update.tensors.items() if not n.startswith(_FACTORS)}
    return named(_FACTORS, update.tensors), replace(update, tensors=rest)


def scope(seed: int, options: SLoRAOptions) -> SparseAndAdapters:
    return SparseAndAdapters(seed, options.lora, options.density)


def build(setting: Setting, options: SLoRAOptions) -> Composition:
    """SLoRA for a federation.

    Raises:
        UserError: the recipe asks to hold frozen matrices in few bits, or to keep what comes into
            the first layer.
    """
    if setting.memory.frozen != "exact":
        raise UserError(
            "memory.frozen: SLoRA holds its frozen matrices exactly, since it adds to entries of "
            "them; leave the key out."
        )
    if setting.memory.cache_inputs and setting.layers and setting.layers[0]:
        raise UserError(
            "memory.cache_inputs: SLoRA trains the first layer in every visit, so nothing comes "
            "before it that could be kept; leave the key out."
        )
    sparse = {name: s for name, s in setting.shapes.items() if name.endswith(VALUES)}
    factors = {name: s for name, s in setting.shapes.items() if not name.endswith(VALUES)}
    cohort = setting.seed, setting.clients, setting.cohort_size
    return TwoPhases(
        setting=setting,
        scope=scope(setting.seed, options),
        local=gradient_work(setting),
        codec=setting.codec,
        step=server_step("auto", setting.seed, setting.codec, setting.cohort_size),
        schedule=Phases(*cohort, options.sparse_rounds),
        blocks=(sparse, factors),
        scaling=options.lora.scaling,
    )
