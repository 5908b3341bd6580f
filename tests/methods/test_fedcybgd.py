"""FedCyBGD is block coordinate descent whose steps are other clients'; nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import MemoryTable
from fullfed.data.batches import collate, training_batches
from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival, Inbox
from fullfed.federation.messages import MessageError, Plan, Report, Update, decode, encode
from fullfed.methods.aggregation import TrimmedMean
from fullfed.methods.composition import Composition
from fullfed.methods.fedcybgd import FedCyBGDOptions, build
from fullfed.sketch import Purpose, Stream
from fullfed.training.layers import layer_names
from fullfed.training.loss import answer_loss
from methods.tiny import (
    Federation,
    adamw,
    codec_options,
    flat,
    method_options,
    same,
    samples,
    setting,
    sgd,
    weights,
)
from training.architectures import CAUSAL, make

ADAM = adamw(0.01)
CLIENTS = 6


def dense(precision: str = "float32", error_feedback: bool = True) -> dict[str, Any]:
    return {"name": "dense", "precision": precision, "error_feedback": error_feedback}


def sketch(coordinates: int, **options: Any) -> dict[str, Any]:
    """The codec that makes FedCyBGD Cyclic Ferret."""
    return {"name": "sketch", "coordinates": coordinates, **options}


def method_for(
    model: PreTrainedModel, options: FedCyBGDOptions | None = None, **changes: Any
) -> Composition:
    known: dict[str, Any] = {
        "clients": CLIENTS,
        "cohort_size": 1,
        "local": ADAM,
        "work": {"batch_size": 4, "steps": 1},
        "layers": layer_names(model),
        "codec": dense(),
    }
    return build(setting(model, **(known | changes)), options or FedCyBGDOptions())


KEPT = {"batch_size": 4, "steps": 1, "optimizer_state": "kept"}


def data(size: int = 4) -> list[list[Any]]:
    return [samples(size, seed) for seed in range(CLIENTS)]


def federation(
    options: FedCyBGDOptions | None = None, name: str = "llama", **changes: Any
) -> Federation:
    model = make(name).to(changes.pop("dtype", torch.float32))
    return Federation(model, method_for(model, options, **changes), data())


def by_hand(name: str, cycles: int) -> dict[str, Tensor]:
    """Block coordinate descent in one process: Adam made anew for each block, one batch each."""
    model = make(name)
    layers = layer_names(model)
    parameters = dict(model.named_parameters())
    for visit in range(cycles * CLIENTS):
        block = [parameters[n] for n in layers[visit % CLIENTS % len(layers)]]
        adam = torch.optim.Adam(block, lr=0.01)
        answer_loss(model, collate(samples(4, visit % CLIENTS))).backward()
        adam.step()
        model.zero_grad()
    return weights(model)


@pytest.mark.parametrize("name", CAUSAL)
def test_clients_with_consecutive_batches_are_block_coordinate_adam(name: str) -> None:
    """To the last bit, but for the order of a batch's rows, which has no part in the mean."""
    ours = federation(name=name, local=adamw(0.01, weight_decay=0.0))
    for _ in range(2 * CLIENTS):
        ours.round()
    theirs = by_hand(name, 2)
    inside = {n for layer in layer_names(ours.model) for n in layer if not n.endswith("bias")}
    for n, tensor in weights(ours.model).items():
        if n in inside:  # Adam turns a bias's gradient of rounding errors into whole steps
            torch.testing.assert_close(tensor, theirs[n], rtol=1e-3, atol=1e-4)


def test_with_the_same_order_of_rows_it_is_so_to_the_last_bit() -> None:
    ours = federation(work={"batch_size": 2, "epochs": 2})
    alone = make("llama")
    layers, parameters = layer_names(alone), dict(alone.named_parameters())
    for round in range(2 * CLIENTS):
        ours.round()
        client = round % CLIENTS
        adam = torch.optim.AdamW(
            [parameters[n] for n in layers[client % 3]], 0.01, weight_decay=0.0
        )
        stream = Stream(5, Purpose.BATCHES, round, client)
        for batch in training_batches(data()[client], 2, 4, stream):
            answer_loss(alone, batch).backward()
            adam.step()
            alone.zero_grad()
        assert same(weights(ours.model), weights(alone))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_only_the_blocks_of_a_round_change(precision: Any) -> None:
    ours = federation(codec=dense(precision), cohort_size=2)
    for round in range(3):
        before = weights(ours.model)
        ours.round()
        visited = [int(p.values["block"]) for p in ours.method.plans(round, None)]  # type: ignore[arg-type]
        inside = {n for b in visited for n in layer_names(ours.model)[b]}
        after = weights(ours.model)
        changed = {n for n in after if not torch.equal(before[n], after[n])}
        assert changed <= inside
        assert len(changed) > len(inside) / 2


