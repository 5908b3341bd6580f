"""Ferret: coordinates on shared random directions that add up to FedAvg's change on average."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fullfed.config_values import parse_bytes
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, encode
from fullfed.federation.wire import join
from fullfed.methods.codecs.codec import Change, Contribution, Shapes
from fullfed.methods.codecs.numbers import Numbers
from fullfed.methods.codecs.sketch import SUM_HEADER, Sketch
from fullfed.methods.codecs.sketch_options import REPORT_HEADER, SketchOptions
from fullfed.methods.codecs.split import blocks_of
from fullfed.methods.composition import Composition
from fullfed.methods.step_memory import short
from fullfed.privacy.integers import SCALAR_BYTES
from fullfed.sketch import GroupArgmax, code_of
from methods.tiny import (
    Federation,
    flat,
    make_fedavg,
    make_ferret,
    method_options,
    same,
    samples,
    setting,
    tiny_model,
    weights,
)

D = sum(p.numel() for p in tiny_model().parameters())
SHAPES = {"large": torch.Size([16, 20]), "small": torch.Size([30]), "middle": torch.Size([10, 9])}
ELEMENTS = 440


def three(**options: Any) -> Federation:
    """Three clients of the tiny model who take two steps each."""
    model = tiny_model()
    made = setting(model, clients=3, work={"batch_size": 4, "steps": 2})
    return Federation(model, make_ferret(made, **options), clients())


def clients() -> list[list[Any]]:
    return [samples(9, seed=0), samples(4, seed=1), samples(1, seed=2)]


def fedavg_of_three(**options: Any) -> Federation:
    model = tiny_model()
    made = setting(model, clients=3, work={"batch_size": 4, "steps": 2})
    return Federation(model, make_fedavg(made, **options), clients())


@pytest.mark.parametrize("seeds", ["shared", "client"])
@pytest.mark.parametrize("amount", [{"coordinates": D}, {"upload": f"{REPORT_HEADER + 4 * D} B"}])
def test_with_as_many_coordinates_as_parameters_it_is_fedavg(
    seeds: str, amount: dict[str, Any]
) -> None:
    """The sign basis is then a permutation with signs: nothing is lost but roundings."""
    ours, theirs = three(**amount, seeds=seeds, server_step=1.0), fedavg_of_three()
    for _ in range(2):
        ours.round()
        theirs.round()
        torch.testing.assert_close(
            flat(weights(ours.model)), flat(weights(theirs.model)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("basis", ["sign", "normal"])
@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_the_model_moves_by_the_step_times_the_reconstruction(basis: str, step: float) -> None:
    before = flat(weights(tiny_model()))
    once, scaled = (
        three(coordinates=60, basis=basis, server_step=1.0),
        three(coordinates=60, basis=basis, server_step=step),
    )
    once.round()
    scaled.round()
    moved = flat(weights(once.model)) - before
    torch.testing.assert_close(
        flat(weights(scaled.model)) - before, step * moved, rtol=1e-3, atol=1e-5
    )


def changes(count: int) -> list[dict[str, Tensor]]:
    """Different changes of different clients, larger in some tensors than in others."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            name: torch.randn(shape, generator=generator) * (1 + n) + 0.5
            for n, (name, shape) in enumerate(SHAPES.items())
        }
        for _ in range(count)
    ]


def one_round(seed: int, sent: list[dict[str, Tensor]], **options: Any) -> Tensor:
    """What a model of zeros becomes, in one row, when clients send these changes."""
    made = setting(torch.nn.Module(), seed=seed, clients=len(sent), weights="equal", shapes=SHAPES)
    method = make_ferret(made, server_step=1.0, **options)
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    plans = method.plans(0, None)
    reports = [
        Report(
            0,
            plan.client,
            1,
            0.0,
            {},
            method.codec.encode(Change(zeros, own), plan, SHAPES).tensors,
        )
        for plan, own in zip(plans, sent, strict=True)
    ]
    update = method.aggregate(plans, reports, None)
    method.codec.apply(zeros, update, SHAPES)
    return flat(zeros)


