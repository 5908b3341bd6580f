"""Majority vote: the sign that most say, at a scale that the mean of coordinates bears out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.federation.messages import Report
from fullfed.methods.codecs.codec import Contribution
from fullfed.methods.majority import MajorityVote
from fullfed.sketch import SHARED, Coded, Purpose, Stream, code_of, code_rotated, rotated_numbers
from methods.tiny import (
    Federation,
    chosen,
    codec_options,
    make_fedavg,
    make_ferret,
    samples,
    setting,
    tiny_model,
    weights,
)

from fullfed.methods.codecs.sketch import Sketch  # isort: skip

STREAM = Stream(5, Purpose.CODES, 0, SHARED)
CODE = code_of(1)


def voted(rows: list[torch.Tensor]) -> Contribution:
    """What the rule makes of clients' rotated numbers."""
    total = MajorityVote().begin()
    for client, row in enumerate(rows):
        total.add(Report(0, client, 1, 1.0), Contribution({"coordinates": row}))
    return total.result()


def sent(y: torch.Tensor) -> torch.Tensor:
    """A client's coordinates as they arrive."""
    return rotated_numbers(CODE.encode(y, STREAM))


votes = st.lists(st.lists(st.sampled_from([-1.0, 1.0]), min_size=6, max_size=6), min_size=1)


@given(votes)
def test_the_sign_is_that_of_most_and_ties_go_by_turns(rows: list[list[float]]) -> None:
    result = voted([torch.tensor(row) for row in rows]).tensors["coordinates"].numpy()
    counted = np.array(rows).sum(axis=0)
    expected = np.where(counted == 0, [1, -1, 1, -1, 1, -1], np.sign(counted))
    if counted.any():
        assert (np.sign(result) == expected).all()
        assert len(set(np.abs(result))) == 1


def test_no_minority_moves_a_sign_or_the_scale_beyond_honest_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(5000, generator=generator)
    honest = [mean + 0.3 * torch.randn(5000, generator=generator) for _ in range(7)]
    rows = [sent(y) for y in honest]
    plain = voted(rows).tensors["coordinates"]
    attacked = voted([*rows, *(-1e30 * row.sign() for row in rows[:3])]).tensors["coordinates"]
    largest = max(float(row.abs().max()) for row in rows)
    assert float(attacked.abs().max()) <= largest
    sure = torch.stack(rows).sign().sum(dim=0).abs() > 3
    assert torch.equal(attacked.sign()[sure], plain.sign()[sure])


@pytest.mark.parametrize(
    ("clients", "cosine"), [(1, 1.0), (3, 0.3), (10, 0.0), (10, 0.3), (100, 0.7), (4, 1.0)]
)
def test_the_scale_is_that_of_the_mean_of_coordinates(clients: int, cosine: float) -> None:
    """In float64: the result's product with the mean is the mean's energy, and the energy that is
    said is that, too."""
    generator = torch.Generator().manual_seed(2)
    common = torch.randn(40_000, generator=generator)
    ys = [
        math.sqrt(cosine) * common
        + math.sqrt(1 - cosine) * torch.randn(40_000, generator=generator)
        for _ in range(clients)
    ]
    mean = torch.stack(ys).double().mean(dim=0)
    result = voted([sent(y) for y in ys])
    numbers = result.tensors["coordinates"]
    coded = code_rotated(numbers)
    decoded = Coded(CODE, coded["codes"], coded["scales"], 40_000, STREAM)
    assert torch.equal(rotated_numbers(decoded), numbers), "an update says the vote exactly"
    true = float(mean @ mean)
    assert float(decoded.numbers.double() @ mean) == pytest.approx(true, rel=0.08)
    said = float(numbers.double().square().sum()) - result.noise
    assert said == pytest.approx(true, rel=0.03)


@given(st.integers(1, 70_000), st.integers(0, 3))
def test_rotated_numbers_are_coded_and_read_without_loss(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    coded = CODE.encode(torch.randn(count, generator=generator), STREAM)
    numbers = rotated_numbers(coded)
    assert numbers.shape == (CODE.padded(count),)
    again = code_rotated(numbers)
    assert torch.equal(again["codes"], coded.codes)
    assert torch.equal(again["scales"], coded.scales)
    # Rotations keep lengths: before and after the numbers are as long.
    if CODE.padded(count) == count:
        norms = numbers.double().norm(), coded.numbers.double().norm()
        assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-4)


OPTIONS = {"coordinates": 200, "bits": 1, "seeds": "shared"}


def test_a_round_of_ferret_goes_where_most_clients_go() -> None:
    rule = chosen("ferret", options=OPTIONS, aggregation={"name": "majority-vote"}).aggregation
    model = tiny_model()
    data = [samples(8, seed) for seed in range(3)]
    table = setting(model, clients=3, aggregation=rule)
    federation = Federation(model, make_ferret(table, **OPTIONS), data)
    before, base = weights(federation.model), federation.worker.replica.content_hash()
    result = federation.round()
    assert result.refused == ()
    assert federation.worker.replica.content_hash() != base
    assert {name: t.dtype for name, t in result.update.tensors.items()} == {
        "codes": torch.uint8,
        "scales": torch.float32,
    }
    update = result.update.tensors
    assert update["codes"].numel() == CODE.nbytes(200), "as short as a report"
    assert before.keys() == weights(federation.model).keys()


@pytest.mark.parametrize(
    "options",
    [
        {"coordinates": 200, "seeds": "shared"},
        {"coordinates": 200, "bits": 2, "seeds": "shared"},
        {"coordinates": 200, "bits": 1, "seeds": "client"},
        {"upload": "1KiB", "seeds": "shared"},
    ],
)
def test_what_is_no_vote_is_refused_at_the_start(options: dict[str, object]) -> None:
    model = tiny_model()
    table = setting(model, clients=3, aggregation=MajorityVote())
    with pytest.raises(UserError, match="a majority vote counts one bit of each coordinate"):
        make_ferret(table, **options)
    with pytest.raises(UserError, match="a majority vote counts one bit of each coordinate"):
        make_fedavg(table)


def test_a_sketch_of_any_method_can_vote() -> None:
    model = tiny_model()
    codec = MajorityVote().coding(Sketch(0, codec_options("sketch", **OPTIONS)))
    method = make_fedavg(setting(model, clients=3, aggregation=MajorityVote(), codec=codec))
    assert Federation(model, method, [samples(8, n) for n in range(3)]).round().refused == ()
