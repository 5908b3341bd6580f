from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.config import DataTable
from fullfed.data.examples import Example
from fullfed.data.partition import Part, dirichlet
from fullfed.data.partition import partition as partition_by
from fullfed.data.sources import read_examples
from fullfed.errors import UserError
from fullfed.randomness import Purpose, Stream


def labelled(count: int, labels: int) -> list[Example]:
    return [
        Example.single("", "", "", ("",), f"t{i % labels}", f"c{i % labels}") for i in range(count)
    ]


def partition(
    examples: list[Example], kind: str, clients: int | None, alpha: float, minimum: int, seed: int
) -> list[Part]:
    settings = {"partition": kind, "clients": clients, "alpha": alpha, "min_samples": minimum}
    return partition_by(examples, DataTable.model_validate({"train": "-"} | settings), seed)


def check_covered(parts: list[Part], count: int) -> None:
    assert sorted(i for part in parts for i in part.indices) == list(range(count))
    assert all(list(part.indices) == sorted(part.indices) for part in parts)


@given(
    st.sampled_from(["iid", "dirichlet"]),
    st.integers(1, 12),
    st.integers(60, 200),
    st.integers(1, 8),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=40, deadline=None)
def test_every_example_belongs_to_exactly_one_client(
    kind: str, clients: int, count: int, labels: int, seed: int
) -> None:
    parts = partition(labelled(count, labels), kind, clients, 1.0, 1, seed)
    assert len(parts) == clients
    check_covered(parts, count)


def test_tasks_and_categories_are_clients_in_order_of_names() -> None:
    examples = labelled(7, 3)
    assert partition(examples, "task", None, 0.5, 1, 0) == [
        Part("t0", (0, 3, 6)),
        Part("t1", (1, 4)),
        Part("t2", (2, 5)),
    ]
    assert [p.name for p in partition(examples, "category", None, 0.5, 1, 0)] == ["c0", "c1", "c2"]


def test_iid_parts_are_equal_and_the_seed_decides() -> None:
    examples = labelled(103, 5)
    parts = partition(examples, "iid", 10, 0.5, 1, 3)
    assert Counter(len(p.indices) for p in parts) == {10: 7, 11: 3}
    assert parts == partition(examples, "iid", 10, 0.5, 1, 3)
    assert parts != partition(examples, "iid", 10, 0.5, 1, 4)
    assert [p.name for p in parts][:2] == ["client-0", "client-1"]


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    examples = labelled(4000, 8)

    def top_share(alpha: float) -> float:
        shares = []
        for part in partition(examples, "dirichlet", 20, alpha, 1, 0):
            counts = Counter(examples[i].category for i in part.indices)
            shares.append(max(counts.values()) / len(part.indices))
        return float(np.mean(shares))

    assert top_share(100.0) < 0.2
    assert top_share(0.1) > 0.5


def test_the_minimum_is_reached_by_deterministic_retries() -> None:
    examples = labelled(1000, 4)
    parts = partition(examples, "dirichlet", 20, 0.3, 15, 1)
    assert min(len(p.indices) for p in parts) >= 15
    assert parts == partition(examples, "dirichlet", 20, 0.3, 15, 1)


@pytest.mark.parametrize(
    ("kind", "clients", "alpha", "minimum", "message"),
    [
        ("task", None, 0.5, 3, "Client t1 is left with 2 examples and the minimum is 3"),
        ("task", 5, 0.5, 1, 'leave data.clients out, or take data.partition = "iid" for 5 clients'),
        ("iid", None, 0.5, 1, "needs a number of clients"),
        ("iid", 8, 0.5, 1, "7 examples cannot give 8 clients 1 each"),
        ("dirichlet", 5, 1e-3, 1, r"No Dirichlet\(0.001\) split in"),
    ],
)
def test_a_split_that_cannot_be_had_says_why(
    kind: str, clients: int | None, alpha: float, minimum: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        partition(labelled(7, 3), kind, clients, alpha, minimum, 0)


def test_data_without_labels_is_named() -> None:
    bare = [Example.single("", "", "", ("",))] * 10
    with pytest.raises(UserError, match="Example 1 has no task"):
        partition(bare, "task", None, 0.5, 1, 0)
    with pytest.raises(UserError, match="neither category nor task"):
        partition(bare, "dirichlet", 2, 0.5, 1, 0)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 20.0])
def test_dirichlet_draws_have_the_right_mean_and_variance(alpha: float) -> None:
    count, draws = 5, 3000
    sample = np.array(
        [dirichlet(Stream(0, Purpose.PARTITION, round=r), alpha, count) for r in range(draws)]
    )
    assert np.allclose(sample.sum(axis=1), 1.0)
    variance = (1 / count) * (1 - 1 / count) / (count * alpha + 1)
    error = np.sqrt(variance / draws)
    assert np.abs(sample.mean(axis=0) - 1 / count).max() < 4.5 * error
    assert np.abs(sample.var(axis=0) / variance - 1).max() < 0.15


def test_the_protocol_of_the_papers_on_real_dolly(shared: Path) -> None:
    """200 clients, alpha 0.5, at least 10 samples each, summarization held out."""
    examples = [
        example
        for example in read_examples("data/dolly-15k-short.jsonl.gz", root=shared)
        if example.category != "summarization"
    ]
    parts = partition(examples, "dirichlet", 200, 0.5, 10, 0)
    check_covered(parts, len(examples))
    assert min(len(p.indices) for p in parts) >= 10
