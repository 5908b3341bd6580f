"""Clients that send something else than they have learned, for benchmarks of aggregation rules.

Every client whose number has a small remainder modulo ten lies, in every round that it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.data.federated import ClientData, FederatedData
from fullfed.data.tokens import TokenizedExample
from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.held_out import HeldOutCheck, persistent
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Update, Value, encode
from fullfed.federation.method import NOTHING
from fullfed.federation.server import run_round
from fullfed.federation.states import StatesInMemory
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import LocalWork
from fullfed.methods.server_step import CurvatureStep, Trained
from fullfed.payloads import Payload
from fullfed.randomness import Purpose, Stream
from fullfed.runs.account import checked_as_recorded
from fullfed.runs.assembly import Assembly, make_replica, make_worker
from fullfed.sketch import perturb_
from fullfed.training.first_order import Improvement
from fullfed.training.watch import OnStep, unwatched

FACTORS = {"flip": -1.0, "flip x9": -9.0, "flip x100": -100.0, "boost x9": 9.0}
# Xie et al. 2019 and Baruch et al. 2019, with the factors that byzfl has for defaults.
OMNISCIENT = {"inner product": (-2.0, 0.0), "little is enough": (1.0, 1.5)}  # of mean, deviation
ATTACKS = (*FACTORS, "random", *OMNISCIENT, "labels", "scalars")


def lies(client: int, share: int) -> bool:
    """Whether a client is one of ``share`` of ten."""
    return client % 10 < share


def made_to_lie(assembly: Assembly, share: int, attack: str) -> Assembly:
    """The assembly, of whose clients ``share`` of ten carry out one of ``ATTACKS``; or "none"."""
    if attack == "none":
        return assembly
    if attack == "labels":
        return replace(assembly, data=mislabelled(assembly.data, share))
    method = assembly.method
    if attack == "scalars":
        return replace(assembly, method=_exaggerating(method, share))
    lying = Lying(method.local, share, attack)
    return replace(assembly, method=replace(method, local=lying))


def mislabelled(data: FederatedData, share: int) -> FederatedData:
    """The data of a federation whose liars learn each prompt with the next sample's answer."""
    clients = tuple(
        ClientData(client.name, _mispaired(client.examples)) if lies(number, share) else client
        for number, client in enumerate(data.clients)
    )
    return replace(data, clients=clients)


