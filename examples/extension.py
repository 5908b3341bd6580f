"""A codec, an aggregation rule and a method from outside the package, in one federation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel

import fullfed
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.methods.aggregation import Aggregation, Sum
from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.codec import Change, Codec, Contribution, Encoded, Shapes, check_tensors
from fullfed.methods.composition import Composition
from fullfed.methods.scopes import Everything
from fullfed.methods.setting import Setting


@dataclass(frozen=True)
class Halves(Codec):
    """Sends the change in float16. What is decoded are numbers of the change itself."""

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        differences = {
            n: p.detach().float() - change.before[n].float() for n, p in change.after.items()
        }
        return Encoded(tensors={name: d.half() for name, d in differences.items()})

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return sum(2 * shape.numel() for shape in shapes.values())

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        check_tensors(report, {name: (shape, torch.float16) for name, shape in shapes.items()})

    def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
        return Contribution({name: tensor.float() for name, tensor in report.tensors.items()})

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        return Encoded(tensors={name: tensor.half() for name, tensor in aggregate.tensors.items()})

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        step = number(update, "server_step")
        for name, parameter in parameters.items():
            change = update.tensors[name].float().to(parameter.device) * step
            parameter.copy_(parameter.float() + change)


@dataclass
class Medians:
    """Holds every client's contribution until the last has come."""

    seen: list[Contribution] = field(default_factory=list)

    def add(self, report: Report, contribution: Contribution) -> None:
        self.seen.append(contribution)

    def result(self) -> Contribution:
        names = self.seen[0].tensors
        rows = {name: torch.stack([c.tensors[name] for c in self.seen]) for name in names}
        return Contribution({name: row.median(dim=0).values for name, row in rows.items()})


@dataclass(frozen=True)
class Median(Aggregation):
    """The coordinate-wise median. Compares clients, so it is no weighted sum of them."""

    def begin(self) -> Sum:
        return Medians()

    def scalar(self, numbers: Sequence[float]) -> float:
        return median(numbers)


class Matrices(Everything):
    """Trains the matrices; norms and biases stay as they are."""

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if p.ndim == 2}


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


def build(setting: Setting, options: NoOptions) -> Composition:
    return averaging(setting, scope=Matrices())


def register_all() -> None:
    fullfed.register_codec(
        "halves",
        fullfed.CodecEntry("the change in float16", NoOptions, lambda seed, options: Halves()),
    )
    fullfed.register_aggregation(
        "lower-median",
        fullfed.AggregationEntry("the lower median", NoOptions, lambda o: Median()),
    )
    fullfed.register_method(
        "matrices",
        fullfed.MethodEntry(
            title="Matrices",
            paper="none; an example",
            composition="matrices x first-order x dense x sampled cohort",
            options=NoOptions,
            build=build,
            codec={"name": "dense"},
            scope=lambda seed, options: Matrices(),
        ),
    )


RECIPE = {
    "model": {"path": "builtin"},
    "data": {"train": "builtin"},
    "federation": {"rounds": 2, "clients_per_round": 3},
    "local": {"learning_rate": 0.5, "steps": 4},
    "method": {"name": "matrices"},
    "codec": {"name": "halves"},
    "aggregation": {"name": "lower-median"},
}

if __name__ == "__main__":
    register_all()
    run = fullfed.run(RECIPE, sys.argv[1] if len(sys.argv) > 1 else "runs/extension")
    print(run["loss"], run["bytes"])
