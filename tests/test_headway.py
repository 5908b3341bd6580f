"""What is said of a piece of work that takes long, and how often."""

from __future__ import annotations

import pytest

from fullfed.headway import Headway, NowAndThen, describe_headway


def loss_of(value: float) -> Headway:
    return Headway("train", 3, 5, 600, lambda: value, client=0)


def test_a_line_has_steps_loss_speed_and_the_time_left_at_that_speed() -> None:
    line = describe_headway(loss_of(1.25), seconds=30.0)
    assert line == "step 3/5  loss 1.2500  20 tokens/s  20.0 s left"
    assert describe_headway(Headway("train", 0, 5), 0.0) == "step 0/5"
    assert describe_headway(Headway("answer", 0, 9, 50), 2.0) == (
        "evaluating, answer 0/9  25 tokens/s"
    )
    assert describe_headway(Headway("aggregate", 9, 10), 18.0) == (
        "aggregating, report 9/10  2.00 s left"
    )


def test_something_is_said_only_when_it_is_due_and_no_loss_is_read_before() -> None:
    """Reading a loss makes a GPU finish what it was given."""
    now, said, read = [0.0], list[str](), list[int]()

    def loss(done: int) -> float:
        read.append(done)
        return 1.0

    watch = NowAndThen(lambda _, text: said.append(text), every=15.0, clock=lambda: now[0])
    watch(Headway("train", 0, 100))
    for done in range(1, 10):  # a step takes 4 s
        now[0] += 4.0
        watch(Headway("train", done, 100, 8 * done, lambda done=done: loss(done)))
    assert read == [4, 8]
    assert said == [
        "step 4/100  loss 1.0000  2 tokens/s  6.40 min left",
        "step 8/100  loss 1.0000  2 tokens/s  6.13 min left",
    ]


@pytest.mark.parametrize(("pause", "lines"), [(14.0, 0), (15.0, 1)])
def test_what_else_is_said_puts_the_next_line_off(pause: float, lines: int) -> None:
    now, said = [0.0], list[str]()
    watch = NowAndThen(lambda _, text: said.append(text), every=15.0, clock=lambda: now[0])
    now[0] = 100.0
    watch.said()
    now[0] += pause
    watch(Headway("train", 0, 2))
    assert len(said) == lines
