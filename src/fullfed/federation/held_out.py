"""The held-out check: what each report does to the loss on samples that only the server has.

Replicas are exact, so the server can rebuild what a client's report would do to the model, and
measure it, as Zeno does with gradients (Xie et al. 2019, arXiv 1805.10032, definition 2, without
the penalty on length, which is the aggregation rule's to bound).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

from fullfed.federation.messages import Plan, Report, Update
from fullfed.federation.replica import Replica

FAR = 3.0  # times the median distance from the median: 2 standard deviations if normal
FEWEST = 3  # reports on the same part of the model that can be compared
_LARGEST = 1000.0  # nats a token, of a loss


@dataclass(frozen=True)
class HeldOutCheck:
    """The server's check of one round's reports.

    Attributes:
        replica: the server's; is as it was after each call.
        loss: measures its model on the held-out samples, nats a token.
        last: the previous round's update, None in round 0.
        excluded: clients whose reports are not looked at.
        trusted: clients whose reports are let in whatever they do.
    """

    replica: Replica
    loss: Callable[[], float]
    last: Update | None
    excluded: Collection[int] = ()
    trusted: Collection[int] = ()

    def gains(self, reports: Iterable[tuple[Report, Plan]], count: int) -> dict[int, float]:
        """What each client's part of the round takes off the held-out loss; nats a token.

        Its part is the 1/count of its change that it would have in the mean, at the server step as
        it is known before the round.

        Args:
            reports: at most ``count``, all on the same part of the model.
        """
        method, before = self.replica.method, self._bounded_loss()
        gains = {}
        for report, plan in reports:
            with self.replica.trial(method.alone(report, plan, self.last, 1 / count)):
                gains[report.client] = before - self._bounded_loss()
        return gains

    def _bounded_loss(self) -> float:
        loss = self.loss()
        return min(loss, _LARGEST) if math.isfinite(loss) else _LARGEST


@dataclass
class Checked:
    """What the check found in a round.

    Attributes:
        gains: of each report that was looked at, by client; see ``HeldOutCheck.gains``.
        left_out: the clients whose reports did harm.
        excluded: the clients whose reports were not looked at.
    """

    gains: dict[int, float] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    excluded: list[int] = field(default_factory=list)


def harmful(gains: Mapping[int, float]) -> list[int]:
    """The clients whose reports do harm, in increasing order.

    A report does harm if it takes away more than the cohort's lower median report brings, and
    stands apart: its gain is below the median by more than ``FAR`` times the median distance from
    it. By the first, clients whose data are unlike the held-out samples are let in, though the loss
    is a little higher with them. By the second nobody is to blame for noise, where the model gains
    hardly any more. Where most do harm nobody is left out: the median report then brings nothing.

    Args:
        gains: of reports on the same part of the model, by client.
    """
    if len(gains) < FEWEST:
        return []
    middle = median_low(gains.values())
    if middle <= 0:
        return []
    spread = median_low(abs(gain - middle) for gain in gains.values())
    most = min(-middle, middle - FAR * spread)
    return sorted(client for client, gain in gains.items() if gain < most)


def persistent(rounds: Iterable[Mapping[str, Any]], patience: int) -> list[int]:
    """The clients whose reports did harm in so many of their visits in a row, in increasing order.

    Args:
        rounds: what the run's records say of the check: ``gains`` of each client, by its number as
            text, and who was ``left_out`` for them.
    """
    in_a_row, found = Counter[int](), set[int]()
    for one in rounds:
        for client in map(int, one["gains"]):
            in_a_row[client] = in_a_row[client] + 1 if client in one["left_out"] else 0
            if in_a_row[client] >= patience:
                found.add(client)
    return sorted(found)
