"""The codec of seeds and scalars: a walk along candidate directions is sent step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.federation.messages import MessageError, Plan, Report, Update, number
from fullfed.methods.candidates import Candidates
from fullfed.methods.codecs import Change, Payload
from fullfed.methods.importance import amplitudes, probabilities
from fullfed.methods.setting import LocalWork

_LONGEST = 1 << 16  # steps of a visit measured in epochs, whose samples the server does not know


@dataclass(frozen=True)
class SeedsAndScalars:
    """Sends each step's candidate and derivative; the server adds up derivatives by candidate.

    A report holds ``candidates`` (int16, or int32 where K needs it) and ``derivatives``
    (float32), one of each a step, in their order. An update holds ``accumulators``, float32
    (K,): for each candidate the sum, over all rounds, of the clients' mean of what they walked
    along it. It is cumulative: applied to the base model, it replaces all earlier ones.

    Where candidates are drawn by importance, an update also holds what their probabilities
    follow from (``amplitudes``, float32, and ``visits``, int32), and a plan the ``probabilities``.

    Attributes:
        candidates: the directions.
        learning_rate: of the clients' steps.
        work: how many steps a visit has.
        by_importance: whether candidates are drawn as FedKSeed-Pro draws them.
    """

    candidates: Candidates
    learning_rate: float
    work: LocalWork
    by_importance: bool = False

    @property
    def cumulative(self) -> bool:
        return True

    def plan(self, round: int, last: Update | None) -> Payload:
        if not self.by_importance:
            return Payload()
        sums, visits = self._history(last)
        return Payload(tensors={"probabilities": probabilities(sums, visits)})

    def encode(self, change: Change, plan: Plan) -> Payload:
        numbers, derivatives = zip(*change.walk, strict=True)
        return Payload(
            tensors={
                "candidates": torch.tensor(numbers, dtype=self._integer),
                "derivatives": torch.tensor(derivatives, dtype=torch.float32),
            }
        )

    def report_bytes(self, plan: Plan) -> int:
        return (self.work.steps or _LONGEST) * (self._integer.itemsize + 4)

    def check(self, report: Report, plan: Plan) -> None:
        if report.tensors.keys() != {"candidates", "derivatives"}:
            raise MessageError("the report does not hold candidates and derivatives and no more")
        steps = self.work.batches(report.samples)
        for name, dtype in (("candidates", self._integer), ("derivatives", torch.float32)):
            tensor = report.tensors[name]
            if tensor.shape != (steps,) or tensor.dtype != dtype:
                raise MessageError(
                    f"the report's {name} are {tuple(tensor.shape)} of {tensor.dtype}, "
                    f"not {(steps,)} of {dtype}"
                )
        lowest, highest = torch.aminmax(report.tensors["candidates"])
        if lowest < 0 or highest >= self.candidates.count:
            raise MessageError(
                f"the report's candidates are {int(lowest)} to {int(highest)}, "
                f"but they are numbered from 0 to {self.candidates.count - 1}"
            )

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        total, walked = 0.0, self._zeros()
        sums, visits = (tensor.double() for tensor in self._history(last))
        for weight, report in reports:
            numbers = report.tensors["candidates"].int()
            derivatives = report.tensors["derivatives"].double()
            total += weight
            walked.index_add_(0, numbers, derivatives, alpha=weight)
            sums.index_add_(0, numbers, amplitudes(derivatives))
            visits.index_add_(0, numbers, torch.ones_like(derivatives))
        before = self._zeros() if last is None else last.tensors["accumulators"].double()
        tensors = {"accumulators": (before + walked / total).float()}
        if self.by_importance:
            tensors |= {"amplitudes": sums.float(), "visits": visits.int()}
        return Payload(tensors=tensors)

    def energy(self, merged: Payload) -> float | None:
        return None

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        accumulators = update.tensors["accumulators"]
        if accumulators.shape != (self.candidates.count,):
            raise MessageError("the update does not hold one accumulator a candidate")
        scale = -self.learning_rate * number(update, "server_step")
        self.candidates.combine_([p.detach() for p in parameters.values()], accumulators, scale)

    @property
    def _integer(self) -> torch.dtype:
        return torch.int16 if self.candidates.count <= 1 << 15 else torch.int32

    def _zeros(self) -> Tensor:
        return torch.zeros(self.candidates.count, dtype=torch.float64)

    def _history(self, last: Update | None) -> tuple[Tensor, Tensor]:
        """Of each candidate, the sum of the amplitudes so far, and how many."""
        if last is None or not self.by_importance:
            return self._zeros(), self._zeros()
        return last.tensors["amplitudes"], last.tensors["visits"]
