"""From the recipe's tables to noise and account: what a run's mechanism is."""

from __future__ import annotations

import math

from fullfed.config import FederationTable
from fullfed.config_privacy import PrivacyTable
from fullfed.errors import UserError
from fullfed.privacy.accountant import Account, noise_for
from fullfed.privacy.mechanism import Mechanism
from fullfed.privacy.shares import threshold

_DEVIATIONS = 6.0  # that a Poisson cohort may be larger than in the mean


def client_mechanism(table: PrivacyTable, federation: FederationTable, clients: int) -> Mechanism:
    """Client-level noise of a run.

    Args:
        clients: in the federation.

    Raises:
        UserError: the budget does not last for one round, or delta is of no worth.
    """
    assert table.delta is not None
    assert table.clip is not None
    if table.delta >= 1 / clients:
        raise UserError(
            f"privacy.delta: {table.delta:g} lets one of {clients} clients be told whole; take "
            f"less than 1 / {clients}."
        )
    cohort = federation.clients_per_round
    rate = min(cohort / clients, 1.0) if table.sampling == "poisson" else 1.0
    noise = table.noise
    if noise is None:
        assert table.epsilon is not None
        noise = noise_for(table.epsilon, table.delta, rate, federation.rounds)
    account = Account(noise, rate, table.delta)
    if table.epsilon is not None and account.epsilon(1) > table.epsilon:
        raise UserError(
            f"privacy.noise: one round alone has epsilon {account.epsilon(1):.3g}, more than the "
            f"{table.epsilon:g} of privacy.epsilon; raise one of them, or leave noise out."
        )
    parts = threshold(cohort) if table.secure_sum else None
    spread = _DEVIATIONS * math.sqrt(cohort) if table.sampling == "poisson" else 0.0
    most = min(clients, math.ceil(cohort + spread))
    quantile, epsilon = table.clip_quantile, table.epsilon
    return Mechanism(account, table.clip, cohort, parts, quantile, epsilon, most)
