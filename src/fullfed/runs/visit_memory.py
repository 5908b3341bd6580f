"""What a visit needs of memory, by the tables of docs/memory.md: no weights are needed to tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable, Recipe
from fullfed.errors import UserError
from fullfed.federation.messages import Plan
from fullfed.methods.blockllm import BlockLLM
from fullfed.methods.codecs.codec import Shapes
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.own_training import OwnTraining
from fullfed.methods.setting import Setting
from fullfed.methods.suffixes import SuffixComposition
from fullfed.training.layers import layer_names
from fullfed.training.optimizers import make_optimizers
from fullfed.training.prefix import Prefix

_PACKED = {"int8": 1.0, "int4": 0.53}  # bytes an element


def visit_bytes(
    model: PreTrainedModel,
    method: Composition,
    shapes: Shapes,
    rounding: Literal["master", "stochastic"],
    graph: int = 0,
) -> int:
    """The peak of a visit.

    Args:
        model: in the replicas' dtype, with what the method's scope added; may be without weights.
        method: the recipe's; its setting has the tables.
        shapes: what the visit trains, by name.
        rounding: the recipe's ``model.rounding``.
        graph: bytes of the passes of a batch, as ``graph_memory.graph_bytes`` has them; without
            them activations are left out.
    """
    trained = {name: p for name, p in method.scope.trained(model).items() if name in shapes}
    held = replica_bytes(model, method, rounding)
    before = 0 if method.offload else _values_before(trained, rounding)
    memory = method.setting.memory
    if isinstance(method.local, FirstOrder | OwnTraining):
        working = _training(model, method, trained, graph)
        if isinstance(method, BlockLLM):  # measures one gradient at a time of everything
            working = max(working, max(p.nbytes for p in model.parameters()) + graph)
    else:
        # Losses are of perturbed copies, one part of the model at a time.
        exact = 0 if method.offload else _copies(trained)
        working = exact + max(p.nbytes for p in model.parameters()) + graph
    if isinstance(method, SuffixComposition):
        prefix = Prefix(model, trained.values())
        away = sum(p.nbytes for p in prefix.waiting)
        there = max((sum(p.nbytes for p in own) for own in prefix.stages), default=0)
        # A layer of the prefix is gone when training begins, and all are back afterwards.
        during = held - away + before + max(working, there)
        return max(during, held + before + _copies(trained))
    if memory.frozen == "exact":
        return held + before + working
    frozen = [p for name, p in model.named_parameters() if name not in trained]
    saved = sum(p.nbytes - int(_PACKED[memory.frozen] * p.numel()) for p in frozen)
    packed = held - saved + before + working + max(p.nbytes for p in frozen)  # one is unpacked
    return max(packed, held + before + _copies(trained))  # the exact model is back afterwards


def replica_bytes(
    model: PreTrainedModel, method: Composition, rounding: Literal["master", "stochastic"]
) -> int:
    """What a replica is at rest; the arguments are those of ``visit_bytes``."""
    exact = _copies(method.replicated(model)) if rounding == "master" else 0
    return sum(p.nbytes for p in model.parameters()) + exact + tensor_bytes(method.moments(model))


def submodel_visit_bytes(
    model: PreTrainedModel, method: Composition, plan: Plan, graph: int = 0
) -> int:
    """The peak of a visit at a client without a replica.

    Args:
        model, method: as for ``visit_bytes``; the model is without weights.
        plan: of the visit.
        graph: bytes of the passes of a batch on the submodel; without them activations are left
            out.
    """
    assert method.submodels is not None  # nobody asks otherwise
    shapes = method.blocks[method.part(plan) or 0]
    trained = {name: p for name, p in model.named_parameters() if name in shapes}
    static = method.submodels.static_weights(model).tensors
    sent = method.submodels.submodel(model, plan).tensors
    parameters = dict(model.named_parameters())
    packed = [name for name, p in {**static, **sent}.items() if p.dtype == torch.int8]
    unpacked = max((parameters[name].nbytes for name in packed), default=0)  # to be used
    working = _training(model, method, trained, max(graph, unpacked))
    before = _values_before(trained, "stochastic")
    # A message is read into tensors from bytes that are still there.
    reading = tensor_bytes(sent)
    return tensor_bytes(static) + tensor_bytes(sent) + max(before + working, reading)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of tensors, their numbers alone."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _training(
    model: PreTrainedModel, method: Composition, trained: Mapping[str, Tensor], graph: int
) -> int:
    """What first-order steps need beside the model and the values before."""
    memory, local = method.setting.memory, method.setting.local
    hidden = {name for layer in layer_names(model) for name in layer}
    # When gradients are all there, activations are gone.
    working = _copies(trained) + max(_gradients(trained, memory), graph) + memory.cache_inputs
    if method.protects_records:
        working += 4 * sum(p.numel() for p in trained.values())  # the sum of clipped gradients
    shapes = {name: p.shape for name, p in trained.items()}
    return working + optimizer_bytes(local, shapes, hidden)


def optimizer_bytes(local: LocalTable, shapes: Shapes, hidden: Collection[str]) -> int:
    """What the recipe's optimizer keeps of parameters of these shapes after a step.

    Args:
        hidden: the names of those in the model's layers.
    """
    # On the meta device, where a step costs nothing and tensors have their sizes alone.
    parameters = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    optimizers = dict.fromkeys(make_optimizers(local, parameters, hidden, fused=False).values())
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    with _OnesForNumbers():  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    return sum(
        value.nbytes
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


class _OnesForNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, a number that is read from a tensor without values is 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta
        return 1.0 if read else func(*args, **(kwargs or {}))


def _copies(parameters: Mapping[str, Tensor]) -> int:
    """Of float32 copies of those that are in 16 bits."""
    return sum(4 * p.numel() for p in parameters.values() if p.dtype.itemsize == 2)


def _values_before(trained: Mapping[str, Tensor], rounding: str) -> int:
    """Of what the visit began from; masters stay with the replica, and are counted there."""
    kept = [p for p in trained.values() if p.dtype.itemsize == 4 or rounding == "stochastic"]
    return sum(4 * p.numel() for p in kept)


def _gradients(trained: Mapping[str, Tensor], memory: MemoryTable) -> int:
    """Of all at once, or of the largest, in its own type and in float32."""
    if not memory.optimizer_in_backward:
        return sum(4 * p.numel() for p in trained.values())
    return max(4 * p.numel() + (p.nbytes if p.dtype.itemsize == 2 else 0) for p in trained.values())


def check_memory(recipe: Recipe, model: PreTrainedModel, setting: Setting) -> None:
    """See that there is something of what a recipe asks to hold in less memory, for a method whose
    visits train all of the scope.

    Raises:
        UserError: there is not.
    """
    frozen = len(setting.shapes) < len(list(model.parameters()))
    if recipe.memory.frozen != "exact" and not frozen:
        raise UserError(
            f"memory.frozen: {recipe.method.name} trains every parameter in every visit, so "
            "nothing is frozen; leave the key out."
        )
    if recipe.memory.cache_inputs and setting.layers and setting.layers[0]:
        raise UserError(
            f"memory.cache_inputs: {recipe.method.name} trains the first layer in every visit, so "
            "nothing comes before it that could be kept; leave the key out."
        )
