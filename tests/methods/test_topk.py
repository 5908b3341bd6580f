"""Top-k: the largest numbers of a change and where they are, in the bytes that were asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fullfed.config import LocalTable
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, encode
from fullfed.federation.wire import join
from fullfed.methods import fedavg, fedcybgd
from fullfed.methods.aggregation import TrimmedMean
from fullfed.methods.codecs.codec import Change, Encoded
from fullfed.methods.codecs.positions import (
    decode_positions,
    encode_positions,
    pack_bits,
    rice_bits,
    unpack_bits,
)
from fullfed.methods.codecs.topk import (
    REPORT_HEADER,
    SparseVector,
    TopK,
    decode_entries,
    encode_entries,
    fit_levels,
    select_largest,
)
from fullfed.methods.step_memory import short
from fullfed.training.layers import layer_names
from methods.tiny import Federation, samples, setting, sgd, tiny_model, weights

SHAPES = {"matrix": torch.Size([40, 30]), "vector": torch.Size([17]), "scalar": torch.Size([])}
SIZE = sum(shape.numel() for shape in SHAPES.values())
PLAN = Plan(3, 7)
BITS = (1, 2, 4, 8, 32)


def change(seed: int = 0, state: dict[str, Tensor] | None = None) -> Change:
    """Heavy-tailed, as changes by SGD are."""
    draw = torch.Generator().manual_seed(seed)
    before = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    after = {n: b + torch.randn(b.shape, generator=draw) ** 3 / 100 for n, b in before.items()}
    return Change(before, after, state=state or {})


def flat(tensors: dict[str, Tensor]) -> NDArray[np.float64]:
    return np.concatenate([tensors[name].double().numpy().ravel() for name in SHAPES])


def difference(of: Change) -> NDArray[np.float64]:
    """after - before in float32, as a client has it."""
    return flat({name: of.after[name] - of.before[name] for name in SHAPES})


def report(sent: Encoded) -> Report:
    return Report(PLAN.round, PLAN.client, 5, 1.0, sent.values, sent.tensors)


def received(codec: TopK, sent: Encoded) -> NDArray[np.float64]:
    codec.check(report(sent), PLAN, SHAPES)
    return flat(dict(codec.decode(report(sent), PLAN, SHAPES).tensors))


# --- positions ---------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.data())
def test_positions_come_back(size: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, size - 1), max_size=200))
    positions = np.array(sorted(chosen), dtype=np.int64)
    assert np.array_equal(decode_positions(*encode_positions(positions, size), size), positions)


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(1, 10**6))
def test_any_bytes_are_increasing_positions_or_refused(high: bytes, low: bytes, size: int) -> None:
    try:
        found = decode_positions(np.frombuffer(high, np.uint8), np.frombuffer(low, np.uint8), size)
    except MessageError:
        return
    assert (np.diff(found) > 0).all()
    assert len(found) == 0 or (found[0] >= 0 and found[-1] < size)


@pytest.mark.parametrize("density", [0.2, 0.03, 0.002, 0.0005])
def test_random_positions_cost_hardly_more_than_their_entropy(density: float) -> None:
    size = 1_000_000
    draw = np.random.default_rng(0)
    positions = np.flatnonzero(draw.random(size) < density)
    high, low = encode_positions(positions, size)
    bits = 8 * (len(high) + len(low)) / len(positions)
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / density
    assert entropy <= bits + 0.02  # the draw's own density is a little off
    assert bits < entropy + 0.15
    if density < 0.01:
        assert bits == pytest.approx(math.log2(1 / density) + 1.5, abs=0.1)


@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_the_low_bits_are_the_best_for_random_positions(count: int, more: int) -> None:
    size = count + more

    def cost(r: int) -> float:
        return 1 + r + 1 / math.expm1(count / size * 2**r)

    r = rice_bits(count, size)
    assert cost(r) <= min(cost(other) for other in range(max(r - 3, 0), r + 4)) + 1e-4


@given(st.integers(1, 17), st.lists(st.integers(0, 2**17 - 1), max_size=50))
def test_packed_bits_come_back(bits: int, numbers: list[int]) -> None:
    own = np.array([n % (1 << bits) for n in numbers], dtype=np.int64)
    packed = pack_bits(own, bits)
    assert len(packed) == -(-len(own) * bits // 8)
    assert np.array_equal(unpack_bits(packed, len(own), bits), own)


# --- which numbers, and their values -----------------------------------------------------------


@given(
    st.lists(
        st.lists(
            st.one_of(
                st.sampled_from([0.0, -0.0, 1.5, -1.5, 1e-40]),
                st.floats(-(2.0**99), 2.0**99, width=32),
            ),
            min_size=1,
            max_size=30,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 60),
)
def test_the_largest_are_those_of_a_sort_and_never_zeros(
    rows: list[list[float]], count: int
) -> None:
    found = SparseVector(
        *select_largest([torch.tensor(row, dtype=torch.float32) for row in rows], count)
    )
    whole = np.concatenate([np.array(row, dtype=np.float32) for row in rows])
    order = np.argsort(-np.abs(whole), kind="stable")
    expected = sorted(int(i) for i in order[:count] if whole[i] != 0)
    assert found.positions.tolist() == expected
    assert found.values.tolist() == whole[expected].tolist()


@given(st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=60), st.integers(0, 5))
def test_levels_are_where_no_value_and_no_level_would_move(sizes: list[float], bits: int) -> None:
    """Lloyd's conditions: every value at its nearest level, and no worse than levels at random."""
    own = np.array(sizes, dtype=np.float32)
    levels, nearest = fit_levels(own, 1 << bits)
    distance = np.abs(own[:, None].astype(np.float64) - levels.astype(np.float64))
    chosen = distance[np.arange(len(own)), nearest]
    assert (chosen <= distance.min(axis=1) * (1 + 1e-5) + 1e-12).all()
    if bits == 0:
        assert levels[0] == pytest.approx(float(np.mean(own.astype(np.float64))), rel=1e-6)


