"""Orders and answers survive the way, and nothing else passes for one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.engines.flower.orders import Answer, Order
from fullfed.federation.messages import MessageError

RUN = "0123456789abcdef"
some = st.binary(min_size=1, max_size=20)
maybe = st.binary(max_size=20)


@given(
    some,
    st.lists(some, max_size=4),
    st.integers(0, 99),
    st.lists(maybe, min_size=5, max_size=5),
    st.integers(-1, 99),
)
def test_an_order_arrives_as_it_was_sent(
    plan: bytes, updates: list[bytes], first: int, others: list[bytes], merged: int
) -> None:
    order = Order(RUN, plan, tuple(updates), first, *others, merged=merged)
    assert Order.of(order.pieces()) == order
    assert all(order.pieces().values()), "no piece is empty"


@given(st.integers(-1, 99), maybe, st.text(st.characters(codec="ascii", categories=["L"])))
def test_an_answer_arrives_as_it_was_sent(version: int, report: bytes, failure: str) -> None:
    answer = Answer(version, report, failure[:500], 0.5, 0.25)
    assert Answer.of(answer.pieces()) == answer
    assert answer.lacks == (not report and not failure)


@given(st.dictionaries(st.sampled_from(["about", "plan", "report"]), maybe, max_size=3))
def test_whatever_arrives_nothing_but_a_message_error_comes_of_it(pieces: dict[str, bytes]) -> None:
    for kind in (Order, Answer):
        with pytest.raises(MessageError):
            kind.of(pieces)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "../../etc/passwd"},
        {"run": RUN.upper()},
        {"updates": -1},
        {"updates": 10**9},
        {"first": -1},
        {"first": 1.0},
        {"merged": -2},
        {"more": 1},
    ],
)
def test_an_order_out_of_range_is_refused(changes: dict[str, object]) -> None:
    pieces = Order(RUN, b"plan").pieces()
    pieces["about"] = json.dumps({**json.loads(pieces["about"]), **changes}).encode()
    with pytest.raises(MessageError):
        Order.of(pieces)


@pytest.mark.parametrize(
    "changes", [{"version": -2}, {"version": True}, {"train_seconds": float("inf")}, {"failure": 1}]
)
def test_an_answer_out_of_range_is_refused(changes: dict[str, object]) -> None:
    pieces = Answer(1, b"report").pieces()
    pieces["about"] = json.dumps({**json.loads(pieces["about"]), **changes}).encode()
    with pytest.raises(MessageError):
        Answer.of(pieces)


def test_a_failure_from_a_node_is_short_and_printable() -> None:
    pieces = Answer(1).pieces()
    about = {**json.loads(pieces["about"]), "failure": "\x1b[2J\n" + "x" * 10_000}
    text = Answer.of({"about": json.dumps(about).encode()}).failure
    assert len(text) == 500
    assert text.isprintable()


def test_the_relay_does_without_torch() -> None:
    """It is started anew for every message."""
    code = "import sys, fullfed.deployment.client_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