def mean_change(sent: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([flat(own) for own in sent]).mean(0)


@pytest.mark.parametrize("basis", ["sign", "normal"])
@pytest.mark.parametrize("seeds", ["shared", "client"])
def test_the_reconstruction_is_right_on_average(basis: str, seeds: str) -> None:
    """Its mean over n seeds is off by noise, whose energy falls as 1 / n, and by nothing else."""
    sent, count = changes(3), 400
    truth = mean_change(sent)
    rounds = torch.stack(
        [
            one_round(seed, sent, basis=basis, seeds=seeds, coordinates=ELEMENTS // 5)
            for seed in range(count)
        ]
    )
    noise = float((rounds - truth).square().sum(1).mean())
    left = float((rounds.mean(0) - truth).square().sum())
    assert left == pytest.approx(noise / count, rel=0.5)
    along = (rounds @ truth) / truth.square().sum()
    error = float(along.std()) / math.sqrt(count)
    assert float(along.mean()) == pytest.approx(1.0, abs=4 * error)
    assert error < 0.03


def test_the_sign_basis_errs_by_d_over_k_less_one() -> None:
    """ELEMENTS is divisible by K, so the expected squared error is exactly (d/K - 1) of it."""
    sent = changes(1)
    truth = mean_change(sent)
    errors = torch.stack(
        [(one_round(seed, sent, coordinates=44) - truth).square().sum() for seed in range(400)]
    )
    relative = errors / truth.square().sum()
    assert float(relative.mean()) == pytest.approx(9.0, abs=4 * float(relative.std()) / 20)


@pytest.mark.parametrize("basis", ["sign", "normal"])
def test_directions_of_their_own_average_the_noise_out(basis: str) -> None:
    """Four clients who agree: a quarter of the error, for four times the numbers."""
    sent = changes(1) * 4
    truth = mean_change(sent)

    def error(seeds: str) -> float:
        rounds = [
            one_round(seed, sent, basis=basis, seeds=seeds, coordinates=55) for seed in range(150)
        ]
        return sum(float((r - truth).square().sum()) for r in rounds)

    assert error("shared") / error("client") == pytest.approx(4.0, rel=0.15)


def test_the_update_is_k_numbers_or_k_for_each_client() -> None:
    shared = three(coordinates=60, seeds="shared").round().update
    own = three(coordinates=60, seeds="client").round().update
    assert shared.tensors["coordinates"].shape == (60,)
    assert own.tensors["coordinates"].shape == (3, 60)


def test_directions_are_fresh_in_every_round_and_for_every_seed() -> None:
    sent = changes(1)
    codec = Sketch(5, SketchOptions(coordinates=40))
    here = [torch.ones(ELEMENTS)]
    seen = {
        tuple(codec._basis(round, owner, {}, SHAPES).project(here).tolist())
        for round in range(5)
        for owner in range(5)
    }
    assert len(seen) == 25
    assert not torch.equal(one_round(1, sent, coordinates=40), one_round(2, sent, coordinates=40))


@pytest.mark.parametrize("basis", ["sign", "normal"])
@pytest.mark.parametrize("seeds", ["shared", "client"])
def test_replicas_that_apply_the_same_bytes_are_equal_bit_for_bit(basis: str, seeds: str) -> None:
    ours, other = (three(coordinates=60, basis=basis, seeds=seeds) for _ in range(2))
    for _ in range(3):
        other.worker.deliver(encode(ours.round().update))
        assert same(weights(ours.model), weights(other.model))


@pytest.mark.parametrize(
    ("basis", "upload"),
    [("sign", "160B"), ("sign", "0.18KiB"), ("normal", "380 B"), ("normal", "0.7KiB")],
)
@pytest.mark.parametrize("step", ["auto", 0.5])
def test_a_report_keeps_to_its_budget_and_uses_it(basis: str, upload: str, step: Any) -> None:
    """Also where every number in its header is as long as an honest client's can be."""
    federation = three(upload=upload, basis=basis, server_step=step)
    plan = federation.method.plans(0, None)[0]
    last = 2**32 - 1
    visit = federation.method.train(federation.model, plan, clients()[0], None)
    values: dict[str, Any] = {
        name: value if isinstance(value, bytes) else short(-1e300)
        for name, value in visit.report.values.items()
    }
    assert bool(values) == (step == "auto")
    report = replace(
        visit.report, round=last, client=last, samples=last, loss=short(0.1), values=values
    )
    budget = parse_bytes(upload)
    assert len(encode(report)) <= budget
    shapes = federation.method.setting.shapes
    assert federation.method.codec.report_bytes(plan, shapes) > budget - REPORT_HEADER - 4


MEASURED = ("energy", "gain", "gain_halfway", "trace")
ANY = st.integers(0, 2**32 - 1)


@given(ANY, ANY, ANY, st.lists(st.floats(allow_nan=False), min_size=5, max_size=5), ANY)
@example(2**32 - 1, 2**32 - 1, 2**32 - 1, [0.1] * 5, 2**30)
def test_no_report_has_a_longer_header(
    round: int, client: int, samples: int, floats: list[float], count: int
) -> None:
    """The kinds of tensors of any size, whose bytes are not there."""
    loss, *measured = (0.0 if math.isinf(number) else short(number) for number in floats)
    values = {**dict(zip(MEASURED, measured, strict=True)), "signs": bytes(range(8))}
    kinds: dict[str, Any] = {"codes": [8, count], "scales": [0, -(-count // 65536)]}
    fields = [1, round, client, samples, loss, values]
    without = len(join([*fields, kinds], {})) - 1  # the table of no tensors
    assert without + 4 <= REPORT_HEADER, "with the first scale"


def test_no_report_to_a_sum_has_a_longer_header() -> None:
    last, scalars = 2**32 - 1, 6 * SCALAR_BYTES
    kinds: dict[str, Any] = {"numbers": [8, 2**31], "scalars": [8, scalars]}
    without = len(join([1, last, last, last, short(0.1), {}, kinds], {})) - 1
    assert without + scalars == SUM_HEADER


def test_a_usual_report_fills_its_header() -> None:
    """What is set aside beyond it would be lost."""
    federation = three(upload="540B", seeds="client")
    plan = federation.method.plans(3, None)[0]
    report = federation.method.train(federation.model, plan, clients()[0], None).report
    header = len(encode(report)) - sum(t.nbytes for t in report.tensors.values())
    assert 1.5 * header > REPORT_HEADER


def test_540_bytes_buy_400_of_coordinates_of_a_real_model() -> None:
    shapes = {"all": torch.Size([134_515_008])}
    count, numbers = Sketch(0, SketchOptions(upload="540B"))._amount(shapes)
    assert (count, numbers.code) == (166_912, GroupArgmax(512))
    assert 400 <= numbers.nbytes(count) <= 540 - REPORT_HEADER + 4
    assert count * numbers.fidelity > 3400, "exact ones; 770 in protocol 1"


def test_a_budget_beyond_the_whole_change_sends_just_that() -> None:
    made = make_ferret(setting(tiny_model()), upload="1MB")
    assert made.codec.report_bytes(Plan(0, 0), made.setting.shapes) == 4 * D


def test_a_mean_that_is_coded_again_is_not_left_to_the_largest_of_many() -> None:
    """Of one client's bytes the largest of 128 say most; of a mean's energy they keep 0.06."""
    shapes = {"matrix": torch.Size([1000, 1000])}
    made = replace(setting(tiny_model()), shapes=shapes)
    codes = {}
    for seeds in ("shared", "client"):
        codec = make_ferret(made, upload="2KiB", seeds=seeds).codec
        assert isinstance(codec, Sketch)
        _, numbers = codec._amount(shapes)
        assert isinstance(numbers, Numbers)
        assert numbers.code is not None
        codes[seeds] = numbers.code
    assert codes == {"shared": GroupArgmax(1), "client": GroupArgmax(128)}


@pytest.mark.parametrize("seeds", ["shared", "client"])
@pytest.mark.parametrize("bits", [1, 3])
def test_few_bits_are_right_on_average_and_as_noisy_as_they_say(seeds: str, bits: int) -> None:
    """One client, K = d / 4: noise of the sketch, (d / K - 1) of the energy, and of the code."""
    sent, count, coordinates = changes(1), 300, ELEMENTS // 4
    truth = mean_change(sent)
    rounds = torch.stack(
        [
            one_round(seed, sent, seeds=seeds, coordinates=coordinates, bits=bits)
            for seed in range(count)
        ]
    )
    along = (rounds @ truth) / truth.square().sum()
    error = float(along.std()) / math.sqrt(count)
    assert float(along.mean()) == pytest.approx(1.0, abs=4 * error)
    noise = float((rounds - truth).square().sum(1).mean() / truth.square().sum())
    said = ELEMENTS / (coordinates * code_of(bits).fidelity) - 1
    if seeds == "shared":  # the mean is coded again
        said = (said + 1) / code_of(bits).fidelity - 1
    assert noise == pytest.approx(said, rel=0.05)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("600B", 600),
        ("2KB", 2000),
        ("32KiB", 32768),
        ("32kib", 32768),
        (" 1.5 MiB ", 1572864),
        ("3MB", 3000000),
    ],
)
def test_budgets_are_read_with_their_units(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "9" * 400, "KiB", "-1KiB", "1e3B", "32KiB or so"])
def test_a_budget_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(
        UserError, match=r"^method: '.*' is not a number of bytes such as 4096 or '32KiB'"
    ):
        method_options("ferret", upload=text)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "give coordinates or upload"),
        ({"coordinates": 5, "upload": "1KiB"}, "give coordinates or upload"),
        ({"coordinates": 0}, "coordinates is at least 1"),
        ({"coordinates": 5, "server_step": 0}, "server_step is a positive number or 'auto'"),
        ({"coordinates": 5, "server_step": math.inf}, "server_step is a positive number"),
        ({"coordinates": 5, "server_step": math.nan}, "server_step is a positive number"),
        ({"upload": "1KiB", "bits": 1}, "bits goes with coordinates"),
        ({"coordinates": 5, "bits": 5}, "bits is 1 to 4, or 32"),
        ({"coordinates": 5, "bits": 2, "basis": "normal"}, "the normal basis sends float32"),
        ({"coordinates": 5, "basis": "cosine"}, "method.basis"),
        ({"coordinates": 5, "seeds": "none"}, "method.seeds"),
        ({"coordinates": 2.5}, "method.coordinates"),
        ({"coordinates": 5, "cordinates": 5}, "there is no key 'method.cordinates'"),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        method_options("ferret", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"coordinates": D + 1}, f"method.coordinates: {D + 1} coordinates for a model of {D} par"),
        ({"upload": "124B"}, "method.upload: 124B leaves no room for a coordinate"),
        ({"coordinates": 2, "basis": "normal"}, "the normal basis needs at least one a block"),
    ],
)
def test_coordinates_that_do_not_fit_the_model_are_refused(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        make_ferret(setting(tiny_model()), **options)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20))
def test_blocks_are_runs_of_tensors_that_cover_the_model(sizes: list[int]) -> None:
    found = blocks_of({str(n): torch.Size([size]) for n, size in enumerate(sizes)})
    blocks = [block for block, _ in found]
    assert [n for block in blocks for n in block] == list(range(len(sizes)))
    assert [elements for _, elements in found] == [sum(sizes[n] for n in b) for b in blocks]
    enough = 0.9 * sorted(sizes)[len(sizes) // 2] if len(sizes) % 2 else None
    for block in blocks[:-1]:
        assert block
        if enough is not None:
            assert sum(sizes[n] for n in block) >= enough
            assert sum(sizes[n] for n in block[:-1]) < enough


SIZES = (320, 90, 30)


# Of such sizes that each tensor is a block of its own.
SPLIT = {name: torch.Size([size]) for name, size in zip("abc", SIZES, strict=True)}


def normals(coordinates: int, seed: int = 1) -> Sketch:
    return Sketch(seed, SketchOptions(coordinates=coordinates, basis="normal", seeds="shared"))


def split(coordinates: int, last: Update | None) -> list[int]:
    found = normals(coordinates).plan(0, last, SPLIT).values["allocation"]
    assert isinstance(found, list)
    return [int(k) for k in found]  # type: ignore[arg-type]


def test_before_anything_is_known_blocks_get_coordinates_by_their_size() -> None:
    assert split(44, None) == [32, 9, 3]


ENERGY = st.floats(0, 1e6)


@given(st.integers(3, 440), ENERGY, ENERGY, ENERGY)
def test_the_allocation_is_all_of_k_and_at_least_one_a_block(
    coordinates: int, a: float, b: float, c: float
) -> None:
    counts = split(coordinates, Update(0, {"energies": [a, b, c]}))
    assert sum(counts) == coordinates
    assert all(1 <= k <= d for k, d in zip(counts, SIZES, strict=True))


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3))
def test_the_allocation_follows_the_roots_of_size_times_energy(known: list[float]) -> None:
    """Large enough that no block is held at one, small enough that none is full."""
    counts = split(60, Update(0, {"energies": [*known]}))
    raw = [math.sqrt(d) * math.sqrt(e) for d, e in zip(SIZES, known, strict=True)]
    for k, weight in zip(counts, raw, strict=True):
        assert abs(k - 60 * weight / sum(raw)) < 1


