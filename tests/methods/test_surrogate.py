"""A surrogate is the client's own block, whole, in a smaller model; and never more than that."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from fullfed import payloads
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, Report, Update, encode
from fullfed.federation.wire import join
from fullfed.methods.codecs.codec import Change
from fullfed.methods.fedcybgd import FedCyBGDOptions
from fullfed.methods.schedules import Surrogate
from fullfed.training.layers import layer_names
from methods.test_fedcybgd import dense, federation, method_for
from methods.tiny import method_options, same, weights

HALF = FedCyBGDOptions(surrogate=0.4)
INT8 = dense("int8")


@settings(deadline=None)
@given(
    layers=st.integers(1, 12),
    kept=st.floats(0.01, 0.99),
    block=st.integers(0, 12),
    client=st.integers(0, 5),
)
def test_the_share_is_kept_and_so_are_the_ends_and_the_own_block(
    layers: int, kept: float, block: int, client: int
) -> None:
    block = min(block, layers)  # one beyond the layers: embeddings and the like
    dropped = Surrogate(3, layers, kept).dropped(7, client, block)
    others = layers - (block < layers)
    assert not {0, layers - 1, block} & set(dropped)
    assert dropped == sorted(set(dropped))
    ends = len({0, layers - 1} - {block})
    assert others - len(dropped) == max(math.ceil(kept * others), min(ends, others))


def test_clients_and_rounds_go_without_different_layers() -> None:
    surrogate = Surrogate(0, 20, 0.5)
    drawn = {tuple(surrogate.dropped(r, c, 0)) for r in range(4) for c in range(4)}  # type: ignore[arg-type]
    assert len(drawn) == 16
    assert surrogate.dropped(1, 2, 3) == surrogate.dropped(1, 2, 3)


def test_training_on_a_surrogate_moves_the_own_block_alone() -> None:
    ours = federation(HALF, codec=INT8)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    before = weights(ours.model)
    assert ours.worker.visit(encode(plan)).payload is not None
    assert same(weights(ours.model), before)
    ours.round()
    after = weights(ours.model)
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed == set(layer_names(ours.model)[0])


def test_a_submodel_is_the_own_block_exact_and_the_rest_in_8_bits() -> None:
    ours = federation(HALF, codec=INT8)
    plan = ours.method.plans(0, None)[0]
    assert plan.values["dropped"] == [1]
    assert ours.method.submodels is not None
    submodel = ours.method.submodels.submodel(ours.model, plan)
    names, parameters = layer_names(ours.model), dict(ours.model.named_parameters())
    assert all(torch.equal(submodel.tensors[name], parameters[name]) for name in names[0])
    assert not any(name in submodel.tensors for name in names[1])
    matrices = {name for name in names[2] if parameters[name].ndim == 2}
    assert all(submodel.tensors[name].dtype == torch.int8 for name in matrices)
    assert {n for n in submodel.tensors if not n.endswith("/scale")} == {*names[0], *names[2]}
    assert federation().method.submodels is None


@pytest.mark.parametrize("values", [{"dropped": [3]}, {"dropped": "all"}, {"dropped": [-1]}])
def test_a_plan_that_drops_what_is_not_there_is_an_error_of_the_visit(values: Any) -> None:
    arrival = federation(HALF, codec=INT8).worker.visit(encode(Plan(0, 0, {"block": 0, **values})))
    assert arrival.failure == "the plan's value 'dropped' is not a list of blocks"


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1_is_an_error(share: float) -> None:
    with pytest.raises(UserError, match=r"method: surrogate is a share, above 0 and at most 1"):
        method_options("fedcybgd", surrogate=share)


def llama(shape: str) -> LlamaForCausalLM:
    """A model in 16 bits that says its tensors' shapes and takes no memory."""
    widths: dict[str, dict[str, Any]] = {
        "small": {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 172},
        "llama-2-7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008},
    }
    config = LlamaConfig(**widths[shape], num_hidden_layers=32, num_attention_heads=4)
    with torch.device("meta"):
        return LlamaForCausalLM(config).bfloat16().eval()  # type: ignore[no-any-return]


CODES = {torch.float32: 0, torch.bfloat16: 2, torch.int8: 7}


def encoded_bytes(message: Report | Update) -> int:
    """What ``encode`` comes to, from the tensors' shapes and types alone."""
    tensors = message.tensors
    kinds: dict[str, Any] = {name: [CODES[t.dtype], *t.shape] for name, t in tensors.items()}
    fields = [value for name, value in vars(message).items() if name != "tensors"]
    header = len(join([0, *fields, kinds], {})) - 1  # the table of no tensors
    return header + sum(tensor.nbytes for tensor in tensors.values())


def visits_messages(
    model: LlamaForCausalLM, options: FedCyBGDOptions, precision: str
) -> tuple[Report, list[Update]]:
    """A visit's upload and downloads. As many clients as blocks: each misses one update of each."""
    parameters = dict(model.named_parameters())
    method = method_for(model, options, clients=32, codec=dense(precision))
    plans = [method.plans(round, None)[0] for round in range(32)]
    reports = []
    for plan in plans:
        shapes = method.blocks[plan.client]
        block = {n: parameters[n] for n in shapes}
        change = Change(block, {n: p + 1 for n, p in block.items()})
        sent = method.codec.encode(change, plan, shapes)
        reports.append(Report(plan.round, plan.client, 1, 1.0, sent.values, sent.tensors))
    if method.submodels is not None:
        return reports[7], [method.submodels.submodel(model, plans[7])]
    each = zip(plans, reports, strict=True)
    return reports[7], [method.aggregate([plan], [report], None) for plan, report in each]


TRAFFIC = [
    (FedCyBGDOptions(), "bfloat16", 2.0),
    (FedCyBGDOptions(), "int8", 4.0),
    (FedCyBGDOptions(surrogate=0.5), "int8", 7.0),
]


@pytest.mark.parametrize(
    ("options", "precision", "times"), TRAFFIC, ids=["bfloat16", "int8", "int8 and half"]
)
def test_traffic_of_a_visit_to_llama_2_7b_against_fedavgs(
    monkeypatch: pytest.MonkeyPatch, options: FedCyBGDOptions, precision: str, times: float
) -> None:
    """Both ways, in encoded bytes, headers and scales included; FedAvg's weights in 16 bits."""
    monkeypatch.setattr(payloads, "LARGE", 1 << 40)  # what has no numbers cannot wait in a file
    model = llama("llama-2-7b")
    report, downloads = visits_messages(model, options, precision)
    ours = encoded_bytes(report) + sum(map(encoded_bytes, downloads))
    fedavgs = 2 * encoded_bytes(Update(0, {}, dict(model.named_parameters())))
    assert fedavgs / ours >= times


@pytest.mark.parametrize(("options", "precision"), [case[:2] for case in TRAFFIC])
def test_bytes_from_shapes_are_those_of_encoded_messages(
    options: FedCyBGDOptions, precision: str
) -> None:
    model = llama("small").to_empty(device="cpu")
    for p in model.parameters():
        p.data.fill_(0.5)
    report, downloads = visits_messages(model, options, precision)
    for message in [report, *downloads, Update(0, {}, dict(model.named_parameters()))]:
        assert encoded_bytes(message) == len(encode(message))
