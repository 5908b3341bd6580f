"""The recipe's table ``memory`` is checked before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from fullfed.config import Recipe, parse_recipe
from fullfed.errors import UserError


def recipe(**tables: Any) -> Recipe:
    known: dict[str, Any] = {
        "model": {"path": "m"},
        "data": {"train": "t"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "method": {"name": "fedavg"},
    }
    return parse_recipe({**known, **tables}, "r.toml")


def test_nothing_is_traded_unless_asked() -> None:
    table = recipe().memory
    assert not table.optimizer_in_backward
    assert not table.checkpoint_activations
    assert table.frozen == "exact"
    assert table.cache_inputs == 0


def test_steps_in_the_backward_pass_exclude_clipping_by_the_common_norm() -> None:
    lean = {"optimizer_in_backward": True}
    assert recipe(memory=lean, local={"clip_by": "tensor"}).memory.optimizer_in_backward
    with pytest.raises(
        UserError, match=r"which clipping by their common norm needs; set local"
    ) as e:
        recipe(memory=lean)
    assert str(e.value).startswith("r.toml: ")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        ({"frozen": "int2"}, "memory.frozen"),
        ({"cache_inputs": "much"}, "memory.cache_inputs: 'much' is not a number of bytes such as"),
        ({"cache": "1MiB"}, "there is no key 'memory.cache'"),
    ],
)
def test_what_is_not_an_option_is_an_error(memory: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        recipe(memory=memory)
