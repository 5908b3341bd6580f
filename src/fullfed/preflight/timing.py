"""How long a recipe's work takes here, from a visit of a few steps and a few test samples."""

from __future__ import annotations

import secrets
import time
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
        run_seconds: of all visits and evaluations, and of loading kernels; not of what the server
            computes.
        peak_bytes: of the timed visit, as a run's ``peak_memory_by_part``; None where the system
            does not tell.
    """

    step_seconds: float
    visit_seconds: float
    evaluation_seconds: float
    run_seconds: float
    peak_bytes: int | None


def with_few_steps(recipe: Recipe) -> Recipe:
    """The recipe whose visits are as long as the timed one."""
    local = recipe.local.model_copy(update={"steps": TIMED_STEPS, "epochs": None})
    return recipe.model_copy(update={"local": local})


def time_work(assembly: Assembly, work: Workload, evaluations: int) -> Timing:
    """Carry out a visit and a part of an evaluation, and reckon the run's time from them.

    Args:
        assembly: of the recipe ``with_few_steps``; its model is as it was afterwards.
        work: of the whole recipe.
        evaluations: of the run.

    Raises:
        UserError: the visit fails.
    """
    clock, peaks = _StepClock(assembly.model.device), PeakMemory()
    with TemporaryDirectory() as folder:
        peaks.begin("visit")
        arrival, loading = _visit(assembly, work, StatesOnDisk(Path(folder), "a check"), clock)
        peak = peaks.end()["visit"]
    steps = clock.seconds[-1] - clock.seconds[0]
    around = _seconds(arrival) - steps
    a_token = (clock.seconds[-1] - clock.seconds[1]) / (clock.tokens[-1] - clock.tokens[1])
    visit = around + a_token * work.tokens / work.visits
    evaluation = _loss_seconds(assembly) + _answer_seconds(assembly)
    return Timing(
        step_seconds=a_token * work.tokens / work.steps,
        visit_seconds=visit,
        evaluation_seconds=evaluation,
        run_seconds=loading + visit * work.visits + evaluation * evaluations,
        peak_bytes=peak,
    )


class _StepClock:
    """An observer that keeps when a visit began and when each step ended, and the tokens so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.forget()

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


def _loss_seconds(assembly: Assembly) -> float:
    """Of the loss of the whole test set, reckoned by tokens from that of a batch."""
    if "loss" not in assembly.recipe.evaluation.metrics:
        return 0.0
    size, test = assembly.recipe.evaluated_together, assembly.data.test
    some = evenly_spaced(test, size)
    started = time.perf_counter()
    evaluate_loss(assembly.model, some, size)
    return (time.perf_counter() - started) * _tokens(test) / _tokens(some)


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


def _tokens(examples: list[TokenizedExample] | tuple[TokenizedExample, ...]) -> int:
    return sum(len(example) for example in examples)
