"""What a visit needs of memory here, by formula, activations of the largest batch included."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from fullfed.config import Recipe
from fullfed.federation.messages import Plan
from fullfed.federation.method import Submodels
from fullfed.methods.blockllm import BlockLLM
from fullfed.methods.codecs.codec import Shapes, elements
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.own_training import OwnTraining
from fullfed.runs.environment import PeakMemory
from fullfed.runs.graph_memory import graph_bytes
from fullfed.runs.visit_memory import (
    replica_bytes,
    submodel_visit_bytes,
    tensor_bytes,
    visit_bytes,
)
from fullfed.runs.workload import Workload


@dataclass(frozen=True)
class Memory:
    """What a visit needs, in bytes, by formula.

    Attributes:
        visit: weights, gradients, the optimizer's state, and activations of the run's largest
            batch; of a client that holds no replica (``method.surrogate``) what it was sent, in
            the place of the weights.
        graph: of these, the most that the passes of that batch have at once.
        server: the server's replica and its message, which a run in one process has beside the
            visit of a client without a replica; 0 where clients hold replicas, since they share it.
        process: what this process has besides; 0 on a GPU.
        there: what the machine, or its GPU, has in all.
        replica: one at rest, as the run's own process has where worker processes make the visits.
        workers: of these, how many there are at once; on GPUs, how many share one.
    """

    visit: int
    graph: int
    server: int
    process: int
    there: int
    replica: int = 0
    workers: int = 1

    @property
    def peak(self) -> int:
        """What to compare with a run's ``peak_memory_by_part``."""
        return self.visit + self.server + self.process

    @property
    def together(self) -> int:
        """What all processes of the run need at once."""
        if not self.replica:
            return self.peak
        return self.workers * self.peak + self.replica + self.process


def memory_of(
    recipe: Recipe,
    method: Composition,
    model: PreTrainedModel,
    work: Workload,
    device: torch.device,
    process: int,
) -> Memory:
    """What a run's visits need at most.

    Args:
        method: the recipe's, built for the model.
        model: without weights, in the replicas' dtype.
        work: of the run.
        device: that would compute.
        process: what this one had before there was a model.
    """
    on_gpu = device.type == "cuda"
    there = _gpu_bytes(device) if on_gpu else _ram()
    held_by_server, workers = replica_bytes(model, method, recipe.model.rounding), 1
    if (count := recipe.simulation.workers) > 1:
        workers = -(-count // torch.cuda.device_count()) if on_gpu else count
    shared = (held_by_server if count > 1 else 0, workers)
    submodels = method.submodels
    if submodels is None:
        # Of blocks the first has the longest graph, and the largest the most gradients.
        needed = []
        for shapes in [method.parts[0], max(method.parts, key=elements)][: len(method.parts)]:
            graph = _graph(recipe, method, model, shapes, work, device)
            visit = visit_bytes(model, method, shapes, recipe.model.rounding, graph)
            needed.append((visit, graph))
        return Memory(*max(needed), 0, process, there, *shared)
    found = []
    for part in {min(work.plan_of), max(work.plan_of, key=lambda p: elements(method.blocks[p]))}:
        plan, shapes = work.plan_of[part], method.blocks[part]
        held = partial(_on_submodel, submodels, plan, device)
        graph = _graph(recipe, method, model, shapes, work, device, held)
        message = tensor_bytes(submodels.submodel(model, plan).tensors)
        server = held_by_server + (0 if on_gpu else message)
        found.append((submodel_visit_bytes(model, method, plan, graph), graph, server))
    return Memory(*max(found), process, there, *shared)


def resident(device: torch.device) -> int:
    """What this process has in memory now; 0 where a GPU computes."""
    if device.type == "cuda":
        return 0
    now = PeakMemory()
    now.begin("now")
    return now.end()["now"] or 0


def _graph(
    recipe: Recipe,
    method: Composition,
    model: PreTrainedModel,
    shapes: Shapes,
    work: Workload,
    device: torch.device,
    held: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
) -> int:
    trained = shapes if isinstance(method.local, FirstOrder | OwnTraining) else ()
    memory = recipe.memory
    if isinstance(method, BlockLLM):  # measures everything's gradients, one at a time
        trained = method.setting.shapes
        memory = memory.model_copy(update={"optimizer_in_backward": True})
    again = copy.deepcopy(model)
    return graph_bytes(again, trained, work.largest, recipe.local, memory, device, held)


def _on_submodel(
    submodels: Submodels, plan: Plan, device: torch.device, model: PreTrainedModel
) -> PreTrainedModel:
    """What a client without a replica makes of what it is sent."""
    static, sent = submodels.static_weights(model), submodels.submodel(model, plan)
    return submodels.assemble(model, static, sent, plan, device)


def _ram() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpu_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)
