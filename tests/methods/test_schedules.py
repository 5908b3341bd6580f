"""A cycle visits every client once and reaches every block."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.methods.schedules import Cycle, Order

ORDERS: tuple[Order, ...] = ("ascending", "descending", "rotating", "permutation")


def cycle_of(schedule: Cycle, number: int) -> list[dict[int, int]]:
    """Client and block of every visit of a cycle, round by round."""
    first = number * schedule.rounds_per_cycle
    return [
        {client: int(plan["block"]) for client, plan in schedule.visits(first + r).items()}  # type: ignore[arg-type]
        for r in range(schedule.rounds_per_cycle)
    ]


@st.composite
def schedules(draw: st.DrawFn) -> Cycle:
    blocks, together = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    at_once = draw(st.integers(1, blocks))
    clients = draw(st.integers(at_once * together, 20))
    order = draw(st.sampled_from(ORDERS))
    schedule = Cycle(draw(st.integers(0, 9)), clients, blocks, order, at_once * together, together)
    if order in ("ascending", "descending") and schedule.visits_per_cycle < blocks:
        return replace(schedule, order="rotating")
    return schedule


@settings(deadline=None)
@given(schedules(), st.integers(0, 7))
def test_every_client_is_visited_once_a_cycle(schedule: Cycle, number: int) -> None:
    visited = [client for round in cycle_of(schedule, number) for client in round]
    assert sorted(visited) == list(range(schedule.clients))


@settings(deadline=None)
@given(schedules(), st.integers(0, 7))
def test_visits_of_a_round_are_to_different_blocks(schedule: Cycle, number: int) -> None:
    for round in cycle_of(schedule, number):
        assert list(round) == sorted(round)
        assert max(Counter(round.values()).values()) <= schedule.together
        visits = {client % schedule.visits_per_cycle for client in round}
        assert len(set(round.values())) == len(visits)


@settings(deadline=None)
@given(schedules(), st.integers(0, 7))
def test_every_block_is_covered_in_every_cycle(schedule: Cycle, number: int) -> None:
    """Where there are visits enough; in a few cycles otherwise."""
    enough = schedule.visits_per_cycle >= schedule.blocks
    cycles = [number] if enough else range(number * schedule.blocks, (number + 1) * schedule.blocks)
    covered = {b for n in cycles for round in cycle_of(schedule, n) for b in round.values()}
    assert covered == set(range(schedule.blocks))


@settings(deadline=None)
@given(schedules(), st.integers(0, 3))
def test_blocks_are_visited_equally_often(schedule: Cycle, number: int) -> None:
    if schedule.order != "permutation" or schedule.visits_per_cycle < schedule.blocks:
        return
    first = {c: b for round in cycle_of(schedule, number) for c, b in round.items()}
    counts = Counter(first[visit] for visit in range(schedule.visits_per_cycle))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_published_orders() -> None:
    """The paper's code: client i trains block i mod B, or B - 1 - i mod B, in every cycle."""
    for number in (0, 3):
        blocks = [
            b for round in cycle_of(Cycle(0, 5, 3, "ascending"), number) for b in round.values()
        ]
        assert blocks == [0, 1, 2, 0, 1]
        blocks = [
            b for round in cycle_of(Cycle(0, 5, 3, "descending"), number) for b in round.values()
        ]
        assert blocks == [2, 1, 0, 2, 1]


def test_rotating_gives_every_client_every_block_in_turn() -> None:
    schedule = Cycle(0, 4, 3, "rotating")
    for client in range(4):
        assert [schedule.block(e, client) for e in range(3)] == [(client + e) % 3 for e in range(3)]


def test_a_published_group_is_a_client_and_the_one_b_clients_later() -> None:
    """The paper's code averages clients b and b + B on block b."""
    schedule = Cycle(0, 6, 3, "ascending", size=2, together=2)
    assert cycle_of(schedule, 0) == [{0: 0, 3: 0}, {1: 1, 4: 1}, {2: 2, 5: 2}]


def test_permutations_are_drawn_anew_and_by_the_seed() -> None:
    def blocks(seed: int, number: int) -> list[int]:
        schedule = Cycle(seed, 8, 8, "permutation")
        return [b for round in cycle_of(schedule, number) for b in round.values()]

    assert blocks(0, 0) == blocks(0, 0)
    assert len({tuple(blocks(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Cycle(0, 9, 3, "rotating", size=3, together=2), "do not make whole groups"),
        (Cycle(0, 9, 2, "rotating", size=3), "3 blocks at once, but there are only 2"),
        (Cycle(0, 2, 3, "ascending"), "2 visits a cycle never reach all 3 blocks"),
        (Cycle(0, 4, 3, "descending", size=2, together=2), "2 visits a cycle never reach"),
    ],
)
def test_a_schedule_that_does_not_fit_is_an_error(schedule: Cycle, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        schedule.visits(0)