def test_every_block_is_trained_in_a_cycle_and_the_rest_with_outer() -> None:
    for outer in (False, True):
        ours = federation(FedCyBGDOptions(outer=outer))
        before = weights(ours.model)
        for _ in range(CLIENTS):
            ours.round()
        after = weights(ours.model)
        changed = {n for n in after if not torch.equal(before[n], after[n])}
        inside = {n for layer in layer_names(ours.model) for n in layer}
        assert changed == (set(before) if outer else inside)


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_uploaded_bytes_are_the_blocks(precision: Any, size: int) -> None:
    ours = federation(codec=dense(precision))
    plan = ours.method.plans(0, None)[0]
    payload = ours.worker.visit(encode(plan)).payload
    assert payload is not None
    names = layer_names(ours.model)[0]
    elements = sum(dict(ours.model.named_parameters())[n].numel() for n in names)
    report = decode(payload, Report)
    scales = sum(t.nbytes for n, t in report.tensors.items() if n.endswith("/scale"))
    assert sum(t.nbytes for t in report.tensors.values()) - scales == size * elements
    assert len(payload) <= ours.method.report_limit(plan)
    assert (scales > 0) == (precision == "int8")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("together", [1, 2])
def test_replicas_that_apply_the_same_bytes_are_equal_bit_for_bit(
    precision: Any, dtype: torch.dtype, together: int
) -> None:
    options = FedCyBGDOptions(clients_per_block=together, order="rotating")
    known = {"codec": dense(precision), "cohort_size": 2 * together}
    ours, other = (federation(options, dtype=dtype, **known) for _ in range(2))
    for _ in range(4):
        result = ours.round()
        other.worker.deliver(encode(result.update))
        assert same(weights(ours.model), weights(other.model))


ANY_CODEC: list[dict[str, Any]] = [
    dense("int8"),
    sketch(50),
    sketch(50, bits=1),
    sketch(50, bits=3, seeds="shared"),
    {"name": "sketch", "upload": "376B"},
    {"name": "topk", "count": 20, "error_feedback": True},
    {"name": "topk", "upload": "405B", "error_feedback": True},
]


@pytest.mark.parametrize("optimizer_state", ["reset", "kept"])
@pytest.mark.parametrize("codec", ANY_CODEC, ids=str)
def test_any_codec_sends_several_blocks_at_once(
    codec: dict[str, Any], optimizer_state: Any
) -> None:
    """Groups of two on two blocks; replicas that apply the same bytes are equal."""
    options = FedCyBGDOptions(server_step=0.5, clients_per_block=2, order="rotating")
    work = {"batch_size": 4, "steps": 1, "optimizer_state": optimizer_state}
    changes = {"codec": codec, "cohort_size": 4, "work": work}
    ours, other = (federation(options, **changes) for _ in range(2))
    for round in range(4):
        before, layers = weights(ours.model), layer_names(ours.model)
        blocks = {p.values["block"] for p in ours.method.plans(round, ours.last)}
        result = ours.round()
        assert not result.refused
        assert result.update.values["blocks"] == sorted(blocks)  # type: ignore[type-var]
        after = weights(ours.model)
        changed = {n for n in after if not torch.equal(before[n], after[n])}
        assert changed <= {n for b in blocks for n in layers[b]}  # type: ignore[index]
        assert all(changed & set(layers[b]) for b in blocks)  # type: ignore[index]
        other.worker.deliver(encode(result.update))
        assert same(after, weights(other.model))


