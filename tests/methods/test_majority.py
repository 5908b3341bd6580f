"""Majority vote: the sign that most say, at a scale that the mean of coordinates bears out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.messages import Report
from fullfed.methods.codecs.codec import SCALES, SIGNS, Contribution
from fullfed.methods.majority import MajorityVote
from fullfed.sketch import (
    SHARED,
    Coded,
    Purpose,
    Stream,
    code_of,
    codes_of,
    energy_of,
    signs_of,
)
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


def voted(rows: list[tuple[Tensor, Tensor]]) -> Contribution:
    """What the rule makes of clients' signs and scales."""
    total = MajorityVote().begin()
    for client, (signs, scales) in enumerate(rows):
        total.add(Report(0, client, 1, 1.0), Contribution({SIGNS: signs, SCALES: scales}))
    return total.result()


def sent(y: Tensor) -> tuple[Tensor, Tensor]:
    """A client's coordinates as they arrive."""
    coded = CODE.encode(y, STREAM)
    return signs_of(coded), coded.scales


votes = st.lists(
    st.lists(st.sampled_from([-1, 1]), min_size=6, max_size=6), min_size=1, max_size=99
)


@given(votes, st.lists(st.integers(0, 10**6), min_size=99, max_size=99))
def test_the_sign_is_that_of_most_and_ties_go_by_turns(
    rows: list[list[int]], scales: list[int]
) -> None:
    said = [
        (torch.tensor(row, dtype=torch.int8), torch.tensor([float(scale)]))
        for row, scale in zip(rows, scales, strict=False)
    ]
    result = voted(said).tensors
    counted = np.array(rows).sum(axis=0)
    expected = np.where(counted == 0, [1, -1, 1, -1, 1, -1], np.sign(counted))
    assert (result[SIGNS].numpy() == expected).all()
    middle = sorted(scales[: len(rows)])[(len(rows) - 1) // 2]
    assert 0 <= float(result[SCALES]) <= middle * (1 + 1e-6), "at most the median client's"
    if abs(counted).min() == len(rows):
        assert float(result[SCALES]) == pytest.approx(middle), "all agree"


def test_no_minority_moves_a_sign_or_the_scale_beyond_honest_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(5000, generator=generator)
    rows = [sent(mean + 0.3 * torch.randn(5000, generator=generator)) for _ in range(7)]
    plain = voted(rows).tensors
    liars = [(-signs, torch.full_like(scales, 1e30)) for signs, scales in rows[:3]]
    attacked = voted([*rows, *liars]).tensors
    assert float(attacked[SCALES]) <= max(float(scales) for _, scales in rows)
    sure = torch.stack([signs for signs, _ in rows]).sum(dim=0).abs() > 3
    assert sure.float().mean() > 0.8
    assert torch.equal(attacked[SIGNS][sure], plain[SIGNS][sure])


@pytest.mark.parametrize(
    ("clients", "cosine"), [(1, 1.0), (3, 0.3), (10, 0.0), (10, 0.3), (100, 0.7), (4, 1.0)]
)
@pytest.mark.parametrize("count", [40_000, 70_000])
def test_the_scale_is_that_of_the_mean_of_coordinates(
    clients: int, cosine: float, count: int
) -> None:
    """In float64: the result's product with the mean is the mean's energy, and the energy that is
    said is that, too."""
    generator = torch.Generator().manual_seed(2)
    common = torch.randn(count, generator=generator)
    ys = [
        math.sqrt(cosine) * common + math.sqrt(1 - cosine) * torch.randn(count, generator=generator)
        for _ in range(clients)
    ]
    mean = torch.stack(ys).double().mean(dim=0)
    result = voted([sent(y) for y in ys])
    signs, scales = result.tensors[SIGNS], result.tensors[SCALES]
    update = Coded(CODE, codes_of(signs), scales, count, STREAM)
    true = float(mean @ mean)
    assert float(update.numbers.double() @ mean) == pytest.approx(true, rel=0.08)
    assert energy_of(scales, len(signs)) - result.noise == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 200, 256, 65_535, 65_536, 65_537, 70_000])
def test_signs_are_coded_and_read_without_loss(count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    coded = CODE.encode(torch.randn(count, generator=generator), STREAM)
    signs = signs_of(coded)
    assert signs.shape == (CODE.padded(count),)
    assert torch.equal(codes_of(signs), coded.codes)
    if CODE.padded(count) == count:  # rotations keep lengths
        energy = float(coded.numbers.double().square().sum())
        assert energy_of(coded.scales, count) == pytest.approx(energy, rel=1e-4)


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
