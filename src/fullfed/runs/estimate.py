"""What a recipe costs, reckoned from shapes and numbers of samples: nothing is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fullfed.config import Recipe
from fullfed.federation.messages import Plan, Update, encode
from fullfed.federation.method import Submodels, sent
from fullfed.federation.server import Traffic
from fullfed.methods.blockllm import BlockLLM
from fullfed.methods.codecs.codec import Shapes, elements
from fullfed.methods.codecs.scaling import exponents_of
from fullfed.methods.composition import Composition
from fullfed.methods.suffixes import SuffixComposition
from fullfed.methods.summed import SummedComposition
from fullfed.recipe_file import RecipeSource
from fullfed.runs.assembly import build_method, choose
from fullfed.runs.given import Given, Records
from fullfed.runs.loading import load_blank, read_data
from fullfed.runs.visit_memory import replica_bytes, submodel_visit_bytes, tensor_bytes, visit_bytes
from fullfed.runs.workload import plans_by_part
from fullfed.units import bytes_text

# What a message has beside its tensors' bytes: in all, for a value, for a tensor; names apart.
_HEADER, _VALUE, _TENSOR = 16, 6, 7
_UPDATE_VALUE = 16  # the same of an update's, with its name: most are in 64 bits, some are lists
_SUM_VALUES = 5  # of an update that is a sum
_SNAPSHOT, _SNAPSHOT_TENSOR = 170, 60
# Of a secure sum's five messages, and for each client in it.
_PHASES_UP, _PHASES_DOWN = (470, 64), (20, 396)


_BYTES_AN_EXPONENT = 0.27  # of a sketch's scales, compressed, in SmolLM2-135M; 0.4 in small models


@dataclass(frozen=True)
class Estimate:
    """What a recipe costs.

    Attributes:
        parameters: the model's, with those that the method adds.
        trained_parameters: in one visit; of the largest block, where visits train blocks.
        clients: how many the data make.
        steps: of a visit, in the mean over clients.
        bytes_up: a client's report, in the mean over the run.
        first_bytes_up: the same in the first round; more, where only sums are known.
        bytes_down: what a client is sent for a visit, in the mean over the run: the plan, and the
            updates since its last visit or a snapshot; without a replica (``method.surrogate``)
            the plan, its submodel and, once, the static weights.
        scales_bytes: of a sketch's scales, which every client is sent once; 0 where it has none.
        run_bytes_up, run_bytes_down: of all visits of the run.
        memory_bytes: the peak of a visit, but for activations, which depend on the samples
            (docs/memory.md).
        workers: processes that make visits at once in a simulation.
        simulation_bytes: what these need together, with the replica of the run's own process where
            that makes none.
        class_bytes: the same of each class of clients, by its name, where a method has classes.

    Examples:
        >>> print(fullfed.estimate("first.toml"))
        967,808 parameters, 967,808 trained in a visit of 3 steps; 24 clients
        ...
    """

    parameters: int
    trained_parameters: int
    clients: int
    steps: float
    bytes_up: int
    first_bytes_up: int
    bytes_down: int
    scales_bytes: int
    run_bytes_up: int
    run_bytes_down: int
    memory_bytes: int
    workers: int
    simulation_bytes: int
    class_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def up_text(self) -> str:
        """What a visit sends up."""
        text = f"{bytes_text(self.bytes_up)} up"
        if self.first_bytes_up > self.bytes_up:
            text += f" ({bytes_text(self.first_bytes_up)} in the first round)"
        return text

    def __str__(self) -> str:
        at_once = (
            f"; {self.workers} worker processes and the server: {bytes_text(self.simulation_bytes)}"
        )
        classes = [f"{name} {bytes_text(own)}" for name, own in self.class_bytes.items()]
        return "\n".join(
            [
                f"{self.parameters:,} parameters, {self.trained_parameters:,} trained in a visit "
                f"of {self.steps:g} steps; {self.clients} clients",
                f"a visit: {self.up_text}, {bytes_text(self.bytes_down)} down, "
                f"{bytes_text(self.memory_bytes)} of memory and activations"
                f"{at_once if self.workers > 1 else ''}",
                *([f"memory by class: {', '.join(classes)}"] if classes else []),
                f"the run: {bytes_text(self.run_bytes_up)} up, "
                f"{bytes_text(self.run_bytes_down)} down",
            ]
        )


def estimate(
    recipe: RecipeSource,
    *,
    model: PreTrainedModel | None = None,
    clients: Mapping[str, Records] | None = None,
    test: Records | None = None,
    overrides: Sequence[str] = (),
) -> Estimate:
    """What a run of a recipe costs in bytes, steps and memory.

    Nothing is trained and no weights are loaded: of the model only its configuration counts. Bytes
    of messages are exact but for a few bytes of their headers; top-k's are the most that
    it may send. Visits that the recipe lets fail are counted as if they did not.

    Args:
        recipe, clients, test, overrides: as for ``run``.
        model: in place of the recipe's ``model.path``.

    Raises:
        UserError: bad input.

    Examples:
        >>> cost = fullfed.estimate("first.toml", overrides=["method.name=fedavg"])
        >>> cost.bytes_up // cost.parameters  # a report has every parameter, in 4 bytes
        4
    """
    given = Given(clients=clients, test=test)
    unnamed = {} if model is None else {"model": {"path": model.name_or_path or "the model"}}
    with given.for_now(recipe, overrides, unnamed) as parsed:
        choose(parsed)
        divided = read_data(parsed)
    blank = load_blank(parsed.model.path)[0] if model is None else _without_weights(model)
    return reckon(parsed, [len(part.indices) for part in divided.parts], blank)


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    with torch.device("meta"):
        blank: PreTrainedModel = AutoModelForCausalLM.from_config(model.config)  # type: ignore[no-untyped-call]
    return blank


def reckon(recipe: Recipe, samples: Sequence[int], model: PreTrainedModel) -> Estimate:
    """What a recipe costs; see ``estimate``.

    Args:
        samples: of each client.
        model: without weights; the method adds what it trains besides.

    Raises:
        UserError: the method does not fit the model.
    """
    steps = fmean(recipe.local.batches(count) for count in samples)
    local = recipe.local.model_copy(update={"steps": round(steps), "epochs": None})
    recipe = recipe.model_copy(update={"local": local})
    model.to(getattr(torch, recipe.model.dtype))
    method = build_method(recipe, choose(recipe), model, len(samples))
    largest = max(method.parts, key=elements)
    visits, first_up, up, down = _traffic(recipe, method, model)
    memory, workers = _memory_bytes(recipe, method, model, largest), recipe.simulation.workers
    replica = replica_bytes(model, method, recipe.model.rounding)
    process = memory + (replica if method.submodels is not None else 0)  # which makes submodels
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=elements(largest),
        clients=len(samples),
        steps=steps,
        bytes_up=round(up / visits),
        first_bytes_up=first_up,
        bytes_down=round(down / visits),
        scales_bytes=_scales_bytes(method),
        run_bytes_up=up,
        run_bytes_down=down,
        memory_bytes=memory,
        workers=workers,
        simulation_bytes=workers * process + (replica if workers > 1 else 0),
        class_bytes=_class_bytes(recipe, method, model),
    )


def _class_bytes(recipe: Recipe, method: Composition, model: PreTrainedModel) -> dict[str, int]:
    classes = method.classes if isinstance(method, SuffixComposition) else ()
    rounding = recipe.model.rounding
    return {name: visit_bytes(model, method, method.blocks[n], rounding) for name, n in classes}


def _memory_bytes(
    recipe: Recipe, method: Composition, model: PreTrainedModel, largest: Shapes
) -> int:
    if method.submodels is None:
        return visit_bytes(model, method, largest, recipe.model.rounding)
    plans = plans_by_part(recipe, method).values()
    return max(submodel_visit_bytes(model, method, plan) for plan in plans)


@dataclass
class _Lengths:
    """Of a run's updates so far, in bytes."""

    sizes: list[int] = field(default_factory=list)
    first: int = 0

    def size(self, index: int, /) -> int:
        return self.sizes[index]


