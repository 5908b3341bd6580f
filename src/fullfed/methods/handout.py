"""What a client without a replica is sent, and the model that it makes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.federation.messages import MessageError, Plan, Update
from fullfed.methods.blocks import Shapes, dropped_blocks, named_block
from fullfed.training.assembled import assemble, blank
from fullfed.training.quantised import Bits, Quantised, quantisable

_SCALE = "/scale"  # after a packed matrix's name: the name of its scales
_BUFFER = "buffer/"  # before a buffer's name


@dataclass(frozen=True)
class Handouts:
    """The surrogates of a model in blocks (surrogate.py).

    Once a client is given its equipment: what no visit trains (embeddings, final norm, head where
    ``outer`` is off) and the model's buffers. With every plan comes a handout: the block it shall
    train, exact, and the others but for those the plan drops. Frozen matrices are packed in
    both, in the form in which they are computed with (training.quantised).

    Attributes:
        parts: the blocks.
        bits: of a packed matrix's elements.
    """

    parts: tuple[Shapes, ...]
    bits: Bits

    def equipment(self, model: PreTrainedModel) -> Update:
        buffers = {_BUFFER + name: buffer.clone() for name, buffer in model.named_buffers()}
        return Update(0, {}, {**self._sent(model, self._outside(model), ()), **buffers})

    def handout(self, model: PreTrainedModel, plan: Plan) -> Update | None:
        """None where the plan is for a client that holds the whole model.

        Raises:
            MessageError: the plan names blocks that do not exist.
        """
        kept = self._kept(plan)
        if kept is None:
            return None
        return Update(plan.round, {}, self._sent(model, kept, named_block(self.parts, plan)))

    def assembled(
        self,
        like: PreTrainedModel,
        equipment: Update,
        handout: Update,
        plan: Plan,
        device: torch.device,
    ) -> PreTrainedModel:
        """The surrogate.

        Args:
            like: a model of the same class and configuration; nothing else of it is used.

        Raises:
            MessageError: what was sent is not of this model and this plan.
        """
        model = blank(type(like), like.config)
        own, kept = named_block(self.parts, plan), self._kept(plan)
        if kept is None or handout.round != plan.round:
            raise MessageError("the plan is not that of the surrogate it came with")
        _check(handout.tensors, self._sent(model, kept, own))
        _check(equipment.tensors, self.equipment(model).tensors)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        exact: dict[str, Tensor] = {}
        packed: dict[str, Quantised] = {}
        buffers: dict[str, Tensor] = {}
        sent = {**equipment.tensors, **handout.tensors}
        for name, tensor in sent.items():
            if name.startswith(_BUFFER):
                buffers[name.removeprefix(_BUFFER)] = tensor.to(device)
            elif name + _SCALE in sent:
                scale = sent[name + _SCALE].to(device)
                packed[name] = Quantised(tensor.to(device), scale, shapes[name])
            elif not name.endswith(_SCALE):
                # What is trained lies in memory of its own, where a matrix of torch's would lie.
                exact[name] = tensor.to(device, copy=name in own)
        assemble(model, exact, packed, buffers)
        return model

    def _outside(self, model: PreTrainedModel) -> list[str]:
        inside = {name for part in self.parts for name in part}
        return [name for name, _ in model.named_parameters() if name not in inside]

    def _kept(self, plan: Plan) -> list[str] | None:
        dropped = dropped_blocks(plan, len(self.parts))
        if dropped is None:
            return None
        kept = (part for number, part in enumerate(self.parts) if number not in dropped)
        return [name for part in kept for name in part]

    def _sent(
        self, model: PreTrainedModel, names: Iterable[str], own: Collection[str]
    ) -> dict[str, Tensor]:
        """Some of a model's parameters; those of ``own`` are exact."""
        parameters = dict(model.named_parameters())
        can = quantisable(model, [parameters[name] for name in own])
        tensors: dict[str, Tensor] = {}
        for name in names:
            parameter = parameters[name]
            if parameter in can:
                matrix = Quantised.of(parameter, self.bits)
                tensors |= {name: matrix.codes, name + _SCALE: matrix.scale}
            else:
                tensors[name] = parameter.detach()
        return tensors


def _check(sent: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if sent.keys() != expected.keys():
        raise MessageError("the surrogate does not hold exactly what its plan says")
    for name, tensor in sent.items():
        due = expected[name]
        if tensor.shape != due.shape or tensor.is_floating_point() != due.is_floating_point():
            raise MessageError(
                f"the surrogate's {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, "
                f"not {tuple(due.shape)} of {due.dtype}"
            )