def test_a_float_report_holds_the_largest_numbers_themselves() -> None:
    codec, of = TopK(count=50, bits=32), change()
    whole = difference(of)
    expected = np.zeros(SIZE)
    kept = np.argsort(-np.abs(whole), kind="stable")[:50]
    expected[kept] = whole[kept]
    assert np.array_equal(received(codec, codec.encode(of, PLAN, SHAPES)), expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_more_bits_a_value_leave_less_error(bits: int) -> None:
    of = change()
    whole = difference(of)

    def error(bits: int) -> float:
        codec = TopK(count=60, bits=bits)
        return float(np.square(received(codec, codec.encode(of, PLAN, SHAPES)) - whole).sum())

    assert error(bits) <= error(max(bits - 1, 1))
    assert error(8) < 1.001 * error(32)


@pytest.mark.parametrize("bits", [1, 2])
def test_with_few_levels_it_does_not_send_more_than_they_can_say(bits: int) -> None:
    """Room for everything is no reason to send small numbers at a large level."""
    of = change()
    whole = difference(of)
    ample = TopK(upload="100KiB", bits=bits)
    error = float(np.square(received(ample, ample.encode(of, PLAN, SHAPES)) - whole).sum())
    for count in (20, 60, 200, 600):
        fewer = TopK(count=count, bits=bits)
        other = received(fewer, fewer.encode(of, PLAN, SHAPES))
        assert error < 1.2 * float(np.square(other - whole).sum())


# --- bytes -------------------------------------------------------------------------------------


@given(st.integers(REPORT_HEADER + 60, 6000), st.sampled_from((1, 2, 3, 4, 32)), st.integers(0, 99))
def test_a_report_keeps_to_its_upload_and_uses_it(upload: int, bits: int, seed: int) -> None:
    codec = TopK(upload=upload, bits=bits)
    codec.check_parts([SHAPES])
    sent = codec.encode(change(seed), PLAN, SHAPES)
    last, loss = 2**32 - 1, short(0.1)
    assert len(encode(Report(last, last, last, loss, {}, sent.tensors))) <= upload
    body = sum(tensor.nbytes for tensor in sent.tensors.values())
    assert body <= codec.report_bytes(PLAN, SHAPES)
    if bits == 32 and body < SIZE:
        assert body > 0.9 * (upload - REPORT_HEADER) - 16


def test_a_usual_report_fills_its_header() -> None:
    """What is set aside beyond it would be lost; and none has a longer one."""
    sent = TopK(upload="1KiB").encode(change(), PLAN, SHAPES)
    report = Report(3, 7, 20, short(2.1), {}, sent.tensors)
    header = len(encode(report)) - sum(tensor.nbytes for tensor in sent.tensors.values())
    assert 1.5 * header > REPORT_HEADER
    last, large = 2**32 - 1, 2**31
    kinds: dict[str, Any] = {name: [8, large] for name in ("codes", "positions", "remainders")}
    kinds["levels"] = [0, 128]
    longest = join([1, last, last, last, short(0.1), {}, kinds], {})
    assert len(longest) - 1 == REPORT_HEADER, "but for the table of no tensors"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 30, SIZE])
def test_a_counted_report_is_no_longer_than_it_says(bits: int, count: int) -> None:
    codec = TopK(count=count, bits=bits)
    for seed in range(5):
        sent = codec.encode(change(seed), PLAN, SHAPES)
        body = sum(tensor.nbytes for tensor in sent.tensors.values())
        assert body <= codec.report_bytes(PLAN, SHAPES)


