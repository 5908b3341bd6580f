"""What `fullfed start` says of partners that are not connected."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fullfed.deployment import absences
from fullfed.deployment.absences import Absences, local_time
from fullfed.deployment.server import RegisteredNode
from fullfed.errors import UserError

MOMENT = "2026-01-02T03:04:05.6+00:00"
GONE, THERE = RegisteredNode("offline", MOMENT), RegisteredNode("online", MOMENT)


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, RegisteredNode] | None], str]:
    """Looks once, at nodes of which the server knows what is given; returns what is said."""
    monkeypatch.setattr(absences, "_LOOK_SECONDS", 0.0)
    known: dict[str, RegisteredNode] | None = None
    said: list[str] = []

    def states() -> dict[str, RegisteredNode]:
        if known is None:
            raise UserError("the server does not answer")
        return known

    watch = Absences(["north", "south"], states, said.append)

    def look(now: dict[str, RegisteredNode] | None) -> str:
        nonlocal known
        known = now
        said.clear()
        watch.look()
        return "; ".join(said)

    return look


def test_who_is_gone_is_told_once_with_the_moment_and_who_is_back_too(
    look: Callable[[dict[str, RegisteredNode] | None], str],
) -> None:
    assert look({"north": THERE, "south": THERE}) == ""
    gone = f"south is not connected, since {local_time(MOMENT)}"
    assert look({"north": THERE, "south": GONE}) == gone
    assert look({"north": THERE, "south": GONE}) == ""
    assert look({"north": THERE, "south": THERE}) == "south is connected again"
    assert look({"north": THERE, "south": GONE}) == gone


def test_who_never_came_and_a_server_that_is_silent_are_told(
    look: Callable[[dict[str, RegisteredNode] | None], str],
) -> None:
    assert look({"north": RegisteredNode("registered", "")}) == (
        "north has not connected yet; south is not registered at the server"
    )
    assert look(None) == "the server does not answer"
    assert look(None) == ""
    assert (
        look({"north": THERE, "south": THERE})
        == "north is connected again; south is connected again"
    )
    assert look(None) == "the server does not answer"


def test_moments_are_those_of_this_machines_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-1")  # an hour ahead of Greenwich
    time.tzset()
    assert local_time(MOMENT) == "2026-01-02 04:04:05"
    monkeypatch.undo()
    time.tzset()
    assert local_time("") == ""
