"""A state is that of the newest earlier visit whose report counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.client import States, StatesInMemory, StatesOnDisk


@pytest.fixture(params=["memory", "disk"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> States:
    return StatesInMemory() if request.param == "memory" else StatesOnDisk(tmp_path / "states")


def state(number: float) -> Mapping[str, Tensor]:
    return {"residual/a.b": torch.full((2, 3), number), "local/step": torch.tensor(number)}


def value(states: States, client: int, name: str, round: int) -> float | None:
    loaded = states.load(client, name, round)
    return float(loaded["local/step"]) if loaded else None


def test_a_visit_reads_what_the_last_one_left(states: States) -> None:
    assert not states.load(3, "all", 0)
    states.save(3, "all", 0, state(1.5))
    loaded = states.load(3, "all", 7)
    assert set(loaded) == {"residual/a.b", "local/step"}
    assert torch.equal(loaded["residual/a.b"], torch.full((2, 3), 1.5))


def test_clients_and_names_are_apart(states: States) -> None:
    states.save(3, "block-1", 0, state(1.0))
    states.save(3, "block-11", 0, state(2.0))
    states.save(33, "block-1", 0, state(3.0))
    assert [
        value(states, *key, 1) for key in [(3, "block-1"), (3, "block-11"), (33, "block-1")]
    ] == [
        1.0,
        2.0,
        3.0,
    ]


def test_a_visit_that_is_repeated_begins_where_it_began(states: States) -> None:
    """A crash between a visit and its round's end."""
    states.save(0, "all", 2, state(1.0))
    states.save(0, "all", 5, state(2.0))
    assert value(states, 0, "all", 5) == 1.0
    states.save(0, "all", 5, state(3.0))
    assert value(states, 0, "all", 6) == 3.0


def test_a_visit_whose_report_did_not_count_leaves_nothing(states: States) -> None:
    for client in (0, 1):
        states.save(client, "all", 2, state(1.0))
        states.save(client, "all", 5, state(2.0))
    states.settle(5, [1])
    states.settle(5, [1])
    assert value(states, 0, "all", 6) == 1.0
    assert value(states, 1, "all", 6) == 2.0


def test_two_states_of_a_name_are_kept(tmp_path: Path) -> None:
    states = StatesOnDisk(tmp_path)
    for round in range(5):
        states.save(0, "all", round, state(round))
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [
        "all.3.safetensors",
        "all.4.safetensors",
    ]


def test_what_is_kept_is_a_copy(states: States) -> None:
    kept = state(1.0)
    states.save(0, "all", 0, kept)
    kept["residual/a.b"].zero_()
    assert float(states.load(0, "all", 1)["residual/a.b"].sum()) == 6.0


def test_a_damaged_state_is_an_error(tmp_path: Path) -> None:
    states = StatesOnDisk(tmp_path)
    states.save(0, "all", 0, state(1.0))
    (tmp_path / "0" / "all.0.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"all.0.safetensors: the client's state cannot be read"):
        states.load(0, "all", 1)