# --- error feedback ----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 0.95])
def test_what_is_not_sent_is_kept_and_added_to_the_next_change(decay: float) -> None:
    codec = TopK(count=40, bits=2, error_feedback=True, decay=decay)
    kept: dict[str, Tensor] = {}
    owed = np.zeros(SIZE)
    for seed in range(4):
        of = change(seed, kept)
        sent = codec.encode(of, PLAN, SHAPES)
        owed = decay * owed + difference(of) - received(codec, sent)
        kept = dict(sent.state)
        assert np.allclose(flat(kept), owed, atol=1e-6)


def test_without_it_nothing_is_kept() -> None:
    codec = TopK(count=40)
    assert not codec.stateful
    assert codec.encode(change(), PLAN, SHAPES).state == {}


# --- in a federation ---------------------------------------------------------------------------


def by_hand(whole: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The largest numbers' signs at their mean size, in float64."""
    kept = np.argsort(-np.abs(whole), kind="stable")[:count]
    sent = np.zeros_like(whole)
    sent[kept] = np.sign(whole[kept]) * np.abs(whole[kept]).mean()
    return sent


def trained(model: Any, batch_of: list[Any], local: LocalTable, names: list[str]) -> dict[str, Any]:
    """One step of plain torch on one batch, by the named parameters; their change in float64."""
    from fullfed.data.batches import collate
    from fullfed.training.loss import answer_loss

    parameters = dict(model.named_parameters())
    loss = answer_loss(model, collate(batch_of))
    found = torch.autograd.grad(loss, [parameters[name] for name in names])
    return {
        name: -local.learning_rate * gradient.double()
        for name, gradient in zip(names, found, strict=True)
    }


def test_fedavg_with_it_is_the_weighted_sum_of_the_clients_largest_numbers() -> None:
    """Two clients of one batch each, three rounds, error feedback: reckoned anew in float64."""
    model, local, count = tiny_model(), sgd(0.3), 25
    data = [samples(4, 0), samples(3, 1)]
    codec = {"name": "topk", "count": count, "error_feedback": True}
    made = setting(model, clients=2, local=local, codec=codec)
    federation = Federation(model, fedavg.build(made, fedavg.FedAvgOptions()), data)
    names = [name for name, _ in model.named_parameters()]
    residual = [np.zeros(sum(p.numel() for p in model.parameters())) for _ in data]
    for _ in range(3):
        start = weights(model)
        expected = np.concatenate([start[n].double().numpy().ravel() for n in names])
        for client, own in enumerate(data):
            moved = trained(model, own, local, names)
            wanted = residual[client] + np.concatenate([moved[n].numpy().ravel() for n in names])
            sent = by_hand(wanted, count)
            residual[client] = wanted - sent
            expected += len(own) / 7 * sent
        federation.round()
        now = weights(model)
        found = np.concatenate([now[n].double().numpy().ravel() for n in names])
        assert np.abs(found - expected).max() < 1e-6


def test_fedcybgd_with_it_sends_the_largest_numbers_of_a_block() -> None:
    model, local, count = tiny_model(), sgd(0.3), 9
    names = list(layer_names(model)[0])
    codec = {"name": "topk", "count": count}
    made = setting(model, clients=1, local=local, codec=codec, layers=layer_names(model))
    method = fedcybgd.build(made, fedcybgd.FedCyBGDOptions())
    federation = Federation(model, method, [samples(4)])
    before = weights(model)
    moved = trained(model, samples(4), local, names)
    sent = by_hand(np.concatenate([moved[name].numpy().ravel() for name in names]), count)
    federation.round()
    after = weights(model)
    found = np.concatenate(
        [(after[n].double() - before[n].double()).numpy().ravel() for n in names]
    )
    assert np.abs(found - sent).max() < 1e-6
    assert np.count_nonzero(found) == count
    assert all(torch.equal(after[n], before[n]) for n in before if n not in names)


def test_a_rule_that_compares_clients_gets_zeros_for_what_was_not_sent() -> None:
    codec, rule = TopK(count=300, bits=32), TrimmedMean(0.34)
    sum_, rows = rule.begin(), []
    for seed in range(3):
        sent = codec.encode(change(seed), PLAN, SHAPES)
        rows.append(received(codec, sent))
        sum_.add(report(sent), codec.decode(report(sent), PLAN, SHAPES))
    update = codec.encode_update(sum_.result(), PLAN, SHAPES, None)
    start = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    codec.apply(start, Update(3, {"server_step": 1.0}, update.tensors), SHAPES)
    assert np.allclose(flat(start), np.median(np.stack(rows), axis=0), atol=1e-7)


def sent(places: str) -> dict[str, Tensor]:
    """The tensors of an update with a report of one number at each place."""
    entries = SparseVector(np.array([3]), np.array([0.5], np.float32))
    report = encode_entries(entries, 10, 32)
    return {f"{place}/{name}": tensor for place in places for name, tensor in report.items()}


@pytest.mark.parametrize(
    ("places", "count"), [("0", 0), ("0", 2), ("0", 10**6), ("01", 1), ("1", 1), ("02", 2)]
)
def test_an_update_of_other_reports_than_weights_is_refused(places: str, count: int) -> None:
    codec, shapes = TopK(count=1, bits=32), {"w": torch.Size([10])}
    codec.check_update(Update(0, {}, {**sent("01"), "weights": torch.ones(2)}), shapes)
    spoilt = Update(0, {}, {**sent(places), "weights": torch.ones(count)})
    with pytest.raises(MessageError, match="as many reports as weights"):
        codec.check_update(spoilt, shapes)


def test_the_tensors_of_an_update_are_looked_through_once() -> None:
    """With many reports it would take as long as they are times their tensors."""

    class Counted(dict[str, Tensor]):
        times = 0

        def items(self) -> Any:
            self.times += 1
            return super().items()

    tensors = Counted(sent("0123456789"), weights=torch.full((10,), 0.1))
    update, parameter = Update(0, {"server_step": 1.0}, tensors), torch.zeros(10)
    codec = TopK(count=1, bits=32)
    codec.check_update(update, {"w": parameter.shape})
    assert tensors.times == 1
    codec.apply({"w": parameter}, update, {"w": parameter.shape})
    assert tensors.times == 2
    assert parameter.tolist() == pytest.approx([0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0])


def test_replicas_in_16_bits_and_of_any_stride_take_the_same_update() -> None:
    codec = TopK(count=100, bits=2)
    reports = [report(codec.encode(change(seed), PLAN, SHAPES)) for seed in range(2)]
    update = codec.stack(list(zip([0.25, 0.75], reports, strict=True)), PLAN, SHAPES, None)
    whole = Update(3, {"server_step": 1.0}, update.tensors)
    plain = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    codec.apply(plain, whole, SHAPES)
    expected = sum(
        share * received(codec, Encoded(tensors=r.tensors))
        for share, r in zip((0.25, 0.75), reports, strict=True)
    )
    assert np.allclose(flat(plain), expected, atol=1e-7)
    strided = {**plain, "matrix": torch.zeros(30, 40).T, "vector": torch.zeros(34)[::2]}
    for name in ("matrix", "vector"):
        strided[name].zero_()
    strided["scalar"] = torch.zeros(())
    codec.apply(strided, whole, SHAPES)
    assert np.array_equal(flat(strided), flat(plain))


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "give upload or count"),
        ({"upload": "1KiB", "count": 3}, "give upload or count"),
        ({"count": 0}, "count is at least 1"),
        ({"count": 3, "bits": 9}, "bits is 1 to 8, or 32"),
        ({"count": 3, "decay": 0.0}, "decay is a share"),
        ({"count": 3, "decay": 0.9}, "decay goes with error_feedback"),
        ({"upload": "soon"}, "not a number of bytes"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TopK(**options)


def test_what_does_not_fit_the_model_is_refused_when_it_is_built() -> None:
    with pytest.raises(UserError, match=r"codec.count: 9999 numbers of \d+ parameters"):
        TopK(count=9999).check_parts([SHAPES])
    with pytest.raises(UserError, match=r"codec.upload: 85B leaves no room"):
        TopK(upload="85B").check_parts([SHAPES])


def test_a_change_that_is_not_finite_is_refused() -> None:
    of = change()
    of.after["vector"][3] = math.inf  # type: ignore[index]
    with pytest.raises(UserError, match="not finite"):
        TopK(count=10).encode(of, PLAN, SHAPES)


@given(st.data())
def test_hostile_reports_are_refused_or_bounded(data: st.DataObject) -> None:
    """Bytes of every tensor of an honest report are changed, cut or lengthened at random."""
    bits = data.draw(st.sampled_from(BITS))
    codec = TopK(count=40, bits=bits)
    tensors = dict(codec.encode(change(), PLAN, SHAPES).tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = tensors[name].dtype
    raw = bytearray(tensors[name].numpy().tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] + data.draw(st.binary(max_size=8))
    raw = raw[: len(raw) - len(raw) % kind.itemsize]
    tensors[name] = torch.frombuffer(bytes(raw), dtype=kind) if raw else torch.empty(0, dtype=kind)
    sent = Report(PLAN.round, PLAN.client, 5, 1.0, {}, tensors)
    try:
        codec.check(sent, PLAN, SHAPES)
    except MessageError:
        return
    entries = decode_entries(tensors, SIZE)
    assert len(entries.positions) <= 40
    assert (np.abs(entries.values) <= 1e30).all()
