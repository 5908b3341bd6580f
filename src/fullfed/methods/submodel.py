"""Submodels: what clients too weak for a whole model train on (FedCyBGD's compressed download)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Update
from fullfed.methods.codecs.codec import Shapes
from fullfed.methods.schedules import named_block
from fullfed.training.quantised import Bits, Quantised, blank, quantisable
from fullfed.training.quantised import assemble as assemble_from

_SCALE = "/scale"  # after a packed matrix's name: the name of its scales
_BUFFER = "buffer/"  # before a buffer's name


@dataclass(frozen=True)
class BlockSubmodels:
    """What clients that hold no replica are sent, and the model each makes of it.

    Static weights are sent once: what no visit trains (embeddings, final norm, head where ``outer``
    is off) and the model's buffers. With every plan comes a submodel: the block to train, exact,
    and the other blocks but for those the plan drops. Frozen matrices are packed in both, in the
    form in which they are computed with (training.quantised).

    Attributes:
        blocks: of the model.
        bits: of a packed matrix's elements.
    """

    blocks: tuple[Shapes, ...]
    bits: Bits

    def static_weights(self, model: PreTrainedModel) -> Update:
        buffers = {_BUFFER + name: buffer.clone() for name, buffer in model.named_buffers()}
        return Update(0, {}, {**self._sent(model, self._outside(model), ()), **buffers})

    def submodel(self, model: PreTrainedModel, plan: Plan) -> Update:
        """
        Raises:
            MessageError: the plan names blocks that do not exist, or is for a client that holds
                the whole model.
        """
        own = named_block(self.blocks, plan)
        return Update(plan.round, {}, self._sent(model, self._kept(plan), own))

    def assemble(
        self,
        like: PreTrainedModel,
        static_weights: Update,
        submodel: Update,
        plan: Plan,
        device: torch.device,
    ) -> PreTrainedModel:
        model = blank(type(like), like.config)
        own, kept = named_block(self.blocks, plan), self._kept(plan)
        if submodel.round != plan.round:
            raise MessageError("the plan is not that of the submodel it came with")
        _check(submodel.tensors, self._sent(model, kept, own))
        _check(static_weights.tensors, self.static_weights(model).tensors)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        exact: dict[str, Tensor] = {}
        packed: dict[str, Quantised] = {}
        buffers: dict[str, Tensor] = {}
        sent = {**static_weights.tensors, **submodel.tensors}
        for name, tensor in sent.items():
            if name.startswith(_BUFFER):
                buffers[name.removeprefix(_BUFFER)] = tensor.to(device)
            elif name + _SCALE in sent:
                scale = sent[name + _SCALE].to(device)
                packed[name] = Quantised(tensor.to(device), scale, shapes[name])
            elif not name.endswith(_SCALE):
                # What is trained lies in memory of its own, where a matrix of torch's would lie.
                exact[name] = tensor.to(device, copy=name in own)
        assemble_from(model, exact, packed, buffers)
        return model

    def _outside(self, model: PreTrainedModel) -> list[str]:
        inside = {name for part in self.blocks for name in part}
        return [name for name, _ in model.named_parameters() if name not in inside]

    def _kept(self, plan: Plan) -> list[str]:
        """The parameters of the blocks that a client does not go without."""
        dropped = plan.values.get("dropped")
        count = len(self.blocks)
        if not isinstance(dropped, list) or not all(
            type(b) is int and 0 <= b < count for b in dropped
        ):
            raise MessageError("the plan's value 'dropped' is not a list of blocks")
        kept = (part for number, part in enumerate(self.blocks) if number not in dropped)
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
        raise MessageError("the submodel does not hold exactly what its plan says")
    for name, tensor in sent.items():
        due = expected[name]
        # Weights may have fewer bits at the server; codes have not.
        alike = tensor.dtype == due.dtype or (
            tensor.is_floating_point() and due.is_floating_point()
        )
        if tensor.shape != due.shape or not alike:
            raise MessageError(
                f"the submodel's {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, "
                f"not {tuple(due.shape)} of {due.dtype}"
            )
