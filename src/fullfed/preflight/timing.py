"""How long a recipe's work takes here, from a visit of a few steps and a few test samples."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fullfed.config import Recipe
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate_loss, evenly_spaced
from fullfed.evaluation.generation import generate
from fullfed.evaluation.metrics import METRICS
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import encode
from fullfed.federation.states import States, StatesOnDisk
from fullfed.headway import Headway
from fullfed.runs.assembly import Assembly, make_replica, make_worker
from fullfed.runs.environment import PeakMemory
from fullfed.runs.workload import Workload
from fullfed.sketch.compilation import compilation

TIMED_STEPS = 3  # of which the first warms up
_SHORT_SECONDS = 10.0  # a visit that takes less is made twice, and the second one counts
_TOGETHER = 4  # batches of answers are as many of training; see evaluation.generation
_TOKENS = 9  # of each timed answer


@dataclass(frozen=True)
class Timing:
    """What was measured, and what follows for the run.

    Attributes:
        step_seconds, visit_seconds: of a step and a visit, in the mean over the run.
        evaluation_seconds: of measuring the model once; answers are taken to be as long as the
            recipe lets them be.
        check_seconds: of the held-out check of a round's reports, in the mean: its passes over the
            held-out samples; 0 without the recipe's table ``check``.
        run_seconds: of all visits, evaluations and held-out checks, and of loading kernels; not of
            what the server computes besides.
        peak_bytes: of the timed visit, as a run's ``peak_memory_by_part``; None where the system
            does not tell.
    """

    step_seconds: float
    visit_seconds: float
    evaluation_seconds: float
    check_seconds: float
    run_seconds: float
    peak_bytes: int | None


def with_few_steps(recipe: Recipe) -> Recipe:
    """The recipe whose visits are as long as the timed one."""
    local = recipe.local.model_copy(update={"steps": TIMED_STEPS, "epochs": None})
    return recipe.model_copy(update={"local": local})


def time_work(
    assembled: Callable[[Recipe], Assembly], recipe: Recipe, work: Workload, evaluations: int
) -> Timing:
    """Carry out a visit and a part of an evaluation, and reckon the run's time from them.

    A trainer that goes its own way, and does not tell of as many steps as it was asked for, is
    timed in a visit as long as the recipe's.

    Args:
        assembled: loads what a recipe needs; it is not changed by the visit.
        recipe: the whole one.
        work: of it.
        evaluations: of the run.

    Raises:
        UserError: the visit fails.
    """
    assembly = assembled(_with_few_steps(recipe))
    visited = _visited(assembly, work)
    step, visit = _step_and_visit(visited, work)
    if visited.clock.steps != TIMED_STEPS:
        assembly = assembled(recipe)
        visited = _visited(assembly, work)
        visit = visited.seconds
        step = visit * work.visits / work.steps
    evaluation = _answer_seconds(assembly)
    if "loss" in recipe.evaluation.metrics:
        evaluation += _loss_seconds(assembly, assembly.data.test)
    checks = 0.0
    if work.held_out_passes:
        checks = _loss_seconds(assembly, assembly.data.check) * work.held_out_passes
    return Timing(
        step_seconds=step,
        visit_seconds=visit,
        evaluation_seconds=evaluation,
        check_seconds=checks / recipe.federation.rounds,
        run_seconds=visited.loading + visit * work.visits + evaluation * evaluations + checks,
        peak_bytes=visited.peak,
    )


def _with_few_steps(recipe: Recipe) -> Recipe:
    local = recipe.local.model_copy(update={"steps": TIMED_STEPS, "epochs": None})
    return recipe.model_copy(update={"local": local})


@dataclass(frozen=True)
class _Visited:
    """A timed visit.

    Attributes:
        clock: what it said of its steps.
        seconds: that it took.
        loading: the seconds by which a run's first visit is longer.
        peak: see ``Timing.peak_bytes``.
    """

    clock: _StepClock
    seconds: float
    loading: float
    peak: int | None


def _visited(assembly: Assembly, work: Workload) -> _Visited:
    clock, peaks = _StepClock(assembly.model.device), PeakMemory()
    with TemporaryDirectory() as folder:
        peaks.begin("visit")
        arrival, loading = _visit(assembly, work, StatesOnDisk(Path(folder), "a check"), clock)
        peak = peaks.end()["visit"]
    return _Visited(clock, _seconds(arrival), loading, peak)


def _step_and_visit(visited: _Visited, work: Workload) -> tuple[float, float]:
    """The seconds of a step and of a visit of the run, in the mean, by a visit of few steps.

    By its tokens; or by its steps, where a trainer makes batches of its own.
    """
    seconds, tokens = visited.clock.seconds, visited.clock.tokens
    if visited.clock.steps < 2:
        return visited.seconds, visited.seconds
    later = seconds[-1] - seconds[1]
    if tokens[-1] > tokens[1]:
        step = later / (tokens[-1] - tokens[1]) * work.tokens / work.steps
    else:
        step = later / (visited.clock.steps - 1)
    around = visited.seconds - (seconds[-1] - seconds[0])
    return step, around + step * work.steps / work.visits


class _StepClock:
    """An observer that keeps when a visit began and when each step ended, and the tokens so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.forget()

    @property
    def steps(self) -> int:
        """How many have ended."""
        return len(self.seconds) - 1

    def forget(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    def __call__(self, headway: Headway) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds.append(time.perf_counter())
        self.tokens.append(headway.tokens)


def _visit(
    assembly: Assembly, work: Workload, states: States, clock: _StepClock
) -> tuple[Arrival, float]:
    """A typical visit, and the seconds by which a run's first one is longer.

    A second visit is made where the first had kernels to compile, or was so short that loading
    them counts.
    """
    replica = make_replica(assembly.recipe, assembly.model, assembly.method)
    if assembly.method.protects_records:
        from fullfed.privacy.summing import owners_of

        method = assembly.method.owned("a check", owners_of(secrets.token_bytes(32)))
        assembly = replace(assembly, method=method)
    worker = make_worker(assembly, replica, states, clock)
    plans = assembly.method.plans(work.plan.round, None)
    payload = encode(next(plan for plan in plans if plan.client == work.plan.client))

    def visit() -> Arrival:
        clock.forget()
        arrival = worker.visit(payload)
        if arrival.payload is None:
            raise UserError(f"A visit of {TIMED_STEPS} steps fails: {arrival.failure}.")
        return arrival

    compiled: list[bool] = []
    with compilation(lambda: compiled.append(True)):
        first = visit()
    if not compiled and _seconds(first) > _SHORT_SECONDS:
        return first, 0.0
    second = visit()
    return second, 0.0 if compiled else max(_seconds(first) - _seconds(second), 0.0)


def _seconds(arrival: Arrival) -> float:
    return arrival.train_seconds + arrival.encode_seconds


def _loss_seconds(assembly: Assembly, examples: Sequence[TokenizedExample]) -> float:
    """Of the loss on all of some examples, reckoned by tokens from that of a batch."""
    size = assembly.recipe.evaluated_together
    some = evenly_spaced(examples, size)
    started = time.perf_counter()
    evaluate_loss(assembly.model, some, size)
    return (time.perf_counter() - started) * _tokens(examples) / _tokens(some)


def _answer_seconds(assembly: Assembly) -> float:
    """Of all answers: prompts are read once, and then each token takes as long as the first few."""
    table = assembly.recipe.evaluation
    if not any(METRICS[metric].score for metric in table.metrics):
        return 0.0
    asked = evenly_spaced(assembly.data.test, table.generation_samples)
    some = evenly_spaced(asked, _TOGETHER * assembly.recipe.evaluated_together)
    few = min(_TOKENS, table.max_new_tokens)
    one, several = (_seconds_of_answers(assembly, some, count) for count in (1, few))
    a_token = (several - one) / (few - 1) if few > 1 else 0.0
    return (one + a_token * (table.max_new_tokens - 1)) * len(asked) / len(some)


def _seconds_of_answers(assembly: Assembly, examples: list[TokenizedExample], tokens: int) -> float:
    started = time.perf_counter()
    size = assembly.recipe.evaluated_together
    generate(assembly.model, assembly.tokenizer, examples, tokens, size)
    return time.perf_counter() - started


def _tokens(examples: Sequence[TokenizedExample]) -> int:
    return sum(len(example) for example in examples)