def _traffic(
    recipe: Recipe, method: Composition, model: PreTrainedModel
) -> tuple[int, int, int, int]:
    """(visits, bytes up of the first and of all, down) of a run in which every visit succeeds."""
    lengths, snapshot = _Lengths(), _snapshot_bytes(recipe, method, model)
    traffic = Traffic(lengths, lambda: snapshot, method.cumulative)
    weak = None if method.submodels is None else _Weak(method.submodels, model)
    scales = _scales_bytes(method)
    visits = first_up = up = down = 0
    table = recipe.federation
    for round in range(table.rounds):
        plans = method.plans(round, _typical(method, round))
        for plan in plans:
            visits += 1
            report = _report_bytes(method, plan) + _phases(method, len(plans), _PHASES_UP)
            first_up = first_up or report
            up += report
        for plan in sent(method, plans, round):
            first = traffic.is_new(plan.client)
            missed = traffic.catch_up(plan.client, round)
            down += len(encode(plan)) + (missed if weak is None else weak.sent(plan, first))
            down += _phases(method, len(plans), _PHASES_DOWN) + (scales if first else 0)
        lengths.sizes.append(_update_bytes(method, plans))
        if table.keep_updates == "since-snapshot" and (round + 1) % table.snapshot_every == 0:
            lengths.first = round
    return visits, first_up, up, down


