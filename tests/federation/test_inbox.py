"""The inbox: one valid report a client gets in, whatever arrives and in whatever order."""

from __future__ import annotations

import errno
import gc
import io
import math
import struct
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.conftest import MODEL, SHAPES, make_fedavg
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival, Inbox
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.method import Method
from fullfed.federation.server import RoundResult, run_round
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.sketch import Sketch
from fullfed.methods.composition import Composition

CLIENTS = range(5)


def honest(method: Composition, client: int, **changes: Any) -> Report:
    """What the client would report in round 0, with numbers of its own."""
    generator = torch.Generator().manual_seed(client)
    codec = method.codec
    if isinstance(codec, Dense):
        dtype = getattr(torch, codec.precision)
        tensors = {
            name: torch.randn(shape, generator=generator).to(dtype)
            for name, shape in SHAPES.items()
        }
    else:
        assert isinstance(codec, Sketch)
        _, numbers = codec._amount(method.setting.shapes)
        tensors = numbers.encode(torch.randn(8, generator=generator), 0, client)
    values = {
        "energy": 4.0 + client / 9,
        "gain": 0.5 + client / 7,
        "gain_halfway": 0.5 - client / 5,
        "trace": 11.0 - client / 3,
        "signs": bytes([client * 0x11]) * 8,
    }
    said = {name: values[name] for name in values if name in method.step.report_values}
    report = Report(0, client, 3 + client, 2.0 + client / 10, said, tensors)
    return replace(report, **changes)