def test_the_allocation_minimises_the_error_of_the_whole() -> None:
    """Brute force over every split of 60: the sum of d_l energy_l / K_l is least there."""
    known = [3.0, 20.0, 0.5]
    chosen = split(60, Update(0, {"energies": [*known]}))

    def error(counts: list[int]) -> Fraction:
        terms = zip(SIZES, known, counts, strict=True)
        return sum((Fraction(d) * Fraction(e) / k for d, e, k in terms), Fraction(0))

    best = min(
        error([a, b, 60 - a - b]) for a in range(1, 58) for b in range(max(30 - a, 1), 60 - a)
    )
    assert float(error(chosen) / best) == pytest.approx(1.0, abs=2e-3)


def energies(codec: Sketch, mean: Tensor, shapes: Shapes, last: Update | None) -> list[float]:
    """What the update of round 0 says of each block's energy."""
    plan = Plan(0, 0, codec.plan(0, None, shapes).values)
    update = codec.encode_update(Contribution({"coordinates": mean}), plan, shapes, last)
    found = update.values["energies"]
    assert isinstance(found, list)
    return [float(energy) for energy in found]  # type: ignore[arg-type]


def test_energies_are_estimated_without_bias_from_the_coordinates() -> None:
    own = {name: changes(1)[0][name] for name in ("large", "middle", "small")}
    shapes = {name: change.shape for name, change in own.items()}
    zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
    estimates = []
    for seed in range(300):
        codec = normals(60, seed)
        plan = Plan(0, 0, codec.plan(0, None, shapes).values)
        sent = codec.encode(Change(zeros, own), plan, shapes).tensors["coordinates"]
        estimates.append(energies(codec, sent.double(), shapes, None))
    for block, change in enumerate(own.values()):
        column = torch.tensor([e[block] for e in estimates])
        error = 4 * float(column.std()) / math.sqrt(300)
        # ||V' delta||**2 / (rho K)**2 has mean ||delta||**2 / (rho K): each direction is a sample.
        expected = float(change.double().square().sum())
        assert float(column.mean()) == pytest.approx(expected, abs=error)