@pytest.mark.parametrize(
    "codec", [dense("int8"), sketch(50, seeds="shared"), {"name": "topk", "count": 50}], ids=str
)
def test_a_block_can_be_trimmed_where_enough_train_it(codec: dict[str, Any]) -> None:
    options = FedCyBGDOptions(server_step=0.5, clients_per_block=3, order="rotating")
    ours = federation(options, codec=codec, cohort_size=6, aggregation=TrimmedMean(0.34))
    before = weights(ours.model)
    for _ in range(3):
        assert len(ours.round().aggregated) == 6
    assert not same(before, weights(ours.model))


def test_one_clients_bytes_are_the_updates() -> None:
    ours = federation(codec=dense("int8"))
    plan = ours.method.plans(0, None)[0]
    report = decode(ours.worker.visit(encode(plan)).payload or b"", Report)
    update = ours.round().update
    assert update.values["blocks"] == [0]
    assert same({f"0/{name}": t for name, t in report.tensors.items()}, dict(update.tensors))


def test_clients_of_a_block_are_averaged_by_samples() -> None:
    options = FedCyBGDOptions(clients_per_block=2)
    model = make("llama")
    uneven = [samples(1 + n, n) for n in range(CLIENTS)]
    ours = Federation(model, method_for(model, options, cohort_size=2), uneven)
    first, second = ours.method.plans(0, None)
    assert (first.client, second.client) == (0, 3)
    reports = [decode(ours.worker.visit(encode(p)).payload or b"", Report) for p in (first, second)]
    ours.round()
    for name in layer_names(model)[0]:
        a, b = (report.tensors[name].double() for report in reports)
        expected = (1 * a + 4 * b) / 5
        torch.testing.assert_close(
            dict(model.named_parameters())[name].detach().double(), expected, rtol=1e-5, atol=1e-7
        )