class Post:
    """An engine that brings what it was given, whatever the plans."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self.arrivals = arrivals

    def exchange(self, plans: object) -> Any:
        yield from self.arrivals


def arrival(method: Composition, client: int, **changes: Any) -> Arrival:
    return Arrival(client, encode(honest(method, client, **changes)))


def aggregated(method: Method, arrivals: Sequence[Arrival]) -> RoundResult:
    return run_round(method, Post(arrivals), 0, None, MODEL)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(order=st.permutations(CLIENTS))
def test_the_update_is_the_same_bytes_whatever_order_reports_arrive_in(
    method: Composition, order: list[int]
) -> None:
    sent = {client: arrival(method, client) for client in CLIENTS}
    in_order = aggregated(method, [sent[client] for client in CLIENTS])
    shuffled = aggregated(method, [sent[client] for client in order])
    assert encode(shuffled.update) == encode(in_order.update)
    assert shuffled.aggregated == in_order.aggregated == tuple(CLIENTS)
    assert shuffled.loss == in_order.loss == pytest.approx(2.2)
    assert shuffled.up == in_order.up


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(
    order=st.permutations([*CLIENTS, *CLIENTS, 9]),
    silent=st.sets(st.sampled_from(CLIENTS), max_size=4),
)
def test_the_update_is_that_of_the_good_reports_alone(
    method: Composition, order: list[int], silent: set[int]
) -> None:
    """Strangers, second reports and failures change nothing, wherever in the order they come."""
    good = [client for client in CLIENTS if client not in silent]
    first: set[int] = set()
    arrivals = []
    for client in order:
        if client in silent:
            arrivals.append(Arrival(client, None, failure="out of memory"))
        elif client in first or client == 9:
            arrivals.append(arrival(method, client, samples=999))
        else:
            arrivals.append(arrival(method, client))
        first.add(client)
    result = aggregated(method, arrivals)
    alone = aggregated(method, [arrival(method, client) for client in good])
    assert encode(result.update) == encode(alone.update)
    assert result.aggregated == tuple(good)
    assert len(result.refused) == len(order) - len(good)


def test_aggregating_leaves_the_reports_as_they_are(method: Composition) -> None:
    reports = [honest(method, client) for client in CLIENTS]
    before = [encode(report) for report in reports]
    first = method.aggregate(method.plans(0, None), reports, None)
    again = method.aggregate(method.plans(0, None), reports, None)
    assert [encode(report) for report in reports] == before
    assert encode(first) == encode(again)


def refusal(method: Composition, arrivals: Sequence[Arrival]) -> str:
    """The one reason given, where client 4 has sent an honest report as well."""
    inbox = Inbox(method, method.plans(0, None), MODEL)
    let_in = list(inbox.in_client_order([*arrivals, arrival(method, 4)]))
    assert [report.client for report in let_in][-1] == 4
    ((_, reason),) = inbox.refused
    return reason


def test_a_client_that_was_not_asked_is_refused(method: Composition) -> None:
    assert refusal(method, [arrival(method, 6)]) == "the client is not in this round's cohort"


def test_a_second_report_is_refused(method: Composition) -> None:
    twice = [arrival(method, 2), arrival(method, 2)]
    assert refusal(method, twice) == "the client has answered this plan already"


def test_a_report_after_a_refused_one_is_refused(method: Composition) -> None:
    inbox = Inbox(method, method.plans(0, None), MODEL)
    assert not list(inbox.in_client_order([Arrival(2, b"junk"), arrival(method, 2)]))
    assert [client for client, _ in inbox.refused] == [2, 2]


def test_a_report_for_another_round_is_refused(method: Composition) -> None:
    late = refusal(method, [arrival(method, 2, round=3)])
    assert late == "the report is for round 3, not 0"


def test_a_report_in_anothers_name_is_refused(method: Composition) -> None:
    forged = Arrival(2, encode(honest(method, 3)))
    assert refusal(method, [forged]) == "the report claims to be client 3's"


def test_a_report_without_samples_is_refused(method: Composition) -> None:
    idle = refusal(method, [arrival(method, 2, samples=0)])
    assert idle == "the report says that no sample was used"


def test_a_failed_visit_is_refused_with_its_reason(method: Composition) -> None:
    failed = Arrival(2, None, failure="the training loss is not finite")
    assert refusal(method, [failed]) == "the training loss is not finite"


def test_a_message_that_is_not_a_report_is_refused(method: Composition) -> None:
    plan = Arrival(2, encode(Plan(0, 2)))
    assert refusal(method, [plan]) == "the message is not a report"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(method: Composition, bad: float) -> None:
    report = honest(method, 2)
    name, tensor = next((n, t) for n, t in report.tensors.items() if t.is_floating_point())
    tensor.view(-1)[-1] = bad
    reason = refusal(method, [Arrival(2, encode(report))])
    assert reason == f"the message's tensor {name!r} holds a number that is not finite"


def test_a_report_longer_than_an_honest_one_can_be_is_refused(method: Composition) -> None:
    report = honest(method, 2)
    values = {**report.values, "novel": "It was a dark night. " * 1000}
    reason = refusal(method, [Arrival(2, encode(replace(report, values=values)))])
    assert "more than the" in reason


def test_a_header_that_claims_a_gigabyte_is_refused(method: Composition) -> None:
    claim = Arrival(2, b"\x02\xce" + struct.pack(">I", 1 << 30) + b"\x80")
    assert refusal(method, [claim]) == "the message is shorter than its header says"


def test_tensors_that_do_not_fit_the_plan_are_refused(method: Composition) -> None:
    report = honest(method, 2)
    (name, tensor), *others = report.tensors.items()
    rest = dict(others)
    for wrong in (
        {},
        {**report.tensors, "more": torch.zeros(1)},
        {"other": tensor, **rest},
        {name: tensor[:-1].clone(), **rest},
        {name: tensor.unsqueeze(0), **rest},
        {name: tensor.double(), **rest},
        {name: tensor.to(torch.int8), **rest},
    ):
        reason = refusal(method, [Arrival(2, encode(replace(report, tensors=wrong)))])
        assert reason.startswith("the report")
        assert "\n" not in reason


@pytest.mark.parametrize("name", ["energy", "gain", "gain_halfway", "trace"])
@pytest.mark.parametrize("value", [True, "3", [1.0]])
def test_what_the_automatic_step_needs_is_asked_for(
    ferret: Composition, name: str, value: Any
) -> None:
    values = {**honest(ferret, 2).values, name: value}
    reason = refusal(ferret, [arrival(ferret, 2, values=values)])
    assert reason == f"the report's value {name!r} is not a finite number"


@pytest.mark.parametrize(
    "signs", [True, 7, b"", b"1234567", b"123456789", "12345678", "0123456789abcdef", [1] * 8]
)
def test_signs_on_common_directions_are_asked_for(ferret: Composition, signs: Any) -> None:
    values = {**honest(ferret, 2).values, "signs": signs}
    reason = refusal(ferret, [arrival(ferret, 2, values=values)])
    assert reason == "the report lacks the 64 signs of its change"


HUGE = st.sampled_from([-1.7e308, -1e200, -1.0, -5e-324, 0.0, 5e-324, 1e-30, 1.0, 1e200, 1.7e308])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(measured=st.lists(st.tuples(HUGE, HUGE, HUGE, HUGE), min_size=1, max_size=2))
def test_no_measurements_whatever_make_a_step_that_is_no_step(
    ferret: Composition, measured: list[tuple[float, float, float, float]]
) -> None:
    arrivals = [arrival(ferret, 4)]
    for client, numbers in enumerate(measured):
        names = ("energy", "gain", "gain_halfway", "trace")
        values = {**dict(zip(names, numbers, strict=True)), "signs": bytes(8)}
        arrivals.append(arrival(ferret, client, values=values))
    update = aggregated(ferret, arrivals).update
    assert 0 < update.values["server_step"] <= 1  # type: ignore[operator]
    assert decode(encode(update), Update).values == update.values


def largest(name: str, dtype: torch.dtype) -> float:
    """A scale that is larger is refused."""
    return 1e30 if name == "scales" else torch.finfo(dtype).max


def extreme(method: Composition) -> list[Arrival]:
    """Two reports of the largest numbers there are, with opposite signs."""
    arrivals = []
    for client, sign in ((0, 1), (1, -1)):
        report = honest(method, client)
        tensors = {
            name: torch.full_like(tensor, sign * largest(name, tensor.dtype))
            for name, tensor in report.tensors.items()
            if name != "codes"
        }
        if "codes" in report.tensors:
            codes = torch.full_like(report.tensors["codes"], 255 if sign > 0 else 0)
            tensors = {"codes": codes, "scales": tensors["scales"].abs()}
        arrivals.append(Arrival(client, encode(replace(report, tensors=tensors))))
    return arrivals


def test_no_reports_whatever_make_an_update_that_is_not_finite(method: Composition) -> None:
    """In the log it could never be taken back."""
    try:
        update = aggregated(method, extreme(method)).update
    except UserError:
        return
    assert encode(decode(encode(update), Update)) == encode(update)


def test_weights_beyond_any_model_are_not_averaged(fedavg: Composition) -> None:
    with pytest.raises(UserError, match=r"^round 0: no client .*\(client 0: the report's change"):
        aggregated(fedavg, extreme(fedavg))


def test_a_round_in_which_nobody_could_work_names_the_first_clients_reason(
    method: Composition,
) -> None:
    """Whoever was first to answer: a simulation in several processes is to say what one says."""
    arrivals = [Arrival(3, b"junk"), Arrival(1, None, failure="out of memory")]
    for order in (arrivals, arrivals[::-1]):
        with pytest.raises(UserError, match=r"round 0: no client .*\(client 1: out of memory\)"):
            aggregated(method, order)


def test_a_round_in_which_nobody_answered_says_so(method: Composition) -> None:
    with pytest.raises(UserError, match="round 0: no client answered"):
        aggregated(method, [])


def test_the_account_counts_every_byte_that_was_sent_and_received(method: Composition) -> None:
    arrivals = [
        replace(arrival(method, 0), down=70),
        arrival(method, 0),
        Arrival(1, b"junk", train_seconds=2.0, encode_seconds=0.5, down=5),
        Arrival(2, None, failure="out of memory", train_seconds=1.0, down=30),
        Arrival(9, b"from a stranger"),
    ]
    result = aggregated(method, arrivals)
    once = len(encode(honest(method, 0)))
    assert result.up == {0: 2 * once, 1: 4, 2: 0, 9: 15}
    assert result.down == dict.fromkeys(CLIENTS, 0) | {0: 70, 1: 5, 2: 30}
    assert (result.train_seconds, result.encode_seconds) == (3.0, 0.5)
    assert [client for client, _ in result.refused] == [0, 1, 2, 9]


def test_every_arrival_is_shown_as_it_comes(method: Composition) -> None:
    arrivals = [arrival(method, client) for client in (3, 0, 4)]
    seen: list[Arrival] = []
    run_round(method, Post(arrivals), 0, None, MODEL, seen.append)
    assert seen == arrivals


def test_reports_wait_as_bytes_in_memory_or_in_a_file_and_are_decoded_one_at_a_time(
    fedavg: Composition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the cohort and in whatever order it answers."""
    monkeypatch.setattr("fullfed.federation.inbox._IN_MEMORY", 500)
    opened: list[str] = []
    spool = tempfile.SpooledTemporaryFile

    def watched(size: int, dir: str) -> Any:
        opened.append(dir)
        return spool(size, dir=dir)

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", watched)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    inbox = Inbox(fedavg, fedavg.plans(0, None), MODEL, folder=tmp_path)
    sent = {client: arrival(fedavg, client) for client in (3, 0, 4, 1, 2)}
    for report in inbox.in_client_order(sent.values()):
        assert encode(report) == sent[report.client].payload
        gc.collect()
        assert not [t for t in alive if t not in report.tensors.values()]
        alive.update(report.tensors.values())
        del report
    assert opened == [str(tmp_path)]
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_ends_the_round_in_one_sentence(
    fedavg: Composition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def __init__(self, size: int, dir: Path) -> None:
            super().__init__()

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", Full)
    inbox = Inbox(fedavg, fedavg.plans(0, None), MODEL, folder=tmp_path)
    with pytest.raises(UserError, match=r"cannot be put here \(No space left on device\)"):
        list(inbox.in_client_order([arrival(fedavg, 0)]))


# Numbers that a client may say, and what they count for


@pytest.mark.parametrize("loss", [-0.01, -5.0, 1001.0, 1.7e308])
def test_a_loss_that_no_model_has_is_refused(method: Composition, loss: float) -> None:
    reason = refusal(method, [arrival(method, 2, loss=loss)])
    assert reason == f"the report's loss of {loss:.4g} nats a token is not between 0 and 1000"


def test_a_loss_of_zero_that_rounding_makes_negative_is_let_in(method: Composition) -> None:
    result = aggregated(method, [arrival(method, 2, loss=-1e-6)])
    assert result.aggregated == (2,)


def test_a_negative_energy_is_refused(ferret: Composition) -> None:
    values = {**honest(ferret, 2).values, "energy": -1e-9}
    reason = refusal(ferret, [arrival(ferret, 2, values=values)])
    assert reason == "the report's value 'energy' is negative"


def plain(client: int, samples: int, value: float) -> Arrival:
    tensors = {n: torch.full(s, value) for n, s in SHAPES.items()}
    return Arrival(client, encode(Report(0, client, samples, 1.0, {}, tensors)))


def test_samples_beyond_what_the_cohort_has_count_as_four_times_its_median(
    fedavg: Composition,
) -> None:
    """Weights 1, 1 and -1 of 10, 30 and 2**32 - 1 samples: the last counts as 4 * 30."""
    arrivals = [plain(0, 10, 1.0), plain(1, 30, 1.0), plain(2, 2**32 - 1, -1.0)]
    result = aggregated(fedavg, arrivals)
    expected = (10 * 1.0 + 30 * 1.0 - 120 * 1.0) / 160
    for tensor in result.update.tensors.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))
    assert result.limited == {2: (2**32 - 1, 120)}