def test_energies_remember_earlier_rounds_by_half() -> None:
    codec = normals(60)
    mean = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fresh = energies(codec, mean, SPLIT, None)
    old = [10.0, 20.0, 30.0]
    smoothed = energies(codec, mean, SPLIT, Update(0, {"energies": [*old]}))
    assert smoothed == pytest.approx(
        [(before + now) / 2 for before, now in zip(old, fresh, strict=True)]
    )


@pytest.mark.parametrize("energies", [None, [], [1.0], [1.0, 1.0, -1.0], [1e101] * 3, "111"])
def test_an_update_without_each_blocks_energy_is_refused(energies: Any) -> None:
    codec = normals(60)
    values = {"allocation": [20, 20, 20], "energies": [1.0, 0.0, 2.0]}
    update = Update(0, values, {"coordinates": torch.zeros(60)})  # type: ignore[arg-type]
    codec.check_update(update, SPLIT)
    with pytest.raises(MessageError, match="the update"):
        codec.check_update(replace(update, values={**values, "energies": energies}), SPLIT)


def test_the_split_of_the_next_round_follows_what_the_last_one_found() -> None:
    federation = three(coordinates=60, basis="normal")
    plans = federation.method.plans(0, None)
    assert len({str(plan.values) for plan in plans}) == 1
    update = federation.round().update
    assert update.values["allocation"] == plans[0].values["allocation"]
    later = federation.method.plans(1, federation.last)[0]
    assert later.values["allocation"] != plans[0].values["allocation"]
    assert sum(later.values["allocation"]) == 60  # type: ignore[arg-type]


def test_a_method_is_its_setting_and_options_and_nothing_else() -> None:
    def make() -> Composition:
        return make_ferret(setting(tiny_model()), coordinates=60)

    assert make() == make()
    assert make().plans(3, None) == make().plans(3, None)
    assert isinstance(make().plans(3, None)[0], Plan)
