from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.config_data import DataTable
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
    st.sampled_from(["iid", "dirichlet", "quantity"]),
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


@given(
    st.integers(1, 12),
    st.integers(0, 200),
    st.sampled_from([1e-4, 0.1, 1.0, 1e4]),
    st.integers(1, 5),
    st.integers(0, 2**64 - 1),
)
def test_unequal_sizes_leave_everybody_the_minimum(
    clients: int, more: int, alpha: float, minimum: int, seed: int
) -> None:
    """Whatever is left to share out: there are no retries that could fail."""
    count = clients * minimum + more
    parts = partition(labelled(count, 3), "quantity", clients, alpha, minimum, seed)
    check_covered(parts, count)
    assert min(len(part.indices) for part in parts) >= minimum
    assert parts == partition(labelled(count, 3), "quantity", clients, alpha, minimum, seed)


def test_alpha_skews_sizes_and_not_what_is_held() -> None:
    examples = labelled(4000, 2)
    sizes = {
        alpha: [len(p.indices) for p in partition(examples, "quantity", 20, alpha, 1, 0)]
        for alpha in (0.1, 1.0, 1e6)
    }
    assert max(sizes[0.1]) > 4000 / 4, "a few have most"
    assert sum(size < 20 for size in sizes[0.1]) > 5, "and many next to nothing"
    assert np.ptp(sizes[1e6]) < 10, "a large alpha is iid"
    assert max(sizes[1e6]) < max(sizes[1.0]) < max(sizes[0.1])
    for part in partition(examples, "quantity", 20, 1.0, 1, 0):
        if len(part.indices) > 200:
            share = np.mean([examples[i].category == "c0" for i in part.indices])
            assert abs(share - 0.5) < 4.5 * 0.5 / np.sqrt(len(part.indices))
    one, other = (partition(examples, "quantity", 20, 1.0, 1, seed) for seed in (0, 1))
    assert one != other


def test_mean_sizes_are_those_of_the_draws() -> None:
    """Against NumPy's own Dirichlet: the spread of sizes over many seeds."""
    examples = labelled(1000, 1)
    ours = [
        len(part.indices)
        for seed in range(200)
        for part in partition(examples, "quantity", 5, 0.5, 1, seed)
    ]
    theirs = np.random.default_rng(0).dirichlet([0.5] * 5, 2000) * 995 + 1
    assert np.mean(ours) == 200
    assert abs(np.std(ours) / np.std(theirs) - 1) < 0.1


@given(st.dictionaries(st.text("ab", min_size=1, max_size=2), st.integers(5, 40), min_size=1),
       st.integers(1, 5), st.integers(0, 2**64 - 1))  # fmt: skip
def test_sources_are_divided_equally_and_apart(
    sizes: dict[str, int], clients: int, seed: int
) -> None:
    examples = owned_by([name for name, size in sizes.items() for _ in range(size)])
    parts = divided_sources(examples, clients, seed)
    check_covered(parts, len(examples))
    assert [part.name for part in parts] == [
        f"{name}-{i}" for name in sorted(sizes) for i in range(clients)
    ]
    for part in parts:
        name = part.name.rpartition("-")[0]
        assert {examples[i].owner for i in part.indices} == {name}
        assert len(part.indices) in (sizes[name] // clients, -(-sizes[name] // clients))
    assert parts == divided_sources(examples, clients, seed)


def owned_by(owners: list[str]) -> list[Example]:
    bare = Example.single("", "", "")
    return [replace(bare, owner=owner) for owner in owners]


def divided_sources(examples: list[Example], clients: int | None, seed: int) -> list[Part]:
    sources = [{"name": name, "path": "-"} for name in sorted({e.owner for e in examples})]
    table = {"sources": sources, "partition": "source", "clients_per_source": clients}
    return partition_by(examples, DataTable.model_validate(table), seed)


def test_sources_are_divided_at_random_by_the_seed() -> None:
    examples = owned_by(["a"] * 20 + ["b"] * 20)
    one, other = divided_sources(examples, 2, 0), divided_sources(examples, 2, 1)
    assert one != other
    first, second = ([i % 20 for i in part.indices] for part in (one[0], one[2]))
    assert first != second, "each source has a draw of its own"
    assert divided_sources(examples, None, 0) == [
        Part("a", tuple(range(20))), Part("b", tuple(range(20, 40))),
    ]  # fmt: skip
    with pytest.raises(UserError, match="source a has 20 examples, too few for 21 clients; lower"):
        divided_sources(examples, 21, 0)


def test_owners_are_clients_and_one_is_enough() -> None:
    examples = owned_by(["y", "x", "y"])
    for kind in ("file", "folder"):
        assert partition(examples, kind, None, 0.5, 1, 0) == [Part("x", (1,)), Part("y", (0, 2))]
        assert partition(examples[:1], kind, None, 0.5, 1, 0) == [Part("y", (0,))]
        with pytest.raises(UserError, match="Client x is left with 1 examples and the minimum is"):
            partition(examples, kind, None, 0.5, 2, 0)
    assert len(partition(examples, "iid", 1, 0.5, 1, 0)) == 1
    assert len(partition(examples, "quantity", 1, 0.5, 1, 0)) == 1


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
        ("file", 5, 0.5, 1, "makes one client for each file; leave data.clients out"),
        ("folder", None, 0.5, 1, "Example 1 has no folder, by which data.partition tells clients"),
        ("iid", None, 0.5, 1, "needs a number of clients"),
        ("quantity", None, 0.5, 1, "partition 'quantity' needs a number of clients"),
        ("quantity", 4, 0.5, 2, "7 examples cannot give 4 clients 2 each"),
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