def test_samples_count_as_declared_where_they_are(fedavg: Composition) -> None:
    """Client 1 has 900 and says so; client 2 has 20 and claims 900; client 0 claims less."""
    arrivals = [plain(0, 10, 1.0), plain(1, 900, 0.5), plain(2, 900, -1.0)]
    declared = {0: 100, 1: 900, 2: 20}
    result = run_round(fedavg, Post(arrivals), 0, None, MODEL, samples=declared)
    expected = (10 * 1.0 + 900 * 0.5 - 20 * 1.0) / 930
    for tensor in result.update.tensors.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))
    assert result.limited == {2: (900, 20)}


# Changes that would make the model useless


def huge(method: Composition, client: int, factor: float) -> Arrival:
    """The client's honest report, its change so many times as large."""
    report = honest(method, client)
    start = dict(MODEL.named_parameters())
    weights = isinstance(method.codec, Dense) and method.codec.sends_weights
    tensors = {}
    for name, tensor in report.tensors.items():
        if name == "codes":
            tensors[name] = tensor
        elif weights:
            tensors[name] = start[name].detach() + (tensor - start[name].detach()) * factor
        else:
            tensors[name] = tensor * factor
    return Arrival(client, encode(replace(report, tensors=tensors)))


@pytest.mark.parametrize("factor", [-1e20, 1e20, 100.0])
@pytest.mark.parametrize("liar", CLIENTS)
def test_a_change_larger_than_the_model_is_refused_by_its_clients_number(
    method: Composition, liar: int, factor: float
) -> None:
    """Whoever else is in the round; the update is that of the others."""
    arrivals = {c: arrival(method, c) for c in CLIENTS} | {liar: huge(method, liar, factor)}
    if method.codec.directions and "codes" in honest(method, 0).tensors:
        factor = abs(factor)
        arrivals[liar] = huge(method, liar, factor)  # a scale is not negative
    result = aggregated(method, list(arrivals.values()))
    others = [arrival(method, c) for c in CLIENTS if c != liar]
    assert encode(result.update) == encode(aggregated(method, others).update)
    [(client, reason)] = result.refused
    assert client == liar
    assert reason.startswith("the report's change has a norm of ")