def test_blocks_at_once_are_trained_from_the_same_model() -> None:
    """The disjoint updates of a group are those of its clients alone."""
    group, start = federation(cohort_size=3), weights(make("llama"))
    group.round()
    for client in range(3):
        model = make("llama")
        alone = Federation(model, method_for(model), data())
        plan = Plan(0, client, {"block": client})
        report = decode(alone.worker.visit(encode(plan)).payload or b"", Report)
        for name, tensor in report.tensors.items():
            assert torch.equal(weights(group.model)[name], tensor)
            assert not torch.equal(start[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_with_error_feedback_nothing_is_lost(precision: Any, dtype: torch.dtype) -> None:
    """What is sent and what the client keeps are together the change it made."""
    ours = federation(codec=dense(precision), dtype=dtype)
    before = {n: p.clone() for n, p in ours.worker.replica.state().items()}
    exact = federation(dtype=dtype)
    plan = ours.method.plans(0, None)[0]
    wanted = decode(exact.worker.visit(encode(plan)).payload or b"", Report).tensors
    sent = ours.round().update.tensors
    kept = ours.worker._states.load(0, "block-0", 1)
    for name, value in wanted.items():
        rows = sent.get(f"0/{name}/scale", torch.ones(1))
        scale = rows.reshape(-1, *[1] * (value.ndim - 1))
        change = value - before[name]
        torch.testing.assert_close(
            sent[f"0/{name}"].float() * scale + kept["codec/" + name], change, rtol=1e-5, atol=1e-8
        )


def test_rounding_errors_do_not_add_up_with_error_feedback() -> None:
    def far(codec: dict[str, Any]) -> Tensor:
        ours = federation(FedCyBGDOptions(blocks=1), local=sgd(0.01), codec=codec)
        for _ in range(6 * CLIENTS):
            ours.round()
        return flat(weights(ours.model))

    exact = far(dense())
    with_feedback, without = (
        float((far(dense("int8", feedback)) - exact).norm()) for feedback in (True, False)
    )
    assert with_feedback < without / 1.5


def test_kept_adam_goes_on_where_the_clients_last_visit_ended() -> None:
    """With one client and one block: Adam without a break, over data that return."""
    options = FedCyBGDOptions(blocks=1)
    model = make("llama")
    ours = Federation(model, method_for(model, options, clients=1, work=KEPT), data()[:1])
    alone = make("llama")
    inside = [p for n, p in alone.named_parameters() if n.startswith("model.layers")]
    adam = torch.optim.AdamW(inside, lr=0.01, weight_decay=0.0)
    for round in range(4):
        ours.round()
        stream = Stream(5, Purpose.BATCHES, round, 0)
        for batch in training_batches(data()[0], 4, 1, stream):
            answer_loss(alone, batch).backward()
            adam.step()
            alone.zero_grad()
        assert same(weights(model), weights(alone))


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_visit_that_is_repeated_goes_on_from_the_same_state(in_backward: bool) -> None:
    """Adam's and the residual; also where a first try in the same process was lost."""
    memory = MemoryTable(optimizer_in_backward=in_backward)
    known = {"clients": 1, "codec": dense("int8"), "memory": memory, "work": KEPT}
    ours = federation(FedCyBGDOptions(blocks=1), **known)
    for round in range(3):
        plan = encode(ours.method.plans(round, ours.last)[0])
        first, second = (ours.worker.visit(plan).payload for _ in range(2))
        assert first is not None
        assert first == second
        ours.round()


def failing(ours: Federation, clients: set[int]) -> Any:
    class Engine(Simulation):
        def exchange(self, plans: Any) -> Any:
            for client in sorted(plans):
                if client in clients:
                    yield Arrival(client, None, failure="gone")
                else:
                    yield ours.worker.visit(plans[client])

    return Engine(ours.worker)


def rounds(ours: Federation, count: int, clients: set[int]) -> list[Update]:
    from fullfed.federation.server import run_round

    updates = []
    for _ in range(count):
        number = ours.worker.replica.version
        result = run_round(ours.method, failing(ours, clients), number, ours.last, ours.model)
        ours.worker.deliver(encode(result.update))
        updates.append(result.update)
    return updates


@pytest.mark.parametrize(
    "codec",
    [dense("int8"), sketch(50), sketch(50, seeds="shared")],
    ids=["dense", "sketch", "sketch with shared directions"],
)
@pytest.mark.parametrize("gone", [{0}, {0, 1, 3}, {5}])
def test_a_client_that_drops_out_does_not_stop_the_cycle(codec: Any, gone: set[int]) -> None:
    ours = federation(codec=codec)
    before = weights(ours.model)
    for client, update in enumerate(rounds(ours, 2 * CLIENTS, gone)):
        assert ("skipped" in update.values) == (client % CLIENTS in gone)
        if "skipped" in update.values:
            assert not update.tensors
    assert not same(weights(ours.model), before)


def test_what_the_missing_would_have_trained_stays() -> None:
    ours = federation()
    before = weights(ours.model)
    rounds(ours, 1, {0})
    assert same(weights(ours.model), before)
    assert ours.worker.replica.version == 1


def test_a_whole_cycle_of_silence_stops_the_run() -> None:
    ours = federation()
    with pytest.raises(UserError, match=r"no client sent a usable report \(client 5: gone\)"):
        rounds(ours, CLIENTS, set(range(CLIENTS)))
    assert ours.worker.replica.version == CLIENTS - 1


def test_a_report_that_did_not_count_leaves_no_residual() -> None:
    ours = federation(codec=dense("int8"))
    plan = ours.method.plans(0, None)[0]
    assert ours.worker.visit(encode(plan)).payload is not None  # and is lost on its way
    rounds(ours, 1, {0})
    assert not ours.worker._states.load(0, "block-0", 1)


def test_a_report_for_another_block_is_refused() -> None:
    ours = federation()
    plan = ours.method.plans(0, None)[0]
    other = replace(plan, values={"block": 1})
    payload = ours.worker.visit(encode(other)).payload
    inbox = Inbox(ours.method, [plan], ours.model)
    assert list(inbox.in_client_order([Arrival(0, payload)])) == []
    ((client, reason),) = inbox.refused
    assert client == 0
    assert reason.startswith("the report does not hold exactly the tensors model.layers.0.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {n: v for n, v in t.items() if not n.endswith("/scale")}, "not hold exactly"),
        (lambda t: {n: v.float() for n, v in t.items()}, "of torch.float32, not"),
        (lambda t: {n: v[:1] for n, v in t.items()}, "is \\(1,"),
        (
            lambda t: {n: torch.full_like(v, 3e38) if "/scale" in n else v for n, v in t.items()},
            "a scale that is too large",
        ),
    ],
)
def test_a_report_that_does_not_fit_is_refused(change: Any, reason: str) -> None:
    ours = federation(codec=dense("int8"))
    plan = ours.method.plans(0, None)[0]
    report = decode(ours.worker.visit(encode(plan)).payload or b"", Report)
    with pytest.raises(MessageError, match=reason):
        ours.method.check(replace(report, tensors=change(dict(report.tensors))), plan)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    ("values", "failure"),
    [
        ({"block": 7}, "the plan is about block 7 of 3"),
        ({"block": "0"}, "the plan does not name a block"),
        ({}, "the plan does not name a block"),
    ],
)
def test_a_plan_for_a_block_that_is_not_there_is_an_error_of_the_visit(
    precision: str, values: Any, failure: str
) -> None:
    """Also where the client would look for what it kept of the block."""
    ours = federation(codec=dense(precision))
    arrival = ours.worker.visit(encode(Plan(0, 0, values)))
    assert (arrival.payload, arrival.failure) == (None, failure)