def _mispaired(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    answers = [example.ids[example.prompt_length :] for example in examples]
    return [
        TokenizedExample.pair(
            np.concatenate([example.ids[: example.prompt_length], answer]), example.prompt_length
        )
        for example, answer in zip(examples, [*answers[1:], answers[0]], strict=True)
    ]


@dataclass
class Moments:
    """Of the honest changes of a round, number by number: how many, their sum and squares' sum."""

    round: int = -1
    count: int = 0
    sums: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def add(self, round: int, changes: Sequence[Tensor]) -> None:
        if self.round != round:
            self.round, self.count = round, 0
            self.sums = [torch.zeros_like(change) for change in changes]
            self.squares = [torch.zeros_like(change) for change in changes]
        self.count += 1
        for change, total, square in zip(changes, self.sums, self.squares, strict=True):
            total.add_(change)
            square.addcmul_(change, change)

    def combined(self, mean: float, deviation: float) -> list[Tensor]:
        """So many times the mean and so many times the standard deviation."""
        n = self.count
        means = [total / n for total in self.sums]
        variances = [
            (square / n - m.square()).clamp(min=0) * n / max(n - 1, 1)
            for square, m in zip(self.squares, means, strict=True)
        ]
        return [mean * m + deviation * v.sqrt() for m, v in zip(means, variances, strict=True)]


@dataclass(frozen=True)
class Lying(LocalWork):
    """Honest work, after which liars put something else in the place of their change.

    Attributes:
        honest: the method's.
        share: of ten clients.
        attack: one of FACTORS or OMNISCIENT, or "random".
        seen: what honest clients of the round have learned, which some liars know.
    """

    honest: LocalWork
    share: int
    attack: str
    seen: Moments = field(default_factory=Moments)

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterator[Batch],  # type: ignore[override]
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        before = [p.detach().clone() for p in parameters.values()]
        done = self.honest.improve(model, parameters, batches, plan, state, exact, on_step)
        after = [p.detach() for p in parameters.values()]
        if lies(plan.client, self.share):
            self._lie(after, before, plan)
        elif self.attack in OMNISCIENT:
            self.seen.add(plan.round, [a - b for a, b in zip(after, before, strict=True)])
        return done

    def _lie(self, after: Sequence[Tensor], before: Sequence[Tensor], plan: Plan) -> None:
        if self.attack in FACTORS:
            for a, b in zip(after, before, strict=True):
                a.copy_(b + FACTORS[self.attack] * (a - b))
        elif self.attack in OMNISCIENT:
            lie = self.seen.combined(*OMNISCIENT[self.attack])
            for a, b, change in zip(after, before, lie, strict=True):
                a.copy_(b + change)
        else:  # noise as long as the change
            squares = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
            for a, b in zip(after, before, strict=True):
                a.copy_(b)
            size = (squares / sum(b.numel() for b in before)) ** 0.5
            perturb_(list(after), Stream(7, Purpose.PROBE, plan.round, plan.client), size)


@dataclass(frozen=True)
class Exaggerating(CurvatureStep):
    """The server step's measurements, of which liars say the most absurd.

    Attributes:
        share: of ten clients.
    """

    share: int = 0

    def measure(
        self, trained: Trained, plan: Plan, last: Update | None, coordinates: float
    ) -> dict[str, Value]:
        values = super().measure(trained, plan, last, coordinates)
        return {**values, "trace": 1e30} if lies(plan.client, self.share) else values


def _exaggerating(method: Composition, share: int) -> Composition:
    step = method.step
    assert isinstance(step, CurvatureStep)
    own = {f.name: getattr(step, f.name) for f in fields(step)}
    return replace(method, step=Exaggerating(**own, share=share))


@dataclass
class LiarsLast(Simulation):
    """A simulation that visits liars after all others, so that they may know what those send.

    Attributes:
        share: of ten clients.
    """

    share: int = 0

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        for client in sorted(plans, key=lambda client: (lies(client, self.share), client)):
            yield from super().exchange({client: plans[client]}, seconds)


def carry_out(assembly: Assembly, share: int, rounds: int) -> dict[str, Any]:
    """Rounds in this process, without a folder; the model is then trained.

    Returns:
        how many reports were "refused", and how many of them were "honest_refused"; why the run
        "stopped", empty if it did not; with a check, of each round the honest clients' and the
        liars' "gains".
    """
    model, method, table = assembly.model, assembly.method, assembly.recipe.check
    replica = make_replica(assembly.recipe, model, method)
    worker = make_worker(assembly, replica, StatesInMemory())
    engine, refused = LiarsLast(worker, share=share), list[int]()
    samples = {n: len(client.examples) for n, client in enumerate(assembly.data.clients)}
    check, found, why = None, list[dict[str, Any]](), ""
    for number in range(rounds):
        if table is not None:
            loss = partial(evaluate_loss, model, assembly.data.check, 16)
            out = persistent(found, table.patience)
            check = HeldOutCheck(replica, loss, worker.last, out)
        try:
            result = run_round(
                method, engine, number, worker.last, model, samples=samples, check=check
            )
        except UserError as error:
            why = str(error)
            break
        refused += [client for client, _ in result.refused]
        if result.checked is not None:
            found.append(checked_as_recorded(result.checked))
        worker.deliver(encode(result.update))
    honest = sum(not lies(client, share) for client in refused)
    outcome = {"refused": len(refused), "honest_refused": honest, "stopped": why}
    return outcome if table is None else {**outcome, "gains": [_split(one, share) for one in found]}


def _split(found: Mapping[str, Any], share: int) -> dict[str, list[float]]:
    gains = {int(client): gain for client, gain in found["gains"].items()}
    return {
        "honest": [gain for client, gain in gains.items() if not lies(client, share)],
        "liars": [gain for client, gain in gains.items() if lies(client, share)],
    }