@pytest.mark.parametrize("ratio", [99.0, 101.0])
def test_a_change_far_beyond_the_cohorts_median_is_refused(ratio: float) -> None:
    """Norms 1/64, 1/32, 1/16 and ``ratio`` times 1/32, the lower median of the four."""
    method, [start] = make_fedavg("bfloat16"), [torch.zeros(4, 5)]
    start[0, 0] = 1.0
    arrivals = []
    for client, size in enumerate([1 / 64, 1 / 32, 1 / 16, ratio / 32]):
        tensors = {
            "matrix": (start * size).bfloat16(),
            "vector": torch.zeros(3, dtype=torch.bfloat16),
        }
        arrivals.append(Arrival(client, encode(Report(0, client, 1, 1.0, {}, tensors))))
    result = aggregated(method, arrivals)
    if ratio < 100:
        assert result.refused == ()
    else:
        [(client, reason)] = result.refused
        assert client == 3
        assert reason.startswith("the report's change is 101 times as large as the median")


def test_where_half_the_cohort_changes_nothing_others_may(fedavg: Composition) -> None:
    still = [huge(fedavg, client, 0.0) for client in range(3)]
    result = aggregated(fedavg, [*still, huge(fedavg, 3, 0.5), huge(fedavg, 4, 0.001)])
    assert result.refused == ()


