"""The validation part: a tenth of everybody's examples, and nobody trains on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.comparisons.search import hold_out
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from methods.tiny import samples


def clients(sizes: list[int]) -> list[list[TokenizedExample]]:
    return [samples(size, seed=number) for number, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2**64 - 1))
def test_it_takes_about_a_tenth_of_every_client_and_leaves_the_rest(
    sizes: list[int], seed: int
) -> None:
    sizes = [*sizes, 2]  # somebody has something to give
    everything = clients(sizes)
    kept, validation = hold_out(everything, seed)
    givers = sum(size for size in sizes if size > 1)
    assert len(validation) == -(-givers // 10)
    held = {id(example) for example in validation}
    for own, rest in zip(everything, kept, strict=True):
        expected = [e.ids.tolist() for e in own if id(e) not in held]
        assert [e.ids.tolist() for e in rest] == expected != []
        given_away = len(own) - len(rest)
        assert abs(given_away - len(own) * len(validation) / givers) < 1 or len(own) == 1


def test_it_is_capped_and_then_still_spread_over_all() -> None:
    kept, validation = hold_out(clients([1000] * 10), seed=3)
    assert len(validation) == 500
    assert [1000 - len(rest) for rest in kept] == [50] * 10


def test_it_depends_on_the_seed_alone_and_is_drawn_at_random() -> None:
    everything = clients([200])
    parts = [hold_out(everything, seed)[1] for seed in (1, 1, 2)]
    numbers = [[everything[0].index(example) for example in part] for part in parts]
    assert numbers[0] == numbers[1] != numbers[2]
    gaps = np.diff(numbers[0])
    assert len(set(gaps.tolist())) > 3, "not every tenth as they come"


def test_where_nobody_can_give_one_it_says_so() -> None:
    with pytest.raises(UserError, match=r"no client has two examples.*ask for fewer clients"):
        hold_out(clients([1, 1]), seed=0)
