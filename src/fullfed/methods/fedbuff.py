"""FedBuff: a buffer collects reports of clients that begin and end when they will (Nguyen et al.
2022, "Federated learning with buffered asynchronous aggregation", arXiv 2106.06639, Algorithm 1).

    client i:  Delta_i = w_v^(i) - w_v, after local steps from the version v that it began from
    everyone:  w_{t+1} = w_t + eta_g / K * sum_i s(t - v_i) Delta_i,   s(tau) = 1 / sqrt(1 + tau)

once K reports have come. Who begins and ends when is ``buffered.py``'s business; what a report on
an older version counts is ``aggregation.discount``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import VERSION, Plan, check_values
from fullfed.methods.buffered import BufferedArrivals
from fullfed.methods.checks import MessageChecks
from fullfed.methods.composition import Composition
from fullfed.methods.own_training import gradient_work
from fullfed.methods.scopes import Everything
from fullfed.methods.server_step import check_server_step, server_step
from fullfed.methods.setting import Setting


@dataclass(frozen=True)
class FedBuffOptions:
    """
    Attributes:
        buffer (reports): K, after which the server makes an update.
        server_step: eta_g, how much of the change is applied; "auto" is all of it, or with a
            sketch what the measured curvature allows.
    """

    buffer: int = 10
    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise ValueError("buffer is at least 1")
        check_server_step(self.server_step)


@dataclass(frozen=True)
class VersionChecks(MessageChecks):
    """Refuses plans that do not name the version to start from."""

    def plan(self, plan: Plan) -> None:
        check_values(plan, [VERSION])
        if plan.version > plan.round:
            raise MessageError("the plan is for a round before its version")
        self.codec.check_plan(plan, self.whole)


@dataclass(frozen=True)
class BufferedComposition(Composition):
    """A composition whose visits may last several rounds. A report is for the round whose buffer it
    is in, also where directions and random numbers are a round's; its plan names the version that
    the visit began from."""

    def ahead(self, round: int) -> list[Plan]:
        assert isinstance(self.schedule, BufferedArrivals)
        due = self.schedule.ahead(round)
        return [Plan(later, client, {VERSION: round}) for client, later in due.items()]

    @cached_property
    def _checks(self) -> MessageChecks:
        whole, stateful = self.setting.shapes, self.stateful
        return VersionChecks(self.codec, self.step, whole, (), False, stateful)


def build(setting: Setting, options: FedBuffOptions) -> Composition:
    """FedBuff for a federation.

    Raises:
        UserError: the codec or the rule cannot be used for reports on different versions, or the
            log will not have them.
    """
    if setting.federation.keep_updates == "since-snapshot":
        raise UserError(
            "federation.keep_updates: visits of fedbuff that are under way when a run stops are "
            "made again from the versions that they began from; keep all updates."
        )
    codec = setting.codec.as_changes()
    if codec.plan_values:
        raise UserError(
            "codec.basis: what the normal basis has each client do follows from the last update, "
            "and clients of fedbuff begin rounds before; take basis = 'sign'."
        )
    if setting.aggregation.votes:
        raise UserError(
            "aggregation.name: a vote cannot count for less, as reports on older versions do in "
            "fedbuff; take another rule."
        )
    return BufferedComposition(
        setting=setting,
        scope=Everything(),
        local=gradient_work(setting),
        codec=codec,
        step=server_step(options.server_step, setting.seed, codec, options.buffer),
        schedule=BufferedArrivals(
            setting.seed, setting.clients, setting.cohort_size, options.buffer
        ),
    )
