"""Any method whose reports add up, where only sums of them are known.

A client's report becomes integers: its numbers, rounded at random, and a few scalars. The server
adds them up (masked, where it is to see no client's), and an update holds the sum itself, so that
whoever replays the log does the same arithmetic. What the method then does with a mean is its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Update, Value, check_values, number
from fullfed.federation.method import NOTHING, Visit
from fullfed.headway import Observer, unobserved
from fullfed.methods.checks import CLIENTS, changing
from fullfed.methods.codecs.codec import Contribution, Shapes, check_tensors
from fullfed.methods.composition import Composition
from fullfed.methods.step_memory import StepMemory

if TYPE_CHECKING:
    from fullfed.privacy.integers import Grid, Integers
    from fullfed.privacy.masks import Summand
    from fullfed.privacy.mechanism import Mechanism

_PLAN = ("unit", "bits", "most")
_UPDATE = ("unit", "bits", "most", "summed")
_RMS, _LOSS, _CLIP = "rms", "train_loss", "clip"
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class SummedComposition(Composition):
    """A method whose clients' numbers only count in sums.

    Attributes:
        secure: whether the server sees no client's numbers; then it adds up masked ones.
        few_bits: of an integer, where the codec's numbers are alike.
        mechanism: clipping and noise; None without.
        fewest: how many clients a sum is of at least.
        secret: the server's, of which its noise follows; 32 bytes, empty where there is none.
    """

    secure: bool = True
    few_bits: int = 8
    mechanism: Mechanism | None = None
    fewest: int = 1
    secret: bytes = b""

    @property
    def sums(self) -> SummedComposition:
        return self

    def allows(self, rounds: int) -> bool:
        return self.mechanism is None or self.mechanism.allows(rounds)

    def pass_over(self, round: int, last: Update | None) -> Update:
        return self.skipped(round, last, 1 + (last.skipped if last else 0))

    @cached_property
    def _summable(self) -> tuple[Shapes, int]:
        """The numbers of a report by name, and how many there are."""
        shapes = self.codec.summable(self.setting.shapes).shapes
        return shapes, sum(shape.numel() for shape in shapes.values())

    @property
    def _scalars(self) -> tuple[str, ...]:
        """The names of what is summed beside the numbers; with noise nothing is."""
        if self.mechanism is not None:
            return ()
        told = () if self.protects_records else (_LOSS,)
        return *told, "square", *sorted(self.step.report_values)

    def size(self, plan: Plan) -> tuple[int, int, int]:
        from fullfed.privacy.integers import SCALAR_BYTES

        extra = self.mechanism.extra if self.mechanism else 0
        return self._summable[1] + extra, self._grid(plan).bits, SCALAR_BYTES * len(self._scalars)

    def plans(self, round: int, last: Update | None) -> list[Plan]:
        plans = super().plans(round, last)
        grid, clip = self._next_grid(last if last and _UPDATE[0] in last.values else None, plans)
        own: dict[str, Value] = {"unit": grid.unit, "bits": grid.bits, "most": grid.most, **clip}
        return [replace(plan, values={**plan.values, **own}) for plan in plans]

    def _next_grid(
        self, last: Update | None, plans: Sequence[Plan]
    ) -> tuple[Grid, dict[str, Value]]:
        from fullfed.privacy.integers import MOST_BITS, Grid, most_of

        count, about = self._summable[1], self.codec.summable(self.setting.shapes)
        clients = max(len(plans), 1)
        if self.mechanism is not None:
            clients = self.mechanism.most_clients
        bits = self.few_bits if about.few_bits else MOST_BITS
        if self.mechanism is not None:
            clip = number(last, _CLIP) if last else self.mechanism.clip
            return self.mechanism.grid(count, clip, bits, clients), {_CLIP: clip}
        largest = about.first
        if last is None:
            bits = MOST_BITS  # how large numbers are is not known yet
        else:
            largest = max(about.tail * number(last, _RMS), float(np.finfo(np.float32).tiny))
        most = most_of(bits, clients)
        return Grid(largest / most, bits, most), {}

    def _grid(self, message: Plan | Update) -> Grid:
        """That of a plan or an update.

        Raises:
            MessageError: it has none that can be.
        """
        from fullfed.privacy.integers import FEWEST_BITS, MOST_BITS, Grid

        unit, bits, most = number(message, "unit"), message.values["bits"], message.values["most"]
        whole = type(bits) is int and FEWEST_BITS <= bits <= MOST_BITS
        if not whole or type(most) is not int or not 1 <= most < 2 ** (int(bits) - 1):  # type: ignore[arg-type]
            raise MessageError(f"the {message.kind}'s integers are of impossible bits")
        if not 1e-60 < unit < 1e30:
            raise MessageError(f"the {message.kind}'s unit is not between 1e-60 and 1e30")
        return Grid(unit, int(bits), most)  # type: ignore[arg-type]

    def _clip(self, message: Plan | Update) -> float:
        """
        Raises:
            MessageError: it is not positive; or another than the recipe's, which stays.
        """
        assert self.mechanism is not None
        clip = number(message, _CLIP)
        if not 0 < clip < 1e30 or (self.mechanism.quantile is None and clip != self.mechanism.clip):
            raise MessageError(f"the {message.kind}'s clip is not the recipe's")
        return clip

    def train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        state: Mapping[str, Tensor] = NOTHING,
        exact: Mapping[str, Tensor] = NOTHING,
        observer: Observer = unobserved,
    ) -> Visit:
        return super().train(model, self._inner(plan), examples, last, state, exact, observer)

    def _inner(self, plan: Plan) -> Plan:
        """The plan as the method without sums knows it."""
        own = (*_PLAN, _CLIP)
        return replace(plan, values={n: v for n, v in plan.values.items() if n not in own})

    def summand(self, report: Report, plan: Plan, key: bytes) -> Summand:
        from fullfed.privacy.integers import modular, pack_scalars
        from fullfed.privacy.keystream import KeyStream, derived
        from fullfed.privacy.masks import Summand

        own = {name: plan.values[name] for name in plan.values if name in (*_PLAN, _CLIP)}
        check_values(replace(plan, values=own), [*_PLAN, *([_CLIP] if self.mechanism else [])])
        grid, shapes = self._grid(plan), self._summable[0]
        decoded = self.codec.decode(report, self._inner(plan), self.setting.shapes).tensors
        numbers = np.concatenate([decoded[n].double().cpu().numpy().reshape(-1) for n in shapes])
        if not np.isfinite(numbers).all():  # nothing could bound it
            raise MessageError("the change is not finite")
        if plan.round >= self.setting.federation.rounds:
            raise MessageError("the plan is for a round that the recipe does not have")
        stream = KeyStream(derived(key, "rounding"))
        if self.mechanism is None:
            integers = grid.rounded(numbers, stream)
        else:
            clip, count = self._clip(plan), len(numbers)
            integers = self.mechanism.rounded(numbers, grid, clip, stream)
            if self.mechanism.parts is not None:
                integers += self.mechanism.noise(count, grid, clip, derived(key, "noise"))
        scalars = {_LOSS: report.loss, "square": float(numbers @ numbers)}
        scalars |= {name: number(report, name) for name in self.step.report_values}
        packed = pack_scalars([scalars[name] for name in self._scalars])
        return Summand(modular(integers, grid.bits), grid.bits, packed)

    def report_limit(self, plan: Plan) -> int:
        return _HEADER_BYTES + self.tensor_bytes(plan)

    def tensor_bytes(self, message: Plan | Update) -> int:
        """Of the tensors of a report on a plan, or of an update."""
        return sum(shape.numel() for shape, _ in self._kinds(message).values())

    def _kinds(self, message: Plan | Update) -> dict[str, tuple[torch.Size, torch.dtype]]:
        from fullfed.privacy.integers import packed_bytes

        count, bits, scalars = self.size(message)  # type: ignore[arg-type]
        kinds = {"numbers": (torch.Size([packed_bytes(count, bits)]), torch.uint8)}
        if isinstance(message, Plan):
            kinds["scalars"] = torch.Size([scalars]), torch.uint8
        return kinds

    def check(self, report: Report, plan: Plan) -> None:
        check_values(report, [])
        check_tensors(report, self._kinds(plan))

    def norm(
        self,
        report: Report,
        plan: Plan,
        model: PreTrainedModel,
        exact: Mapping[str, Tensor] = NOTHING,
    ) -> float:
        """Nothing is known of a single report that is masked, or clipped by an honest client."""
        return 0.0

    def aggregate(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        from fullfed.privacy.masks import Summand

        count, bits, _ = self.size(plans[0])
        first, *others = reports
        total = Summand.of(first.tensors, count, bits)
        for report in others:
            total.add_(Summand.of(report.tensors, count, bits))
        return self.update(plans[0], total, [r.client for r in (first, *others)], last)

    def update(
        self, plan: Plan, total: Summand, clients: Sequence[int], last: Update | None
    ) -> Update:
        from fullfed.privacy.integers import pack, unpack_scalars

        grid, summed, clip = self._grid(plan), len(clients), math.inf
        integers, noise = total.integers, 0.0
        values: dict[str, Value] = {name: plan.values[name] for name in _PLAN}
        if self.mechanism is not None:
            # How many took part is not in an update, and so not in what follows from it.
            clip, summed = self._clip(plan), self.mechanism.cohort
            integers = self._with_noise(integers, plan)
            noise = self.mechanism.variance(self._summable[1], grid, clip) * grid.unit**2
            short = float(grid.numbers(integers)[-1]) if self.mechanism.extra else 0.0
            values[_CLIP] = self.mechanism.next_clip(clip, short)
        values["summed"] = summed
        tensors = {"numbers": torch.from_numpy(pack(integers, grid.bits))}
        mean = self._mean(Update(plan.round, values, tensors))
        noise += grid.rounding_variance * summed
        mean = replace(mean, noise=noise * self._summable[1] / summed**2)
        means = [n / summed for n in unpack_scalars(total.scalars)]
        measured = dict(zip(self._scalars, means, strict=True))
        if self.mechanism is None:
            values |= {name: measured[name] for name in self._scalars if name == _LOSS}
            values[_RMS] = math.sqrt(max(measured["square"], 0.0) / self._summable[1])
        values |= self._decided(mean, measured, summed, clip, plan.round, last)
        values |= {CLIENTS: [*clients]} if self.stateful else {}
        return Update(plan.round, values, tensors)

    def _with_noise(self, integers: Integers, plan: Plan) -> Integers:
        """A sum with the server's noise; as it is where the clients' is in it."""
        from fullfed.privacy.integers import modular
        from fullfed.privacy.keystream import KEY_BYTES, derived

        assert self.mechanism is not None
        if self.mechanism.parts is not None:
            return integers
        assert len(self.secret) == KEY_BYTES  # the run's own: see summing.keyed
        grid, key = self._grid(plan), derived(self.secret, f"noise of round {plan.round}")
        noise = self.mechanism.noise(self._summable[1], grid, self._clip(plan), key)
        return modular(integers.astype(np.int64) + noise, grid.bits)

    def _decided(
        self,
        mean: Contribution,
        measured: Mapping[str, float],
        summed: int,
        clip: float,
        round: int,
        last: Update | None,
    ) -> Mapping[str, Value]:
        """What the codec and the rule of the server step say of the clients' mean."""
        shapes = self.setting.shapes
        encoded = self.codec.encode_update(mean, Plan(round, 0), shapes, None)
        square = math.fsum(float(t.double().square().sum()) for t in mean.tensors.values())
        # The standard error of what is left when the noise's energy is taken out.
        least = mean.noise * math.sqrt(2 / self._summable[1])
        energy = min(max(square - mean.noise, least), self._most_energy(summed, clip))
        exact = self._coordinates(shapes) or float(self._summable[1])
        worth = exact * energy / (energy + mean.noise) if energy > 0 else exact
        alike = {name: measured[name] for name in self.step.report_values}
        decided = self.step.decide(
            [Report(round, client, 1, 0.0, alike) for client in range(summed)],
            energy,
            changing(last),
            worth,
            lambda numbers: math.fsum(numbers) / len(numbers),
        )
        return {**encoded.values, **decided}

    def _most_energy(self, summed: int, clip: float) -> float:
        """Of a mean of changes no longer than the clip, which agree as clients do before any
        measurement. Where noise is much more, nothing else tells that there is no more than this.
        """
        agreement = StepMemory().agreement
        return float(clip**2) * (agreement + (1 - agreement) / summed)

    def _mean(self, update: Update) -> Contribution:
        """The clients' mean, float64, on the CPU: of the same bits everywhere."""
        from fullfed.privacy.integers import unpack

        grid, (shapes, count) = self._grid(update), self._summable
        extra = self.mechanism.extra if self.mechanism else 0
        integers = unpack(update.tensors["numbers"].cpu().numpy(), count + extra, grid.bits)
        flat = torch.from_numpy(grid.numbers(integers)[:count] / number(update, "summed"))
        sizes = [shape.numel() for shape in shapes.values()]
        split = zip(shapes.items(), torch.split(flat, sizes), strict=True)
        return Contribution({name: part.view(shape) for (name, shape), part in split})

    def check_values(self, update: Update) -> None:
        super().check_values(self._plain(update))

    def check_update(self, update: Update) -> None:
        if update.skipped:
            super().check_update(self._plain(update))
            return
        self.check_values(update)
        check_tensors(update, self._kinds(update))
        self._checks.update(self._decoded(update))

    def _plain(self, update: Update) -> Update:
        """The update without the values of its sum, which are checked."""
        if "unit" not in update.values:
            return update
        own = {*_UPDATE, *([_CLIP] if self.mechanism else [_RMS]), *{_LOSS} & {*self._scalars}}
        if not own <= update.values.keys():
            raise MessageError("the update does not say what its sum is of")
        self._grid(update)
        summed = update.values["summed"]
        if type(summed) is not int or not 1 <= summed < 2**32:
            raise MessageError("the update does not say how many it is the sum of")
        for name in own & {_RMS, _LOSS}:
            number(update, name)
        if self.mechanism is not None:
            self._clip(update)
        return replace(update, values={n: v for n, v in update.values.items() if n not in own})

    def _decoded(self, update: Update) -> Update:
        """The update as the method without sums would have made it."""
        plan, shapes = Plan(update.round, 0), self.setting.shapes
        encoded = self.codec.encode_update(self._mean(update), plan, shapes, None)
        return replace(self._plain(update), tensors=encoded.tensors)

    def apply(
        self, model: PreTrainedModel, update: Update, moments: Mapping[str, Tensor] = NOTHING
    ) -> None:
        super().apply(model, update if update.skipped else self._decoded(update), moments)
