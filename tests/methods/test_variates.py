"""FedPepTAO's server by hand: three numbers, two clients, three rounds, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fullfed.methods.variates import ServerRule, ServerState, VisitResult, client_variate

Numbers = NDArray[np.float64]
RATE, MOMENTUM, ETA = 0.05, 0.9, 0.04
SHARES, STEPS = (0.25, 0.75), (2, 3)
LEFT = [  # where each client's steps end, round by round
    ([1.1, -0.3, 0.2], [0.9, 0.1, -0.4]),
    ([1.2, -0.5, 0.3], [0.7, 0.3, -0.2]),
    ([0.8, -0.1, 0.6], [0.5, 0.2, 0.1]),
]


def by_hand(clients: int) -> list[tuple[Numbers, Numbers, Numbers, list[Numbers]]]:
    """(w, c, v, [c_1, c_2]) after each round, as the released script has them: a step for each
    client from the mean, and then the mean of these steps."""
    w, c, v = np.array([1.0, -0.2, 0.0]), np.zeros(3), np.zeros(3)
    own = [np.zeros(3), np.zeros(3)]
    earlier: Numbers | None = None
    found = []
    for round, left in enumerate(np.array(LEFT), start=1):
        mean = SHARES[0] * left[0] + SHARES[1] * left[1]
        delta = w - mean
        moved = []
        for i in range(2):
            new = own[i] - c + (w - left[i]) / (STEPS[i] * ETA)
            moved.append(new - own[i])
            own[i] = new
        c = c + 2 / clients * (STEPS[0] * moved[0] + STEPS[1] * moved[1]) / sum(STEPS)
        w = mean
        if earlier is not None:
            gradient, rate = earlier - delta, RATE * 0.99 ** (round - 1)
            each = [MOMENTUM * v + (1 - MOMENTUM) * gradient + c - own[i] for i in range(2)]
            w = sum(p * (mean - rate * e) for p, e in zip(SHARES, each, strict=True))  # type: ignore[assignment]
            v = sum(p * e for p, e in zip(SHARES, each, strict=True))  # type: ignore[assignment]
        earlier = delta
        found.append((w, c, v, [*own]))
    return found


@pytest.mark.parametrize("clients", [2, 5])
def test_three_rounds_of_the_server_and_its_clients(clients: int) -> None:
    rule = ServerRule(RATE, MOMENTUM, ETA, clients)
    state = ServerState.start(torch.tensor([1.0, -0.2, 0.0], dtype=torch.float64))
    own = [torch.zeros(3).double() for _ in range(2)]
    for round, (w, c, v, variates) in enumerate(by_hand(clients), start=1):
        left = [torch.tensor(numbers, dtype=torch.float64) for numbers in LEFT[round - 1]]
        own = [
            client_variate(own[i], state.variate, state.weights, left[i], STEPS[i], ETA)
            for i in range(2)
        ]
        visits = [VisitResult(SHARES[i], STEPS[i], left[i], own[i]) for i in range(2)]
        state = rule.after(state, visits, round)
        for ours, wanted in zip(
            [state.weights, state.variate, state.momentum, *own], [w, c, v, *variates], strict=True
        ):
            np.testing.assert_allclose(ours.numpy(), wanted, rtol=0, atol=1e-12)
    assert float(state.momentum.abs().max()) > 0.1


def test_without_a_rate_the_server_averages() -> None:
    rule = ServerRule(0.0, MOMENTUM, ETA, 2)
    state = ServerState.start(torch.zeros(3).double())
    for round, left in enumerate(torch.tensor(LEFT, dtype=torch.float64), start=1):
        visits = [VisitResult(SHARES[i], 1, left[i], left[i]) for i in range(2)]
        state = rule.after(state, visits, round)
        torch.testing.assert_close(state.weights, 0.25 * left[0] + 0.75 * left[1])


def test_the_rate_falls_to_its_floor() -> None:
    rule = ServerRule(RATE, MOMENTUM, ETA, 2)
    assert rule.rate_of(2) == pytest.approx(0.0495)
    assert rule.rate_of(101) == pytest.approx(0.05 * 0.99**100)
    assert rule.rate_of(2000) == 1e-4
