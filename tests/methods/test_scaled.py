"""A sketch with scales is one of the change in scaled units, and its step is measured in them."""

from __future__ import annotations

import tracemalloc
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Update
from fullfed.methods.codecs.codec import Change
from fullfed.methods.codecs.scaling import MOST_EXPONENT, ModelScales, exponents_of
from fullfed.methods.codecs.sketch import Sketch
from fullfed.methods.codecs.sketch_options import SketchOptions
from fullfed.methods.server_step import CurvatureStep, Trained

SHAPES = {"matrix": torch.Size([70, 80]), "cube": torch.Size([3, 4, 5]), "row": torch.Size([30])}
UNFIT = r"the scales (have an exponent beyond 64|are not 204)"
LIKELY = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1))
          for name, shape in SHAPES.items()}  # fmt: skip


def some_scales(seed: int = 0, most: int = 16) -> ModelScales:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(-most, most + 1, (exponents_of(SHAPES),), generator=generator)
    return ModelScales.read(zlib.compress(data.to(torch.int8).numpy().tobytes()), SHAPES)


def factor(scales: ModelScales, name: str) -> Tensor:
    rows, columns = (2 ** (e.double() / 8) for e in scales.exponents[name])
    return (rows[:, None] * columns).reshape(SHAPES[name])


def change(of: dict[str, Tensor]) -> Change:
    return Change({name: torch.zeros(shape) for name, shape in SHAPES.items()}, of)


@given(st.integers(0, 2**20), st.integers(0, MOST_EXPONENT))
def test_scales_are_their_bytes(seed: int, most: int) -> None:
    scales = some_scales(seed, most)
    assert ModelScales.read(scales.data, SHAPES).data == scales.data
    assert len(zlib.decompress(scales.data)) == 70 + 80 + 3 + 20 + 30 + 1


@pytest.mark.parametrize("plain", [b"", bytes(203), bytes(205), bytes(203) + b"\x41"])
def test_other_bytes_are_no_scales(plain: bytes) -> None:
    for data in (plain, zlib.compress(plain), zlib.compress(bytes(204))[:-9]):
        with pytest.raises(MessageError, match=UNFIT):
            ModelScales.read(data, SHAPES)


def test_a_few_bytes_that_stand_for_very_many_take_no_memory() -> None:
    bomb = zlib.compress(bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(MessageError, match="the scales are not 204 exponents"):
        ModelScales.read(bomb, SHAPES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("seeds", ["client", "shared"])
def test_a_scaled_sketch_is_the_sketch_of_the_scaled_change(seeds: str) -> None:
    scales = some_scales()
    plain = Sketch(3, SketchOptions(coordinates=500, seeds=seeds))  # type: ignore[arg-type]
    divided = {n: (LIKELY[n].double() / factor(scales, n)).float() for n in SHAPES}
    plan = Plan(2, 1)
    due = plain.encode(change(divided), plan, SHAPES).tensors["coordinates"]
    found = plain.scaled(scales).encode(change(LIKELY), plan, SHAPES).tensors["coordinates"]
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-4)


def test_what_is_applied_is_multiplied_by_the_factors() -> None:
    scales = some_scales()
    plain = Sketch(3, SketchOptions(coordinates=500, seeds="shared"))
    tensors = plain.encode(change(LIKELY), Plan(0, 0), SHAPES).tensors
    update = Update(0, {"server_step": 0.5}, tensors)
    own, theirs = ({n: torch.zeros(s) for n, s in SHAPES.items()} for _ in range(2))
    plain.apply(own, update, SHAPES)
    plain.scaled(scales).apply(theirs, update, SHAPES)
    for name in SHAPES:
        due = (own[name].double() * factor(scales, name)).float()
        torch.testing.assert_close(theirs[name], due, rtol=1e-5, atol=1e-7)


def test_as_many_coordinates_as_parameters_lose_nothing() -> None:
    """The sign basis is orthogonal then, and the factors cancel."""
    scales = some_scales(most=8)
    codec = Sketch(3, SketchOptions(coordinates=5690, seeds="shared")).scaled(scales)
    tensors = codec.encode(change(LIKELY), Plan(0, 0), SHAPES).tensors
    back = {n: torch.zeros(s) for n, s in SHAPES.items()}
    codec.apply(back, Update(0, {"server_step": 1.0}, tensors), SHAPES)
    assert all(torch.allclose(back[n], LIKELY[n], rtol=1e-3, atol=1e-3) for n in SHAPES)


def test_a_block_has_the_scales_of_its_own_parameters() -> None:
    scales, block = some_scales(), {"row": SHAPES["row"], "cube": SHAPES["cube"]}
    found = scales.of(block)
    assert found.rows[0] is scales.exponents["row"][0]
    assert found.columns[1] is scales.exponents["cube"][1]


def test_the_step_is_measured_in_scaled_units() -> None:
    """On a parabola sum(h w**2) / 2 around the start: energy sum((change / s)**2), and a trace
    that is sum(h s**2) whatever the signs are."""
    scales = some_scales()
    curvature = {
        n: 1 + (torch.arange(s.numel()) % 7).reshape(s).double() for n, s in SHAPES.items()
    }
    weights = {name: value.clone() for name, value in LIKELY.items()}

    def loss() -> float:
        return sum(float((curvature[n] * weights[n].double() ** 2).sum()) / 2 for n in SHAPES)

    start = {name: torch.zeros_like(value) for name, value in weights.items()}
    trained = Trained(weights, start, weights, loss, 0.0)
    rule = CurvatureStep(0, 1, shared=True).scaled(scales)
    found = rule.measure(trained, Plan(0, 0), None, 1000.0)
    factors = {n: factor(scales, n) for n in SHAPES}
    energy = sum(float((LIKELY[n].double() / factors[n]).square().sum()) for n in SHAPES)
    trace = sum(float((curvature[n] * factors[n].square()).sum()) for n in SHAPES)
    assert found["energy"] == pytest.approx(energy, rel=1e-4)
    assert found["trace"] == pytest.approx(trace, rel=1e-3)
    plain = replace(rule, scales=None)
    weights |= {name: value.clone() for name, value in LIKELY.items()}
    assert plain.measure(trained, Plan(0, 0), None, 1000.0)["energy"] != found["energy"]


def test_signs_are_those_of_the_scaled_change() -> None:
    scales = some_scales()
    divided = [(LIKELY[n].double() / factor(scales, n)).float() for n in SHAPES]
    none = [torch.zeros(s) for s in SHAPES.values()]
    rule = CurvatureStep(0, 2, shared=False)
    due = rule._common_signs(divided, none, Plan(4, 1))
    assert rule._common_signs(list(LIKELY.values()), none, Plan(4, 1), scales.of(SHAPES)) == due
