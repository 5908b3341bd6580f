"""Record-level differential privacy inside a client: its samples, its noise, its ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from randomgen import ChaCha
from torch import Tensor

from fullfed.config import LocalTable
from fullfed.config_privacy import PrivacyTable
from fullfed.errors import UserError
from fullfed.privacy.accountant import Account, Spent, epsilon_of, noise_for
from fullfed.privacy.keystream import KeyStream, derived


class Ledger(Protocol):
    """What a client has made of a run's noisy steps, those of rounds that were undone included."""

    def before(self, round: int) -> Spent:
        """The steps before its visit in a round."""

    def add(self, noise: float, rate: float, steps: int) -> None:
        """Remember a visit's steps, for good, before anything that they came to goes out."""


class LedgerInMemory:
    """A ledger that lasts as long as the process."""

    def __init__(self) -> None:
        self._spent = Counter[tuple[float, float]]()

    def before(self, round: int) -> Spent:
        return dict(self._spent)

    def add(self, noise: float, rate: float, steps: int) -> None:
        self._spent[noise, rate] += steps


@dataclass(frozen=True)
class RecordMechanism:
    """A client's noisy steps. Neighbours differ in one record, which counts or counts for nothing;
    how many there are is known.

    Attributes:
        account: the noise as a multiple of ``clip``, and the rate at which each record is in a
            step by itself.
        clip: the largest norm that a record's gradient counts with.
        records: that the client has.
        steps: of a visit.
    """

    account: Account
    clip: float
    records: int
    steps: int

    @property
    def batch(self) -> float:
        """How many records a step has in the mean; at least one, but for rounding."""
        return self.account.rate * self.records

    def visited(self, visits: int) -> Spent:
        """The steps of so many visits."""
        return {(self.account.noise, self.account.rate): visits * self.steps} if visits else {}

    def epsilon(self, spent: Spent, visits: int = 1) -> float:
        """After so many visits more.

        Args:
            spent: before them.
        """
        return epsilon_of(Counter(spent) + Counter(self.visited(visits)), self.account.delta)

    def samples(self, key: bytes) -> Iterator[Sequence[int]]:
        """The numbers of the records in each step: Poisson samples.

        Args:
            key: 32 bytes that only the client knows, and that it uses for this visit alone.
        """
        stream = KeyStream(derived(key, "samples"))
        for _ in range(self.steps):
            drawn = stream.uniforms(self.records) < self.account.rate
            yield [int(number) for number in np.flatnonzero(drawn)]


class KeyedNoise:
    """Normal numbers that only who holds a key can make, of ChaCha20's randomness.

    They are drawn in float64 and rounded to float32.

    Args:
        key: 32 bytes, used for these numbers alone.
    """

    def __init__(self, key: bytes) -> None:
        self._generator = np.random.Generator(ChaCha(key=int.from_bytes(key, "little"), rounds=20))

    def normal(self, count: int) -> Tensor:
        """The next ``count``, float32."""
        return torch.from_numpy(self._generator.standard_normal(count).astype(np.float32))


def record_mechanism(
    table: PrivacyTable, local: LocalTable, rounds: int, records: int
) -> RecordMechanism:
    """That of a client with so many records.

    Where the recipe does not say the noise, it is the least with which a visit in each of
    ``rounds`` keeps epsilon.

    Raises:
        UserError: delta says nothing for so many records, or epsilon leaves nothing to learn or
            does not last for one visit.
    """
    assert table.delta is not None
    assert table.clip is not None
    if records > 1 and table.delta >= 1 / records:
        raise UserError(
            f"privacy.delta: {table.delta:g} would let a record of {records} be told in the open; "
            f"it must be below {1 / records:.2g}."
        )
    rate, steps = min(local.batch_size / records, 1.0), local.batches(records)
    noise = table.noise
    if noise is None:
        assert table.epsilon is not None
        noise = noise_for(table.epsilon, table.delta, rate, rounds * steps)
    mechanism = RecordMechanism(Account(noise, rate, table.delta), table.clip, records, steps)
    if table.epsilon is not None and mechanism.epsilon({}) > table.epsilon:
        raise UserError(
            f"privacy.noise: one visit to a client with {records} records alone has epsilon "
            f"{mechanism.epsilon({}):.3g}, more than the {table.epsilon:g} of privacy.epsilon; "
            "raise one of them, or leave noise out."
        )
    return mechanism
