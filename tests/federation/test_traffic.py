"""What a client is sent: the updates it missed, or the model where that is less than several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fullfed.federation.server import Traffic


@dataclass
class Lengths:
    """Of updates, in bytes, of which the log has those from ``first`` on."""

    sizes: Sequence[int]
    first: int = 0

    def size(self, index: int, /) -> int:
        assert index >= self.first
        return self.sizes[index]


def traffic_of(
    sizes: Sequence[int], snapshot: int = 1000, cumulative: bool = False, first: int = 0
) -> Traffic:
    """Of a run whose updates are of these sizes."""
    return Traffic(Lengths(sizes, first), lambda: snapshot, cumulative)


def paid(
    sizes: Sequence[int],
    visits: Sequence[tuple[int, int]],
    snapshot: int = 1000,
    cumulative: bool = False,
) -> list[int]:
    """Bytes that each of the visits, (client, version), needs."""
    traffic = traffic_of(sizes, snapshot, cumulative)
    return [traffic.catch_up(client, version) for client, version in visits]


def test_the_base_model_costs_nothing() -> None:
    assert paid([], [(0, 0)]) == [0]


def test_a_newcomer_is_sent_every_update() -> None:
    assert paid([10, 20, 30, 40], [(0, 3)]) == [60]


def test_a_client_is_sent_a_snapshot_for_updates_that_are_not_kept() -> None:
    traffic = traffic_of([10, 20, 30, 40], first=2)
    assert [traffic.by_snapshot(client, 4) for client in (0, 1)] == [True, True]
    assert traffic.catch_up(0, 4) == 1000
    traffic.found(1, 2)
    assert not traffic.by_snapshot(1, 4)
    assert traffic.catch_up(1, 4) == 70


def test_a_client_is_sent_only_what_it_missed() -> None:
    assert paid([10, 20, 30], [(0, 1), (0, 3), (0, 3)]) == [10, 50, 0]


def test_clients_are_accounted_for_apart() -> None:
    assert paid([10, 20], [(0, 2), (1, 2)]) == [30, 30]


def test_the_model_is_sent_where_several_updates_are_more() -> None:
    assert paid([10, 20, 30, 40], [(0, 3), (0, 4)], snapshot=55) == [55, 40]


def test_a_single_update_is_sent_also_where_it_is_more_than_the_model() -> None:
    """Whoever has the version before needs no second copy of the model beside its own."""
    assert paid([70, 80], [(0, 1), (0, 2)], snapshot=55) == [70, 80]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.lists(st.integers(0, 12), max_size=8),
    st.integers(1, 200),
)
def test_often_or_rarely_nobody_pays_more_than_for_every_update_or_every_model(
    sizes: list[int], visits: list[int], snapshot: int
) -> None:
    versions = sorted(min(visit, len(sizes)) for visit in visits)
    bytes_of = paid(sizes, [(0, version) for version in versions], snapshot)
    assert sum(bytes_of) <= sum(sizes)
    assert all(cost <= max(snapshot, *sizes) for cost in bytes_of)


def test_of_cumulative_updates_only_the_newest_is_sent() -> None:
    visits = [(0, 3), (0, 3), (0, 5)]
    assert paid([10, 20, 35, 36, 37], visits, cumulative=True) == [35, 0, 37]


def test_what_was_sent_before_a_restart_is_known_from_the_metrics() -> None:
    records = [
        {"round": 0, "bytes": {"down_by_client": {"0": 9, "1": 9}}},
        {"round": 2, "bytes": {"down_by_client": {"0": 9, "2": 0}}},
    ]
    traffic = traffic_of([1, 1, 1])
    traffic.restore(records)
    missed = [list(traffic.missed(client, 3)) for client in range(3)]
    assert missed == [[2], [0, 1, 2], [0, 1, 2]]
    assert [traffic.is_new(client) for client in range(3)] == [False, False, True]


def test_a_client_that_knows_nothing_is_a_new_one() -> None:
    traffic = traffic_of([1, 1, 1])
    traffic.found(0, 2)
    assert not traffic.is_new(0)
    traffic.found(0, -1)
    assert traffic.is_new(0)


def test_a_snapshot_is_measured_once_a_version() -> None:
    """However many clients come late."""
    asked: list[int] = []

    def snapshot() -> int:
        asked.append(1)
        return 250

    ours = Traffic(Lengths([100] * 5), snapshot)
    assert [ours.catch_up(client, 4) for client in range(3)] == [250] * 3
    assert [ours.catch_up(client, 5) for client in range(3, 6)] == [250] * 3
    assert len(asked) == 2
