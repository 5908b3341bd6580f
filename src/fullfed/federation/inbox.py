"""Lets in one valid and plausible report a client, and hands them on in the clients' order.

Reports are not trusted. Each is validated as it arrives and its bytes are put away, so that one
decoded report is in memory at a time, in whatever order they come. When no more arrive, a report
that is plausible by itself is compared with the cohort's: what changes the model far more than the
others do is refused, and what claims far more samples counts as less.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median_low
from typing import IO

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.errors import MessageError, UserError
from fullfed.federation.held_out import Checked, HeldOutCheck, harmful
from fullfed.federation.messages import Plan, Report, decode
from fullfed.federation.method import NOTHING, Method
from fullfed.federation.replica import norm

LARGEST_CHANGE = 1.0  # of a report, as a share of the model's own norm
LARGEST_RATIO = 100.0  # of a change to the median change of the cohort
MOST_SAMPLES = 4  # times the cohort's median that a report counts as, where sizes are not declared
LARGEST_LOSS = 1000.0  # nats a token; of a million possible tokens a guess has 14
_ROUNDING = 1e-3  # nats that a loss may be below zero
_IN_MEMORY = 64 << 20  # bytes of a round's reports; more are in a file


@dataclass(frozen=True)
class Arrival:
    """What an engine brings back from one client.

    Attributes:
        sender: the client, as the engine knows it (not as the payload says).
        payload: the encoded report, or None if the client failed.
        failure: why there is no payload.
        train_seconds, encode_seconds: as the client measured them.
        late: it answers an earlier round's plan.
        down: bytes of the messages that the client was sent for this visit; 0 if none reached it.
        drawn: the failure is the recipe's own, drawn from its seed: it would come again.
        under_way: nothing has come yet: the client was sent its plan, and reports in a later round.
        metrics: what a trainer says of the visit; never sent.
    """

    sender: int
    payload: bytes | None
    failure: str = ""
    train_seconds: float = 0.0
    encode_seconds: float = 0.0
    late: bool = False
    down: int = 0
    drawn: bool = False
    under_way: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kept:
    """A valid report that was put away.

    Attributes:
        start, length: where its bytes are.
        samples: as the client claims.
        change: the norm of its change.
        part: of the model, that it is about.
    """

    start: int
    length: int
    samples: int
    change: float
    part: int | None


class Inbox:
    """Collects one round's reports.

    Args:
        plans: of the round.
        model: the server's, at the version of the round.
        samples: how many each client has, as far as somebody other than the client says so.
        folder: where reports wait that do not fit into memory; None for the system's.
        exact: what the model's weights in 16 bits are rounded from, as far as that is kept.
        check: what reports are measured by; None to let in what harms.

    Attributes:
        refused: (client, reason) of each arrival that was not let in; in client order once all
            have arrived, and then of those that were compared with others.
        accepted: the clients whose reports were let in; in client order once all have arrived.
        limited: (samples that the client claimed, samples that its report counts as).
        checked: what the check found, once all have arrived.
    """

    def __init__(
        self,
        method: Method,
        plans: Sequence[Plan],
        model: PreTrainedModel,
        samples: Mapping[int, int] | None = None,
        folder: Path | None = None,
        exact: Mapping[str, Tensor] = NOTHING,
        check: HeldOutCheck | None = None,
    ) -> None:
        self._method, self._check = method, check
        self._plans = {plan.client: plan for plan in plans}
        self._model, self._exact = model, exact
        self._samples = samples or {}
        self._folder = str(folder or tempfile.gettempdir())
        self._seen: set[int] = set()
        self._kept: dict[int, _Kept] = {}
        self.refused: list[tuple[int, str]] = []
        self.limited: dict[int, tuple[int, int]] = {}
        self.checked = Checked()

    @property
    def accepted(self) -> list[int]:
        return sorted(self._kept)

    def in_client_order(self, arrivals: Iterable[Arrival]) -> Iterator[Report]:
        """The reports that are let in, in increasing order of clients, once all have arrived.

        Raises:
            UserError: the disk has no room for them.
        """
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=self._folder) as spool:
            for arrival in arrivals:
                kept = self._accept(arrival, spool.tell())
                if kept is not None:
                    assert arrival.payload is not None
                    self._kept[arrival.sender] = kept
                    try:
                        if len(arrival.payload) > _IN_MEMORY:
                            spool.rollover()  # before it is written: not into memory first
                        spool.write(arrival.payload)
                    except OSError as error:
                        raise UserError(
                            f"{self._folder}: a round's reports cannot be "
                            f"put here ({error.strerror}); free some space and resume."
                        ) from error
                del (
                    arrival
                )  # before the next is waited for: its report may be as large as the model
            self.refused.sort(key=lambda one: one[0])  # whoever was first to answer
            self._refuse_outliers()
            if self._check is not None:
                self._refuse_harmful(self._check, spool)
            counted = self._counted()
            for client in self.accepted:
                yield replace(self._read(spool, client), samples=counted[client])

    def _read(self, spool: IO[bytes], client: int) -> Report:
        kept = self._kept[client]
        spool.seek(kept.start)
        return decode(spool.read(kept.length), Report)

    def _accept(self, arrival: Arrival, start: int) -> _Kept | None:
        try:
            report, payload = self._validate(arrival)
            plan = self._plans[report.client]
            return _Kept(
                start,
                len(payload),
                report.samples,
                self._change(report, plan),
                self._method.part(plan),
            )
        except MessageError as error:
            self.refused.append((arrival.sender, str(error)))
            return None

    def _validate(self, arrival: Arrival) -> tuple[Report, bytes]:
        if arrival.late:
            raise MessageError("the report came after its round had ended")
        plan = self._plans.get(arrival.sender)
        if plan is None:
            raise MessageError("the client is not in this round's cohort")
        if arrival.sender in self._seen:
            raise MessageError("the client has answered this plan already")
        self._seen.add(arrival.sender)
        if arrival.payload is None:
            raise MessageError(arrival.failure)
        if self._check is not None and arrival.sender in self._check.excluded:
            self.checked.excluded.append(arrival.sender)
            raise MessageError(
                "the client's reports did harm to the held-out loss too often in a row; name it in "
                "check.trusted to let it in again"
            )
        report = decode(arrival.payload, Report, self._method.report_limit(plan))
        if report.client != arrival.sender:
            raise MessageError(f"the report claims to be client {report.client}'s")
        if report.round != plan.round:
            raise MessageError(f"the report is for round {report.round}, not {plan.round}")
        if report.samples == 0:
            raise MessageError("the report says that no sample was used")
        if not -_ROUNDING <= report.loss <= LARGEST_LOSS:
            raise MessageError(
                f"the report's loss of {report.loss:.4g} nats a token is not between 0 and "
                f"{LARGEST_LOSS:g}"
            )
        self._method.check(report, plan)
        return report, arrival.payload

    def _change(self, report: Report, plan: Plan) -> float:
        change = self._method.norm(report, plan, self._model, self._exact)
        most = self._largest
        if not change <= most:
            raise MessageError(
                f"the report's change has a norm of {change:.4g}, more than the model's own, "
                f"{most:.4g}; if the client is honest, local.learning_rate is too large"
            )
        return change

    @cached_property
    def _largest(self) -> float:
        return LARGEST_CHANGE * norm(self._model.parameters())

    def _refuse_outliers(self) -> None:
        """Refuse changes far beyond the lower median of those of the same part of the model.

        A client whose samples make for more steps than the median client's may go as much further.
        Where half of the clients change nothing, there is nothing to compare with.
        """
        changes: dict[int | None, list[float]] = {}
        for kept in self._kept.values():
            changes.setdefault(kept.part, []).append(kept.change)
        steps = {client: self._method.steps(n) for client, n in self._counted().items()}
        usual = median_low(steps.values()) if steps else 1
        for client in self.accepted:
            kept = self._kept[client]
            typical = median_low(changes[kept.part])
            most = LARGEST_RATIO * max(steps[client] / usual, 1.0)
            if 0 < most * typical < kept.change:
                del self._kept[client]
                reason = (
                    f"the report's change is {kept.change / typical:.4g} times as large as the "
                    f"median of the cohort, more than {most:.4g} times"
                )
                self.refused.append((client, reason))

    def _refuse_harmful(self, check: HeldOutCheck, spool: IO[bytes]) -> None:
        """Refuse what raises the held-out loss, as ``harmful`` has it."""
        parts: dict[int | None, list[int]] = {}
        for client in self.accepted:
            parts.setdefault(self._kept[client].part, []).append(client)
        found = self.checked
        for clients in parts.values():
            reports = ((self._read(spool, client), self._plans[client]) for client in clients)
            gains = check.gains(reports, len(clients))
            found.gains |= gains
            found.left_out += [c for c in harmful(gains) if c not in check.trusted]
        for client in sorted(found.left_out):
            del self._kept[client]
            reason = f"with the report the held-out loss is {-found.gains[client]:.3g} nats higher"
            self.refused.append((client, reason))

    def _counted(self) -> dict[int, int]:
        """The samples that each report counts as."""
        claims = {client: kept.samples for client, kept in self._kept.items()}
        known = {c: min(n, self._samples.get(c, n)) for c, n in claims.items()}
        most = MOST_SAMPLES * median_low(known.values()) if known else math.inf
        counted = {c: n if c in self._samples else int(min(n, most)) for c, n in known.items()}
        self.limited = {c: (claims[c], n) for c, n in counted.items() if n < claims[c]}
        return counted
