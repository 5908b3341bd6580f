"""What a client is sent: the updates it missed, or the model where that is less."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fullfed.federation.traffic import Traffic


def test_the_base_model_costs_nothing() -> None:
    assert Traffic(snapshot_bytes=100).catch_up(0, 0, []) == 0


def test_a_newcomer_is_sent_every_update() -> None:
    assert Traffic(1000).catch_up(0, 3, [10, 20, 30, 40]) == 60


def test_a_client_is_sent_only_what_it_missed() -> None:
    traffic = Traffic(1000)
    traffic.catch_up(0, 1, [10])
    assert traffic.catch_up(0, 3, [10, 20, 30]) == 50
    assert traffic.catch_up(0, 3, [10, 20, 30]) == 0


def test_clients_are_accounted_for_apart() -> None:
    traffic = Traffic(1000)
    traffic.catch_up(0, 2, [10, 20])
    assert traffic.catch_up(1, 2, [10, 20]) == 30


def test_the_model_is_sent_where_the_updates_are_more() -> None:
    traffic = Traffic(snapshot_bytes=55)
    assert traffic.catch_up(0, 3, [10, 20, 30]) == 55
    assert traffic.catch_up(0, 4, [10, 20, 30, 40]) == 40


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.lists(st.integers(0, 12), max_size=8),
    st.integers(1, 200),
)
def test_often_or_rarely_nobody_pays_more_than_for_every_update_or_every_model(
    sizes: list[int], visits: list[int], snapshot: int
) -> None:
    versions = sorted(min(visit, len(sizes)) for visit in visits)
    traffic = Traffic(snapshot)
    paid = [traffic.catch_up(0, version, sizes[:version]) for version in versions]
    assert sum(paid) <= sum(sizes)
    assert all(cost <= snapshot for cost in paid)


def test_of_cumulative_updates_only_the_newest_is_sent() -> None:
    traffic = Traffic(1000, cumulative=True)
    assert traffic.catch_up(0, 3, [10, 20, 35]) == 35
    assert traffic.catch_up(0, 3, [10, 20, 35]) == 0
    assert traffic.catch_up(0, 5, [10, 20, 35, 36, 37]) == 37
