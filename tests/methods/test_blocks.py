"""Blocks divide a model: nothing is left out, nothing is in two of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Plan, Report
from fullfed.methods.schedules import block_of, divide, named_block
from fullfed.methods.setting import Setting
from methods.tiny import setting, tiny_model


def of_layers(count: int) -> Setting:
    layers = tuple((f"{n}.a", f"{n}.b") for n in range(count))
    names = ["embed", *(n for layer in layers for n in layer), "head"]
    shapes = {n: torch.Size([i + 1]) for i, n in enumerate(names)}
    return setting(tiny_model(), shapes=shapes, layers=layers)


@settings(deadline=None)
@given(layers=st.integers(1, 12), count=st.integers(1, 12), outer=st.booleans())
def test_blocks_are_consecutive_layers_as_even_as_can_be(
    layers: int, count: int, outer: bool
) -> None:
    if count > layers:
        return
    made = of_layers(layers)
    blocks = divide(made, count, outer)
    inner = blocks[:-1] if outer else blocks
    assert [n for block in inner for n in block] == [n for layer in made.layers for n in layer]
    sizes = [len(block) // 2 for block in inner]
    assert len(inner) == count
    assert max(sizes) - min(sizes) <= 1
    assert all(made.shapes[n] == shape for block in blocks for n, shape in block.items())
    if outer:
        assert set(blocks[-1]) == {"embed", "head"}


def test_every_layer_is_a_block_unless_told_otherwise() -> None:
    assert [list(block) for block in divide(of_layers(2), None, False)] == [
        ["0.a", "0.b"],
        ["1.a", "1.b"],
    ]


def test_more_blocks_than_layers_are_an_error() -> None:
    with pytest.raises(UserError, match=r"^method.blocks: 4 blocks for a model of 3 layers; "):
        divide(of_layers(3), 4, False)


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^model.path: no list of layers can be found"):
        divide(of_layers(0), None, True)


def test_a_plan_must_be_about_a_block_there_is() -> None:
    blocks = divide(of_layers(3), None, False)
    assert named_block(blocks, Plan(0, 0, {"block": 2})) is blocks[2]
    with pytest.raises(MessageError, match="the plan is about block 3 of 3"):
        named_block(blocks, Plan(0, 0, {"block": 3}))


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
def test_a_block_is_a_number(value: object) -> None:
    with pytest.raises(MessageError, match="does not name a block"):
        block_of(Report(0, 0, 1, 0.0, {} if value is None else {"block": value}))  # type: ignore[dict-item]
