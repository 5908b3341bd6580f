"""BlockLLM's rule by hand, on models of three tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.methods.selection import Selection, SelectionRule, packed

RULE = SelectionRule(seed=5, sizes=(10, 20, 30), budget=30, patience=3)


def known(**changes: Any) -> Selection:
    """The second set, after three rounds of which the last was no better."""
    made = Selection(1, (0, 1), (2, 1, 0), (3.0, 2.0, 2.5), (6.0, 3.0, 5.0))
    return replace(made, **changes)


def test_tensors_are_taken_by_norm_over_visit_frequency_while_they_fit() -> None:
    """Shares of visits, with a set of everything counted: 3/3, 2/3, 1/3 -> scores 6, 4.5, 15."""
    chosen = RULE.next(known())
    assert chosen == Selection(2, (2,), (2, 1, 1))
    # With 50 to spend: 30 of the third, 10 of the first; the second does not fit any more.
    chosen = replace(RULE, budget=50).next(known())
    assert chosen == Selection(2, (0, 2), (3, 1, 1))


def test_a_tensor_that_was_trained_often_gives_way() -> None:
    alike = (4.0, 4.0, 4.0)
    assert RULE.next(known(norms=alike, visited=(2, 0, 2))).chosen == (0, 1)
    assert RULE.next(known(norms=alike, visited=(2, 2, 0))).chosen == (2,)
    assert RULE.next(known(norms=alike, visited=(1, 1, 1))).chosen == (0, 1), "ties: the first"


def test_the_first_that_counts_is_taken_if_nothing_fits() -> None:
    assert replace(RULE, budget=5).next(known()).chosen == (2,)


@pytest.mark.parametrize(
    ("losses", "due"),
    [
        ((3.0, 2.0, 1.0), False),  # 1 < 2
        ((3.0, 1.0, 2.0), True),  # 2 >= 2
        ((1.0, 1.0, 1.0), True),
        ((3.0, 2.9, 2.95), False),  # 2.95 = the mean, in decimal; not below
        ((1.0, 5.0), False),  # patience is not over
    ],
)
def test_another_set_follows_a_loss_no_less_than_its_mean(
    losses: tuple[float, ...], due: bool
) -> None:
    due = due or (len(losses) == 3 and losses[-1] >= math.fsum(losses) / 3)
    assert RULE.is_due(known(losses=losses)) is due
    assert (RULE.next(known(losses=losses)) != known(losses=losses)) is due


def test_the_first_set_is_random_and_for_one_round() -> None:
    assert RULE.first == RULE.first
    assert sum(RULE.sizes[n] for n in RULE.first.chosen) <= 30
    others = {replace(RULE, seed=seed).first.chosen for seed in range(20)}
    assert len(others) > 1
    after = RULE.first.after(2.0, (1.0, 1.0, 9.0), 3)
    assert RULE.next(after).chosen == (2,)


def test_norms_are_measured_where_another_set_may_follow() -> None:
    assert RULE.measures(RULE.first)
    assert not RULE.measures(known(losses=()))
    assert RULE.measures(known(losses=(1.0, 2.0)))


def test_a_round_is_remembered_by_the_update_alone() -> None:
    now = known(losses=(3.0, 2.0)).after(0.1, (1.5, 0.0, 2.5), 3).after(0.2, (), 3)
    assert now.losses == (2.0, 0.1, 0.2)
    update = decode(encode(Update(7, now.values())), Update)
    RULE.check_update(update)
    assert Selection.of(update) == now


VALUES = known().values()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("selected", []),
        ("selected", [1, 0]),
        ("selected", [0, 0]),
        ("selected", [3]),
        ("selected", [-1]),
        ("selected", [True]),
        ("selected", [0, 1, 2]),
        ("selected", "01"),
        ("selection", -1),
        ("selection", 2**31),
        ("selection", 1.0),
        ("visited", [1, 2]),
        ("visited", [1, 2, -3]),
        ("visited", [1, 2, 0.5]),
        ("losses", []),
        ("losses", [1.0] * 4),
        ("losses", [1e31]),
        ("losses", ["1"]),
        ("norms", b"1234567"),
        ("norms", packed([1.0, 2.0])),
        ("norms", packed([1.0, -2.0, 3.0])),
        ("norms", packed([1.0, math.nan, 3.0])),
        ("norms", packed([1.0, math.inf, 3.0])),
        ("norms", packed([1.0, 1e31, 3.0])),
        ("norms", [1.0, 2.0, 3.0]),
    ],
)
def test_an_update_that_cannot_be_is_refused(name: str, value: Any) -> None:
    RULE.check_update(Update(3, VALUES))
    with pytest.raises(MessageError, match="the update"):
        RULE.check_update(Update(3, {**VALUES, name: value}))


def test_norms_are_told_when_asked_for_and_not_otherwise() -> None:
    told, silent = (Report(0, 0, 1, 0.0, {"norms": packed(n)}) for n in ([1.0, 2.0, 3.0], []))
    RULE.check_norms(told, True)
    RULE.check_norms(silent, False)
    for report, asked in ((told, False), (silent, True)):
        with pytest.raises(MessageError, match="norm of each tensor"):
            RULE.check_norms(report, asked)


def test_a_plan_asks_for_no_more_than_the_budget() -> None:
    RULE.check_set(Plan(0, 0, {"selected": [0, 1], "selection": 0}))
    with pytest.raises(MessageError, match="more tensors than the method allows"):
        RULE.check_set(Plan(0, 0, {"selected": [1, 2], "selection": 0}))
