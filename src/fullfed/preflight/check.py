"""Everything that can be known of a recipe before it is carried out; what is wrong shows first."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fullfed.config import Recipe
from fullfed.data.federated import FederatedData
from fullfed.evaluation.generation import check_room, context_length
from fullfed.evaluation.metrics import METRICS
from fullfed.methods.codecs.codec import Shapes, elements
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.own_training import OwnTraining
from fullfed.preflight.samples import Samples, samples_of
from fullfed.preflight.timing import Timing, time_work, with_few_steps
from fullfed.recipe_file import RecipeSource, load_recipe
from fullfed.runs.assembly import (
    Assembly,
    Choices,
    build_method,
    check_brought,
    choose,
    settled,
)
from fullfed.runs.environment import PeakMemory
from fullfed.runs.estimate import Estimate, reckon
from fullfed.runs.graph_memory import graph_bytes
from fullfed.runs.loading import (
    find_device,
    load_blank,
    load_model,
    max_tokens,
    read_data,
    tokenize_data,
)
from fullfed.runs.visit_memory import visit_bytes
from fullfed.runs.workload import Workload, workload


@dataclass(frozen=True)
class Memory:
    """What a visit needs, in bytes, by formula.

    Attributes:
        visit: weights, gradients, the optimizer's state, and activations of the run's largest
            batch.
        graph: of these, the most that the passes of that batch have at once.
        process: what this process has besides; 0 on a GPU.
        there: what the machine, or its GPU, has in all.
    """

    visit: int
    graph: int
    process: int
    there: int

    @property
    def peak(self) -> int:
        """What to compare with a run's ``peak_memory_by_part``."""
        return self.visit + self.process


@dataclass(frozen=True)
class Check:
    """What ``check`` found out.

    Attributes:
        recipe: that was checked.
        device: what would compute.
        samples: what the clients have.
        work: steps and tokens of the run.
        evaluations: of the run, that of the base model included.
        costs: bytes and parameters; None where clients hold no replica (``method.surrogate``).
        memory: of a visit, by formula; None as above.
        timing: what was measured; None if nothing was.

    Examples:
        >>> found = fullfed.check("first.toml", step=False)
        >>> found.samples.longest_tokens, found.work.visits, found.work.steps
        (40, 4, 12)
    """

    recipe: Recipe
    device: str
    samples: Samples
    work: Workload
    evaluations: int
    costs: Estimate | None
    memory: Memory | None
    timing: Timing | None


def check(recipe: RecipeSource, *, step: bool = True, overrides: Sequence[str] = ()) -> Check:
    """See that a recipe can be carried out, and what that takes. Nothing is left behind.

    What can be seen without weights comes first: options, data, how samples are worded, and
    whether method and model go together. Then the weights are loaded for a visit of three steps.

    Args:
        recipe, overrides: as for ``run``.
        step: whether to carry out that visit and a part of an evaluation, to tell the time.

    Raises:
        UserError: whatever ``run`` would raise before its first round.

    Examples:
        >>> fullfed.check("first.toml").costs.bytes_up < 4096
        True
    """
    parsed = settled(load_recipe(recipe, overrides))
    choices, device = choose(parsed), find_device(parsed.model.device)
    if step:
        check_brought(parsed, None)
    divided = read_data(parsed)
    blank, tokenizer = load_blank(parsed.model.path)
    _check_metrics(parsed, blank)
    data = tokenize_data(parsed, divided, blank, tokenizer)
    samples = samples_of(data, max_tokens(parsed, blank), tokenizer)
    blank.to(getattr(torch, parsed.model.dtype))
    bare = copy.deepcopy(blank)  # a method may add parameters to the other one
    method = build_method(parsed, choices, blank, len(data.clients))
    work = workload(parsed, data.clients, method)
    process = 0 if device.type == "cuda" else _resident()
    evaluations = _evaluations(parsed)
    timing = _timing(parsed, choices, data, work, evaluations) if step else None
    costs = memory = None
    if method.submodels is None:
        costs = reckon(parsed, list(samples.by_client.values()), bare)
        memory = _memory(parsed, method, blank, work, device, process)
    return Check(parsed, str(device), samples, work, evaluations, costs, memory, timing)


def _check_metrics(recipe: Recipe, model: PreTrainedModel) -> None:
    """Raise a UserError if answers cannot be written, or what compares them is not installed."""
    scores = [score for name in recipe.evaluation.metrics if (score := METRICS[name].score)]
    if scores:
        check_room(context_length(model), recipe.evaluation.max_new_tokens)
    for score in scores:
        score(["a"], [["a"]])


def _evaluations(recipe: Recipe) -> int:
    return 1 + -(-recipe.federation.rounds // recipe.evaluation.every)


def _memory(
    recipe: Recipe,
    method: Composition,
    model: PreTrainedModel,
    work: Workload,
    device: torch.device,
    process: int,
) -> Memory:
    there = _gpu_bytes(device) if device.type == "cuda" else _ram()
    # Of blocks the first has the longest graph, and the largest the most gradients.
    parts = [method.blocks[0], max(method.blocks, key=elements)] if method.blocks else []
    needed = [
        (visit_bytes(model, method, shapes, recipe.model.rounding, graph), graph)
        for shapes in parts or [method.setting.shapes]
        for graph in [_graph(recipe, method, model, shapes, work, device)]
    ]
    visit, graph = max(needed)
    return Memory(visit, graph, process, there)


def _graph(
    recipe: Recipe,
    method: Composition,
    model: PreTrainedModel,
    shapes: Shapes,
    work: Workload,
    device: torch.device,
) -> int:
    trained = shapes if isinstance(method.local, FirstOrder | OwnTraining) else ()
    tables = recipe.local, recipe.memory
    return graph_bytes(copy.deepcopy(model), trained, work.largest, *tables, device)


def _resident() -> int:
    """What this process has in memory now."""
    now = PeakMemory()
    now.begin("now")
    return now.end()["now"] or 0


def _ram() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpu_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


def _timing(
    recipe: Recipe, choices: Choices, data: FederatedData, work: Workload, evaluations: int
) -> Timing:
    short = with_few_steps(recipe)
    model, tokenizer = load_model(recipe.model.path, recipe.model.dtype, recipe.model.device)
    method = build_method(short, choices, model, len(data.clients))
    return time_work(Assembly(short, model, tokenizer, data, method), work, evaluations)
