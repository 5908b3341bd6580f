"""One model over several devices, a process each: FSDP2's rows of every parameter, and a batch's
samples dealt out among the processes.

Gradients and losses are those of the whole batch, but for the order of their sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fullfed.data.batches import Batch
from fullfed.sketch.shards import added, mesh_of
from fullfed.training.layers import find_layers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each process its rows of every parameter, on its device.

    A layer's parameters are brought together while the layer computes, and the others' while the
    model does. Gradients are the processes' sums.

    Args:
        model: whole, the same in all processes. It may be on another device than the mesh: one
            layer at a time is moved.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for module in (*find_layers(model)[1], model):
        # Not kept together after a forward pass: visits change parameters between two of them.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo multiplies nothing, not even by 1


def shares(
    batch: Batch, most: int | None, parameters: Iterable[Tensor]
) -> list[tuple[Batch, float]]:
    """The parts of a batch that this process computes, and how much the mean loss of each counts.

    All processes have as many parts, since they bring parameters together for each: who has none
    left computes another's, which does not count.

    Args:
        most: samples in a part; None for as many as there are.
        parameters: the model's.
    """
    mesh = mesh_of(parameters)
    if mesh is None:
        return [(part, part.tokens / batch.tokens) for part in batch.split(most)]
    count, samples = mesh.size(), len(batch.labels)
    even = -(-samples // count)
    parts = batch.split(even if most is None else min(most, even))
    own = [(part, part.tokens / batch.tokens) for part in parts[mesh.get_local_rank() :: count]]
    lacking = -(-len(parts) // count) - len(own)
    return own + [(parts[0], 0.0)] * lacking


def over_all(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The sum of all processes' shares of a loss, a scalar on their devices."""
    mesh = mesh_of(parameters)
    return loss if mesh is None else added(loss.reshape(1), mesh)[0]