@pytest.mark.parametrize("surrogate", [1.0, 0.4])
@pytest.mark.parametrize("seeds", ["shared", "client"])
def test_an_update_says_nothing_of_a_single_clients_plan(seeds: str, surrogate: float) -> None:
    """Which block it is about is in its names, and what a client went without is nobody's."""
    options = FedCyBGDOptions(surrogate=surrogate, server_step=0.5)
    update = federation(options, codec=sketch(50, seeds=seeds)).round().update
    energy = {"0/energy"} if seeds == "shared" else set()
    assert update.values.keys() == {"server_step", "blocks"} | energy


@pytest.mark.parametrize(("seeds", "shape"), [("shared", (50,)), ("client", (1, 50))])
def test_cyclic_ferret_moves_a_block_by_few_numbers(seeds: str, shape: tuple[int, ...]) -> None:
    ours = federation(codec=sketch(50, seeds=seeds), work={"batch_size": 4, "steps": 3})
    before = weights(ours.model)
    result = ours.round()
    assert result.update.tensors["0/coordinates"].shape == shape
    assert all(t.numel() <= 50 for t in result.update.tensors.values())
    after = weights(ours.model)
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed == set(layer_names(ours.model)[0])


def test_as_many_coordinates_as_parameters_go_the_clients_way() -> None:
    """With a constant step of 1 the reconstruction points where training went."""
    d = sum(
        p.numel() for n, p in make("llama").named_parameters() if n.startswith("model.layers.0.")
    )
    ours = federation(FedCyBGDOptions(server_step=1.0), codec=sketch(d))
    exact = federation()
    start = flat(weights(ours.model))
    ours.round()
    exact.round()
    a, b = flat(weights(ours.model)) - start, flat(weights(exact.model)) - start
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.6


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        (FedCyBGDOptions(blocks=4), {}, "^method.blocks: 4 blocks for a model of 3 layers"),
        (FedCyBGDOptions(), {"layers": ()}, "^model.path: no list of layers can be found"),
        (
            FedCyBGDOptions(),
            {"codec": sketch(10**6)},
            "^codec.coordinates: 1000000 coordinates for a block of",
        ),
        (
            FedCyBGDOptions(),
            {"codec": sketch(9), "cohort_size": 2},
            "would train several blocks, and the automatic server step is measured on one",
        ),
        (
            FedCyBGDOptions(),
            {"codec": sketch(99, basis="normal")},
            "^codec.basis: the normal basis",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_an_error(options: Any, changes: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        method_for(make("llama"), options, **changes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"blocks": 0}, "blocks is at least 1"),
        ({"order": "sideways"}, "method.order"),
        ({"precision": "int8"}, "there is no key 'method.precision'"),
        ({"clients_per_block": 0}, "clients_per_block is at least 1"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        method_options("fedcybgd", **options)


def test_a_precision_there_is_not_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^codec\.precision: "):
        codec_options("dense", precision="int4")
