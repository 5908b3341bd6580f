"""When buffers are full and who is in them, against a slow simulation of clients and a clock."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fullfed.errors import UserError
from fullfed.methods.buffered import BufferedArrivals, duration
from fullfed.randomness import Purpose, Stream, uniforms

COURSES = st.builds(
    BufferedArrivals,
    seed=st.integers(0, 3),
    clients=st.integers(4, 12),
    at_once=st.integers(1, 15),
    buffer=st.integers(1, 4),
)


def drawn(seed: int, visit: int) -> tuple[float, list[int]]:
    """How long a visit lasts, and numbers in [0, 1) by which clients are chosen for it."""
    u, *others = uniforms(Stream(seed, Purpose.ARRIVALS, round=visit), 400)
    return stats.halfnorm.ppf(u) / stats.halfnorm.mean(), others  # type: ignore[return-value]


def slowly(
    course: BufferedArrivals, rounds: int
) -> tuple[list[dict[int, int]], list[float], dict[int, dict[int, float]]]:
    """Each round's clients with their versions, when it ended, and who began from each version."""
    clock, version, visit = 0.0, 0, 0
    ends, since = dict[int, float](), dict[int, int]()  # of clients that train
    buffer, full, times = dict[int, int](), list[dict[int, int]](), list[float]()
    begun: dict[int, dict[int, float]] = {0: {}}
    while len(full) < rounds:
        free = set(range(course.clients)) - set(ends) - set(buffer)
        while len(ends) < course.at_once and free:
            lasts, choices = drawn(course.seed, visit)
            client = next(c for c in (int(u * course.clients) for u in choices) if c in free)
            ends[client], since[client] = clock + lasts, version
            begun[version][client] = math.inf
            free.discard(client)
            visit += 1
        first = min(ends, key=lambda client: ends[client])
        clock = ends.pop(first)
        buffer[first] = since[first]
        begun[since[first]][first] = version
        if len(buffer) == course.buffer:
            full.append(buffer)
            times.append(clock)
            version += 1
            buffer, begun[version] = {}, {}
    return full, times, begun


@settings(deadline=None, max_examples=40)
@given(COURSES)
def test_rounds_are_those_of_a_slow_simulation(course: BufferedArrivals) -> None:
    full, times, begun = slowly(course, rounds=30)
    for round in range(10):
        visits = course.visits(round)
        assert list(visits) == sorted(visits)
        assert visits == {c: {"version": v} for c, v in full[round].items()}
        assert course.time(round) == pytest.approx(times[round], rel=1e-9)
        later = {c: due for c, due in begun[round].items() if round < due < 30}
        assert {c: due for c, due in course.ahead(round).items() if due < 30} == later


@settings(deadline=None, max_examples=40)
@given(COURSES)
def test_every_visit_begins_once_and_ends_once(course: BufferedArrivals) -> None:
    began = Counter[tuple[int, int, int]]()
    for version in range(12):
        began.update((version, client, due) for client, due in course.ahead(version).items())
    ended = Counter(
        (int(plan["version"]), client, round)  # type: ignore[call-overload]
        for round in range(12)
        for client, plan in course.visits(round).items()
        if plan["version"] != round
    )
    assert set(ended) == {visit for visit in began if visit[2] < 12}
    assert max([*began.values(), *ended.values()], default=1) == 1
    # No client begins before its last visit is in an update.
    for client in range(course.clients):
        own = sorted((v, due) for v, c, due in began if c == client)
        assert all(due < begins for (_, due), (begins, _) in pairwise(own))


def test_durations_are_half_normal_with_mean_1() -> None:
    lasted = [duration(Stream(1, Purpose.ARRIVALS, round=visit)) for visit in range(2000)]
    scaled = np.array(lasted) * stats.halfnorm.mean()
    assert stats.kstest(scaled, stats.halfnorm.cdf).pvalue > 0.01
    assert np.mean(lasted) == pytest.approx(1, abs=0.05)


def test_clients_are_chosen_alike() -> None:
    course = BufferedArrivals(seed=2, clients=20, at_once=5, buffer=4)
    chosen = Counter(client for round in range(500) for client in course.visits(round))
    assert stats.chisquare([chosen[client] for client in range(20)]).pvalue > 0.01


def test_more_rounds_do_not_change_earlier_ones() -> None:
    some, more = (BufferedArrivals(4, 9, 5, 2) for _ in range(2))
    more.visits(40)
    assert [some.visits(n) for n in range(5)] == [more.visits(n) for n in range(5)]


def test_a_buffer_that_nobody_fills_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.buffer: 3 clients never fill a buffer of 10"):
        BufferedArrivals(0, clients=3, at_once=2, buffer=10).visits(0)
