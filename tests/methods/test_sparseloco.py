"""SparseLoCo by hand: the largest of each chunk, what is kept, and EDEN's one bit a number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.federation.messages import Plan, Report, Update
from fullfed.methods.catalogue import METHODS
from fullfed.methods.codecs.codec import Change
from fullfed.methods.codecs.largest import largest_of_chunks
from fullfed.methods.codecs.topk import TopK
from methods.tiny import codec_options, setting, tiny_model


@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=40),
    st.integers(1, 7),
    st.integers(0, 6),
    st.integers(0, 39),
)
def test_the_largest_of_each_chunk_are_found(
    numbers: list[int], count: int, more: int, cut: int
) -> None:
    chunk, whole = count + more, torch.tensor(numbers, dtype=torch.float32)
    parts = [part for part in (whole[:cut], whole[cut:]) if part.numel()]
    positions, values = largest_of_chunks(parts, count, chunk)
    expected: list[int] = []
    for start in range(0, len(numbers), chunk):
        own = [n for n in range(start, min(start + chunk, len(numbers))) if numbers[n]]
        expected += sorted(sorted(own, key=lambda n: (-abs(numbers[n]), n))[:count])
    assert positions.tolist() == expected
    assert values.tolist() == [numbers[n] for n in expected]


def test_what_is_not_sent_is_kept_and_decays() -> None:
    """Two visits of one client, of six numbers in chunks of three, one sent of each."""
    codec = TopK(count=1, chunk=3, bits=32, error_feedback=True, decay=0.5)
    shapes, plan = {"w": torch.Size([6])}, Plan(0, 0)
    zeros = {"w": torch.zeros(6)}
    first = {"w": torch.tensor([1.0, -4.0, 2.0, 0.0, 0.5, 0.25])}
    sent = codec.encode(Change(zeros, first), plan, shapes)
    assert sent.tensors["values"].tolist() == [-4.0, 0.5]
    assert sent.state["w"].tolist() == [1.0, 0.0, 2.0, 0.0, 0.0, 0.25]
    second = {"w": torch.tensor([0.0, 0.5, -0.25, 0.0, 0.0, 0.0])}
    again = codec.encode(Change(zeros, second, state=sent.state), plan, shapes)
    assert again.tensors["values"].tolist() == [0.75, 0.125]
    assert again.state["w"].tolist() == [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_by_default_it_is_as_published() -> None:
    codec = TopK(**{k: v for k, v in METHODS["sparseloco"].codec.items() if k != "name"})  # type: ignore[union-attr]
    assert (codec.count, codec.chunk, codec.bits) == (64, 4096, 2)
    assert (codec.error_feedback, codec.decay) == (True, 0.95)
    shapes = {"w": torch.Size([4096, 25])}
    change = {"w": torch.from_numpy(np.random.default_rng(0).normal(size=(4096, 25))).float()}
    sent = codec.encode(Change({"w": torch.zeros(4096, 25)}, change), Plan(0, 0), shapes)
    decoded = codec.decode(Report(0, 0, 1, 0.0, {}, sent.tensors), Plan(0, 0), shapes).tensors["w"]
    assert int((decoded != 0).sum()) == 64 * 25
    assert len(decoded.unique()) == 5  # two sizes, either sign, and nothing
    nbytes = sum(t.nbytes for t in sent.tensors.values())
    assert nbytes <= codec.report_bytes(Plan(0, 0), shapes)
    assert 8 * nbytes / decoded.numel() < 64 * 14 / 4096  # the published 12 bits a position


@pytest.mark.parametrize(
    "options", [{"chunk": 5}, {"chunk": 5, "upload": 900}, {"chunk": 5, "count": 6}]
)
def test_a_chunk_needs_a_count_that_fits(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"chunk goes with a count|give upload or count"):
        codec_options("topk", **options)


def test_eden_sends_a_bit_a_number_and_is_right_on_average() -> None:
    """What n clients make of one heavy-tailed change has an error of (pi / 2 - 1) / n of its energy
    in the mean (Vargaftik et al. 2021, arXiv 2105.08339, section 4)."""
    shape, clients = torch.Size([300, 500]), 8
    drawn = np.random.default_rng(0).standard_t(3, size=shape) * 1e-3
    start, after = {"w": torch.zeros(shape)}, {"w": torch.from_numpy(drawn).float()}
    made = setting(tiny_model(), clients=clients, shapes={"w": shape})
    codec = METHODS["eden"].build(made, METHODS["eden"].options()).codec
    plans = [Plan(0, client) for client in range(clients)]
    sent = [codec.encode(Change(start, after), plan, made.shapes) for plan in plans]
    nbytes = sum(t.nbytes for t in sent[0].tensors.values())
    assert nbytes <= 1.001 * shape.numel() / 8 + 32
    reports = [Report(0, n, 1, 0.0, e.values, e.tensors) for n, e in enumerate(sent)]
    stacked = codec.stack([(1 / clients, r) for r in reports], plans[0], made.shapes, None)
    update = Update(0, {**stacked.values, "server_step": 1.0}, stacked.tensors)
    codec.apply(start, update, made.shapes)
    error = (start["w"] - after["w"]).square().sum() / after["w"].square().sum()
    assert float(error) == pytest.approx((math.pi / 2 - 1) / clients, rel=0.03)


def test_a_chunk_longer_than_the_model_takes_no_more_memory() -> None:
    """A server's recipe says how long a chunk is, and a client holds it."""
    positions, values = largest_of_chunks([torch.tensor([1.0, -3.0, 2.0])], 2, 10**13)
    assert (positions.tolist(), values.tolist()) == ([1, 2], [-3.0, 2.0])
