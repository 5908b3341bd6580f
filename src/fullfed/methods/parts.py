"""What a round's reports come to, for each part of the model that visits trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fullfed.federation.messages import Plan, Report, Update, Value
from fullfed.federation.tensors import Computed
from fullfed.methods.aggregation import Aggregation
from fullfed.methods.checks import LEFT_OUT, prefix_of, prefixed
from fullfed.methods.codecs.codec import Codec, Encoded, Shapes
from fullfed.methods.codecs.products import Products


def with_plans(reports: Iterable[Report], plans: Sequence[Plan]) -> Iterator[tuple[Plan, Report]]:
    """Each report with its client's plan; a report is let go before the next is asked for."""
    plan_of = {plan.client: plan for plan in plans}
    for report in reports:
        yield plan_of[report.client], report
        del report


def discount(plan: Plan) -> float:
    """What a report's numbers are multiplied by, for its age of tau rounds: 1 / sqrt(1 + tau)
    (Nguyen et al. 2022, FedBuff, arXiv 2106.06639)."""
    return 1 / math.sqrt(1 + plan.round - plan.version)


class PartReports:
    """What a round's reports on one part of the model come to.

    Reports are decoded as they come and combined by the rule; or kept as they are, with their
    weights, where the codec stacks and the rule only weighs. Those on older versions of the model
    are discounted first: the rule does not make up for it.

    Args:
        plan: one of the part's.
        shapes: of the part.
    """

    def __init__(self, codec: Codec, rule: Aggregation, plan: Plan, shapes: Shapes) -> None:
        self._codec, self._rule, self._plan, self.shapes = codec, rule, plan, shapes
        self._sum = None if codec.stacks and rule.weights_only else rule.begin()
        self._reports: list[Report] = []
        self._discounts: list[float] = []

    def add(self, report: Report, plan: Plan) -> None:
        if self._sum is None:
            self._reports.append(report)
            self._discounts.append(discount(plan))
        else:
            decode = self._codec.decode
            self._sum.add(report, decode(report, plan, self.shapes).times(discount(plan)))

    def encoded(self, last: Update | None) -> tuple[Encoded, Sequence[int]]:
        """What everybody is sent, and the clients of whose reports the rule let nothing in."""
        if self._sum is not None:
            aggregate = self._sum.result()
            encoded = self._codec.encode_update(aggregate, self._plan, self.shapes, last)
            return encoded, aggregate.left_out
        shares = self._rule.shares(self._reports, self)
        each = list(zip(shares, self._discounts, self._reports, strict=True))
        weighted = [(share * discount, report) for share, discount, report in each if share]
        left_out = [report.client for share, _, report in each if not share]
        return self._codec.stack(weighted, self._plan, self.shapes, last), left_out

    def norms(self) -> list[float]:
        """Of the reports' changes, by a codec that tells them without the model."""
        return [
            discount * self._codec.norm(report, plan, self.shapes, {})
            for discount, report, plan in zip(
                self._discounts, self._reports, self._plans(), strict=True
            )
        ]

    def products(self) -> Products | None:
        """How the reports' changes lie to each other, where the codec can tell."""
        found = self._codec.products(self._reports, self._plans(), self.shapes)
        if found is None:
            return None
        discounts = torch.tensor(self._discounts, dtype=torch.float64)
        return Products(found.inner * torch.outer(discounts, discounts), found.chance)

    def _plans(self) -> list[Plan]:
        return [replace(self._plan, client=report.client) for report in self._reports]


def encoded_parts(
    parts: Mapping[int | None, PartReports], last: Update | None
) -> tuple[dict[str, Value], Mapping[str, Tensor]]:
    """The values and tensors of an update of several parts, by names that say of which; and, if
    there are any, the clients of whom the rule let nothing in."""
    values, found = dict[str, Value](), dict[str, Mapping[str, Tensor]]()
    nothing = set[int]()
    for block, reports in parts.items():
        encoded, left_out = reports.encoded(last)
        nothing.update(left_out)
        values |= prefixed(prefix_of(block), encoded.values)
        tensors = prefixed(prefix_of(block), encoded.tensors)
        found |= dict.fromkeys(tensors, tensors)
    if nothing:
        values[LEFT_OUT] = [*sorted(nothing)]
    return values, Computed(found, lambda name: found[name][name])