def test_a_quorum_counts_those_who_are_let_in_at_last(fedavg: Composition) -> None:
    """Three of five, of which one is far from the others."""
    arrivals = [huge(fedavg, 0, 1e-3), huge(fedavg, 1, 1e-3), huge(fedavg, 2, 1.0)]
    with pytest.raises(UserError, match="round 0: only 2 clients sent a usable report"):
        run_round(fedavg, Post(arrivals), 0, None, MODEL, quorum=0.6)
    assert len(run_round(fedavg, Post(arrivals), 0, None, MODEL, quorum=0.4).aggregated) == 2


def test_the_update_takes_the_round_of_the_plans(method: Composition) -> None:
    first = aggregated(method, [arrival(method, client) for client in CLIENTS]).update
    last = replace(first, round=3)
    arrivals = [arrival(method, client, round=4) for client in CLIENTS]
    assert run_round(method, Post(arrivals), 4, last, MODEL).update.round == 4


@pytest.mark.parametrize(("samples", "refused"), [(8, [2]), (2400, [])])
def test_who_takes_more_steps_may_go_further(samples: int, refused: list[int]) -> None:
    """By epochs: 4 samples make two steps of two, 2,400 make 1,200; 400 times the change."""
    method = make_fedavg("bfloat16")
    local = method.setting.local.model_copy(update={"steps": None, "epochs": 1})
    method = replace(method, setting=replace(method.setting, local=local))
    start = torch.zeros(4, 5)
    start[0, 0] = 1.0
    arrivals = []
    for client, (size, own) in enumerate([(1 / 256, 4), (1 / 256, 4), (400 / 256, samples)]):
        tensors = {
            "matrix": (start * size).bfloat16(),
            "vector": torch.zeros(3, dtype=torch.bfloat16),
        }
        arrivals.append(Arrival(client, encode(Report(0, client, own, 1.0, {}, tensors))))
    known = {0: 4, 1: 4, 2: samples}
    inbox = Inbox(method, method.plans(0, None), MODEL, known)
    assert len(list(inbox.in_client_order(arrivals))) == 3 - len(refused)
    assert [client for client, _ in inbox.refused] == refused