def _scales_bytes(method: Composition) -> int:
    count = exponents_of(method.setting.shapes) if method.wants_scales else 0
    return round(_BYTES_AN_EXPONENT * count)


@dataclass
class _Weak:
    """What clients without a replica are sent, in bytes."""

    submodels: Submodels
    model: PreTrainedModel
    known: dict[str, int] = field(default_factory=dict)  # of a submodel, by what its plan says

    def sent(self, plan: Plan, first: bool) -> int:
        """Besides the plan.

        Args:
            first: whether the client has been sent nothing yet.
        """
        submodels, said = self.submodels, repr(sorted(plan.values.items()))
        if said not in self.known:
            self.known[said] = self._bytes(submodels.submodel(self.model, plan))
        return self.known[said] + (self._static_bytes if first else 0)

    @cached_property
    def _static_bytes(self) -> int:
        return self._bytes(self.submodels.static_weights(self.model))

    def _bytes(self, update: Update) -> int:
        names = sum(len(name) + _TENSOR for name in update.tensors)
        return _HEADER + names + tensor_bytes(update.tensors)


def _typical(method: Composition, round: int) -> Update | None:
    """What a round's plans follow from where only sums are known: in the first, numbers have more
    bits."""
    if not isinstance(method, SummedComposition) or round == 0:
        return None
    clip = method.mechanism.clip if method.mechanism else 1.0
    return Update(round - 1, {"unit": 1.0, "rms": 1.0, "clip": clip})


def _phases(method: Composition, clients: int, sizes: tuple[int, int]) -> int:
    """Bytes of a secure sum's messages beside the plan and the numbers.

    Args:
        sizes: of all messages, and for each client of the sum.
    """
    secure = method.sums is not None and method.sums.secure
    return sizes[0] + sizes[1] * clients if secure else 0


def _snapshot_bytes(recipe: Recipe, method: Composition, model: PreTrainedModel) -> int:
    replicated, moments = method.replicated(model), method.moments(model)
    exact = 4 if recipe.model.rounding == "master" else 0  # bytes a number, at least
    tensors = sum(p.numel() * max(exact, p.dtype.itemsize) for p in replicated.values())
    tensors += tensor_bytes(moments)
    names = [*replicated, *moments]
    return tensors + _SNAPSHOT + sum(len(name) + _SNAPSHOT_TENSOR for name in names)


def _report_bytes(method: Composition, plan: Plan) -> int:
    if isinstance(method, SummedComposition):
        return _HEADER + 2 * (7 + _TENSOR) + method.tensor_bytes(plan)
    shapes, codec = method.shapes_of(plan), method.codec
    tensors = codec.report_bytes(plan, shapes)
    told = method.norms_bytes if isinstance(method, BlockLLM) and plan.values["measure"] else 0
    named = codec.report_values | method.step.report_values
    return tensors + told + _header(named, shapes, tensors)


def _update_bytes(method: Composition, plans: Sequence[Plan]) -> int:
    if isinstance(method, SummedComposition):
        sent = method.tensor_bytes(plans[0]) if plans else 0
        values = len(method.step.update_values) + _SUM_VALUES
        return _HEADER + _TENSOR + _UPDATE_VALUE * values + sent
    if isinstance(method, SuffixComposition):
        plans = [own for plan in plans for own in method.by_segment(plan)]
        method = method.segmented
    one_of = {method.part(plan): plan for plan in plans}
    total = _HEADER + _UPDATE_VALUE * len(method.step.update_values)
    for part, reports in Counter(method.part(plan) for plan in plans).items():
        shapes = method.shapes_of(one_of[part])
        tensors = method.codec.update_bytes(one_of[part], shapes, reports)
        total += tensors + _header((), shapes, tensors) - _HEADER
    if isinstance(method, BlockLLM):  # of each tensor a norm, sometimes, and a count
        total += method.rule.count + any(p.values["measure"] for p in plans) * method.norms_bytes
    if added := method.completion(plans[0].round):
        total += 4 * elements(added) + _header((), added, 4 * elements(added)) - _HEADER
    return total


def _header(values: Iterable[str], shapes: Shapes, tensors: int) -> int:
    """About how many bytes of a message are not its tensors'.

    Args:
        values: names of its values.
        tensors: bytes of its tensors. If they are a byte a number or more, they are those of
            ``shapes``; else they are two or three, with short names.
    """
    names = list(shapes) if tensors >= elements(shapes) else ["codes", "scales"]
    named = sum(len(name) + _TENSOR for name in names)
    return _HEADER + named + sum(len(name) + _VALUE for name in values)
