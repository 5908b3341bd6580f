"""Local work of which no record can be told: first-order steps with record-level noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.config_privacy import PrivacyTable
from fullfed.data.batches import Batch, collate
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.federation.messages import Plan
from fullfed.federation.method import NOTHING
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.summing import PriorStep, check_installed
from fullfed.randomness import Stream
from fullfed.training.first_order import Improvement, TrainingError
from fullfed.training.loss import Loss
from fullfed.training.private_steps import Bound, train_privately
from fullfed.training.watch import OnStep, unwatched

if TYPE_CHECKING:
    from fullfed.privacy.records import RecordMechanism
    from fullfed.privacy.summing import Owner

SPENT = "its privacy budget is spent"


@dataclass(frozen=True)
class PrivateTraining(FirstOrder):
    """DP-SGD of a method's loss with the recipe's optimizer; see ``training.private_steps``.

    Batches and noise follow from the client's own secret, and never from the recipe's seed. Every
    client accounts for itself, and refuses the visit that would exceed epsilon.

    Attributes:
        work: the method's own, of which the loss counts.
        table: the recipe's.
        run: names the run.
        owner_of: what each client has that nobody else has; None at a server without data.
        records: of the client; see ``on``.
    """

    work: FirstOrder
    table: PrivacyTable
    run: str = ""
    owner_of: Callable[[int], Owner] | None = None
    records: int = 0

    @property
    def protects_records(self) -> bool:
        return True

    def owned(self, run: str, owner_of: Callable[[int], Owner]) -> PrivateTraining:
        return replace(self, run=run, owner_of=owner_of)

    def on(self, examples: Sequence[TokenizedExample]) -> PrivateTraining:
        return replace(self, records=len(examples))

    def loss(self, parameters: Sequence[Tensor]) -> Loss:
        return self.work.loss(parameters)

    def mechanism(self, records: int) -> RecordMechanism:
        """Of a client with so many records.

        Raises:
            UserError: there can be none; see ``record_mechanism``.
        """
        from fullfed.privacy.records import record_mechanism

        setting = self.setting
        return record_mechanism(self.table, setting.local, setting.federation.rounds, records)

    def _owner(self, client: int) -> Owner:
        assert self.owner_of is not None  # whoever has clients' data calls ``owned``
        return self.owner_of(client)

    def _key(self, plan: Plan) -> bytes:
        """The visit's own: no two visits of a client's begin at the same step of its ledger."""
        from fullfed.privacy.keystream import derived

        owner = self._owner(plan.client)
        first = sum(owner.ledger.before(plan.round).values())
        return derived(owner.secret, f"steps from {first} of run {self.run}")

    def batches(
        self,
        examples: Sequence[TokenizedExample],
        batch_size: int,
        steps: int,
        stream: Stream,
        plan: Plan,
    ) -> Iterator[Batch]:
        """Poisson samples, drawn in secret.

        Raises:
            TrainingError: the client's budget does not allow for the visit.
        """
        mechanism, most = self.mechanism(len(examples)), self.table.epsilon
        spent = self._owner(plan.client).ledger.before(plan.round)
        if most is not None and mechanism.epsilon(spent) > most:
            raise TrainingError(SPENT)
        for numbers in mechanism.samples(self._key(plan)):
            yield collate([examples[number] for number in numbers])

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        """See LocalWork; ``batches`` are those of ``batches``."""
        from fullfed.privacy.keystream import derived
        from fullfed.privacy.records import KeyedNoise

        setting, mechanism = self.setting, self.mechanism(self.records)
        account, loss = mechanism.account, self.loss(list(parameters.values()))
        bound = Bound(mechanism.clip, account.noise * mechanism.clip, mechanism.batch)
        noise = KeyedNoise(derived(self._key(plan), "noise"))
        local = setting.local.in_round(plan.version, setting.federation.rounds)
        tables = local, setting.memory
        done = train_privately(
            model, parameters, batches, *tables, bound, noise, loss, state, exact, on_step
        )
        self._owner(plan.client).ledger.add(account.noise, account.rate, mechanism.steps)
        if not all(bool(p.isfinite().all()) for p in parameters.values()):
            raise TrainingError(
                "weights are not finite after training; lower local.learning_rate or privacy.noise"
            )
        return done if self.stateful else replace(done, state={})


def check_private(local: LocalTable, memory: MemoryTable, own_trainer: bool) -> None:
    """See that a recipe asks for nothing that does not go with noise for every record.

    Args:
        own_trainer: whether clients train in a way of their own.

    Raises:
        UserError: it does.
    """
    check_installed()
    faults = {
        "trainer: a trainer of its own has no noise for records; leave it out": own_trainer,
        "local.micro_batch_size: every record has a backward pass of its own with "
        "privacy.protects = 'record'; leave the key out": local.micro_batch_size is not None,
        "memory.optimizer_in_backward: gradients are whole before noise is added to them with "
        "privacy.protects = 'record'; leave the key out": memory.optimizer_in_backward,
    }
    for fault, found in faults.items():
        if found:
            raise UserError(f"{fault}, or take privacy.protects = 'client'.")


def with_private_records(method: Composition, table: PrivacyTable) -> Composition:
    """The method whose clients add noise for each record.

    Nothing is measured on records for its server step: it is the recipe's number, or follows from
    what tasks have before any measurement.

    Raises:
        UserError: its clients do not train by gradients alone.
    """
    local = method.local
    if not isinstance(local, FirstOrder) or type(local).improve is not FirstOrder.improve:
        raise UserError(
            "privacy.protects: clients of this method measure records in another way than by "
            "gradients of steps, to which noise could be added; take another method, such as "
            "fedavg or ferret, or protects = 'client'."
        )
    step = PriorStep() if method.step.report_values else method.step
    return replace(method, local=PrivateTraining(method.setting, local, table), step=step)
