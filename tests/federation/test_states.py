"""A state is that of the newest earlier visit whose report counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.states import States, StatesInMemory, StatesOnDisk


@pytest.fixture(params=["memory", "disk"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> States:
    return (
        StatesInMemory()
        if request.param == "memory"
        else StatesOnDisk(tmp_path / "states", "a run")
    )


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
    states = StatesOnDisk(tmp_path, "a run")
    for round in range(5):
        states.save(0, "all", round, state(round))
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [
        "all.3.safetensors",
        "all.4.safetensors",
        "index.json",
    ]


def test_what_is_kept_is_a_copy(states: States) -> None:
    kept = state(1.0)
    states.save(0, "all", 0, kept)
    kept["residual/a.b"].zero_()
    assert float(states.load(0, "all", 1)["residual/a.b"].sum()) == 6.0


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of client 0's states of rounds 0 and 3."""
    states = StatesOnDisk(tmp_path, "a run")
    states.save(0, "all", 0, state(1.0))
    states.save(0, "all", 3, state(2.0))
    return tmp_path / "0"


NAMES = ("all.3.safetensors", "index.json")


def same_json(damaged: bytes, whole: bytes) -> bool:
    try:
        return bool(json.loads(damaged) == json.loads(whole))
    except ValueError:
        return False


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_byte_of_a_state_is_found(kept: Path, name: str) -> None:
    whole = (kept / name).read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (kept / name).write_bytes(damaged)
        if name == "index.json" and same_json(damaged, whole):
            continue  # a space may be another kind of space
        with pytest.raises(UserError, match=name):
            StatesOnDisk(kept.parent, "a run").load(0, "all", 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_state_is_not_an_older_one_nor_none(kept: Path, name: str) -> None:
    (kept / name).unlink()
    with pytest.raises(UserError, match=name):
        StatesOnDisk(kept.parent, "a run").load(0, "all", 4)


@pytest.mark.parametrize("other", ["a client", "a round", "a name", "a run"])
def test_a_state_is_bound_to_its_run_client_name_and_round(kept: Path, other: str) -> None:
    folder = kept.parent
    theirs = StatesOnDisk(folder / "their", "another run" if other == "a run" else "a run")
    client, name = int(other == "a client"), "block" if other == "a name" else "all"
    theirs.save(client, name, 3, state(5.0))
    if other == "a round":
        shutil.copy(kept / "all.0.safetensors", kept / "all.3.safetensors")
    elif other == "a name":
        shutil.copy(folder / "their" / "0" / "block.3.safetensors", kept / "all.3.safetensors")
    else:  # with its index
        shutil.copytree(folder / "their" / str(client), kept, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"index\.json|all\.3\.safetensors"):
        StatesOnDisk(folder, "a run").load(0, "all", 4)


def test_a_client_whose_newest_counted_state_is_missing_is_named(kept: Path) -> None:
    states = StatesOnDisk(kept.parent, "a run")
    states.check({0: 3})
    for newest in ({0: 4}, {0: 3, 7: 3}):
        with pytest.raises(UserError, match=r"what the client kept of round \d is missing"):
            states.check(newest)


def test_a_state_that_a_crash_left_behind_goes_with_the_next(kept: Path) -> None:
    (kept / "all.1.safetensors").write_bytes(b"superseded, and not deleted any more")
    states = StatesOnDisk(kept.parent, "a run")
    states.save(0, "block", 3, state(1.0))
    states.save(0, "all", 4, state(3.0))
    assert sorted(path.name for path in kept.glob("*.safetensors")) == [
        "all.3.safetensors",
        "all.4.safetensors",
        "block.3.safetensors",
    ]


@pytest.mark.parametrize("first", [True, False])
def test_a_crash_at_any_write_of_a_state_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """And the visit that is repeated then keeps its own."""
    real, left = Path.replace, [0]

    def replace(self: Path, target: Path) -> Path:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, target)

    for number in range(3 if first else 2):
        states = StatesOnDisk(tmp_path / str(number), "a run")
        if not first:
            states.save(0, "all", 1, state(1.0))
        left[0] = number
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                states.save(0, "all", 2, state(2.0))
        assert value(states, 0, "all", 2) == (None if first else 1.0)
        states.save(0, "all", 2, state(2.0))
        assert value(states, 0, "all", 3) == 2.0
