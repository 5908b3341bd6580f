"""Everything that can be known of a recipe before it is carried out; what is wrong shows first."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import Recipe
from fullfed.data.federated import FederatedData
from fullfed.evaluation.generation import check_room, context_length
from fullfed.evaluation.metrics import METRICS
from fullfed.preflight.memory import Memory, memory_of, resident
from fullfed.preflight.samples import Samples, samples_of
from fullfed.preflight.timing import Timing, time_work
from fullfed.recipe_file import RecipeSource, load_recipe
from fullfed.runs.assembly import (
    Assembly,
    Choices,
    build_method,
    check_examples,
    check_records,
    choose,
    settled,
)
from fullfed.runs.brought import with_trainer
from fullfed.runs.checking import check_trusted
from fullfed.runs.estimate import Estimate, reckon
from fullfed.runs.given import Given, Records
from fullfed.runs.loading import (
    find_device,
    load_blank,
    load_model,
    max_tokens,
    read_data,
    tokenize_data,
)
from fullfed.runs.workload import Workload, workload
from fullfed.training.trainer import Trainer


@dataclass(frozen=True)
class Check:
    """What ``check`` found out.

    Attributes:
        recipe: that was checked.
        device: what would compute.
        samples: what the clients have.
        work: steps and tokens of the run.
        evaluations: of the run, that of the base model included.
        costs: bytes and parameters.
        memory: of a visit, by formula.
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
    costs: Estimate
    memory: Memory
    timing: Timing | None


def check(
    recipe: RecipeSource,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    clients: Mapping[str, Records] | None = None,
    test: Records | None = None,
    local: Trainer | None = None,
    step: bool = True,
    overrides: Sequence[str] = (),
) -> Check:
    """See that a recipe can be carried out, and what that takes. Nothing is left behind.

    What can be seen without weights comes first: options, data, how samples are worded, and
    whether method and model go together. Then the weights are loaded for a visit of three steps.

    Args:
        recipe, model, tokenizer, clients, test, overrides: as for ``run``. What is given as an
            object is in a temporary folder meanwhile.
        local: as for ``run``.
        step: whether to carry out that visit and a part of an evaluation, to tell the time.

    Raises:
        UserError: whatever ``run`` would raise before its first round.

    Examples:
        >>> fullfed.check("first.toml").costs.bytes_up < 4096
        True
    """
    given = Given(model, tokenizer, clients, test)
    if given.nothing:
        return _check(load_recipe(recipe, overrides), local, step)
    with given.for_now(recipe, overrides) as named:
        return _check(named, local, step)


def _check(recipe: Recipe, local: Trainer | None, step: bool) -> Check:
    needs_one = step or local is not None  # bytes and memory do not depend on a trainer
    parsed = settled(with_trainer(recipe, local) if needs_one else recipe)
    choices, device = choose(parsed, local), find_device(parsed.model.device)
    divided = read_data(parsed)
    check_trusted(parsed, [part.name for part in divided.parts])
    check_examples(parsed, divided.train)
    check_records(parsed, min(len(part.indices) for part in divided.parts))
    blank, tokenizer = load_blank(parsed.model.path)
    _check_metrics(parsed, blank)
    data = tokenize_data(parsed, divided, blank, tokenizer)
    samples = samples_of(data, max_tokens(parsed, blank), tokenizer)
    blank.to(getattr(torch, parsed.model.dtype))
    bare = copy.deepcopy(blank)  # a method may add parameters to the other one
    method = build_method(parsed, choices, blank, len(data.clients))
    work = workload(parsed, data.clients, method)
    before = resident(device)
    evaluations = _evaluations(parsed)
    timing = _timing(parsed, choices, data, work, evaluations) if step else None
    costs = reckon(parsed, list(samples.by_client.values()), bare)
    memory = memory_of(parsed, method, blank, work, device, before)
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


def _timing(
    recipe: Recipe, choices: Choices, data: FederatedData, work: Workload, evaluations: int
) -> Timing:
    def assembled(one: Recipe) -> Assembly:
        model, tokenizer = load_model(one.model.path, one.model.dtype, one.model.device)
        method = build_method(one, choices, model, len(data.clients))
        return Assembly(one, model, tokenizer, data, method)

    return time_work(assembled, recipe, work, evaluations)
