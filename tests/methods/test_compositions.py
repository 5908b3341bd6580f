"""Methods and codecs that a recipe puts together are what they are said to be, reckoned in float64.

Training is torch's, by hand; quantisers are written anew here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import Recipe
from fullfed.data.batches import training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, encode, number
from fullfed.methods.catalogue import METHODS
from fullfed.methods.composition import Composition
from fullfed.runs.assembly import build_method, choose
from fullfed.runs.curvature import with_scales
from fullfed.sketch import SHARED, Purpose, SignBasis, Stream
from fullfed.training.layers import layer_names
from fullfed.training.loss import answer_loss
from methods.tiny import Federation, samples, weights
from training.architectures import make

SEED, RATE, STEPS, BATCH = 5, 0.01, 2, 4
Numbers = NDArray[np.float64]
Named = dict[str, Numbers]
Quantiser = Callable[[Numbers], Numbers]


def recipe(clients_per_round: int, **tables: Any) -> Recipe:
    """As it stands in TOML; neither model nor data are loaded."""
    return Recipe.model_validate(
        {
            "model": {"path": "none"},
            "data": {"train": "none"},
            "federation": {"rounds": 9, "clients_per_round": clients_per_round, "seed": SEED},
            "local": {
                "optimizer": "adamw",
                "learning_rate": RATE,
                "steps": STEPS,
                "batch_size": BATCH,
            },
            **tables,
        }
    )


def data(clients: int) -> list[list[TokenizedExample]]:
    """Of clients with 9, 4, 1, 9, 4, ... samples."""
    return [samples((9, 4, 1)[n % 3], seed=n) for n in range(clients)]


def built(model: PreTrainedModel, clients: int, wanted: Recipe, scaled: bool = False) -> Federation:
    """The recipe's federation; with ``scaled`` a sketch has the scales that it would have."""
    method = build_method(wanted, choose(wanted), model, clients)
    method = with_scales(method, model) if scaled else method
    return Federation(model, method, data(clients))


# By hand


def in_8_bits(x: Numbers) -> Numbers:
    """Each row of a matrix to whole multiples of its largest number / 127; that in bfloat16."""
    rows = x.reshape(x.shape[0] if x.ndim > 1 else 1, -1)
    scale = in_16_bits(np.abs(rows).max(axis=1, keepdims=True) / 127)
    scale[scale == 0] = 1
    return (np.clip(np.rint(rows / scale), -127, 127) * scale).reshape(x.shape)


def in_16_bits(x: Numbers) -> Numbers:
    """To 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


def exactly(x: Numbers) -> Numbers:
    return x


def as_numbers(tensors: Mapping[str, Tensor]) -> Named:
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


def trained(
    model: PreTrainedModel,
    names: Sequence[str],
    plan: Plan,
    count: int,
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Named:
    """How far an optimizer takes the named parameters, with gradients of norm at most 1."""
    alone = copy.deepcopy(model)
    own = {name: alone.get_parameter(name) for name in names}
    for parameter in alone.parameters():
        parameter.requires_grad_(False)
    for parameter in own.values():
        parameter.requires_grad_(True)
    before = as_numbers({name: p.clone() for name, p in own.items()})
    optimizer = kind(own.values(), lr=RATE, weight_decay=0.0)  # type: ignore[call-arg]
    stream = Stream(SEED, Purpose.BATCHES, plan.round, plan.client)
    for batch in training_batches(data(count)[plan.client], BATCH, STEPS, stream):
        optimizer.zero_grad()
        answer_loss(alone, batch).backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        optimizer.step()
    return {name: value - before[name] for name, value in as_numbers(own).items()}


class ByHand:
    """Federated averaging of quantised changes, with what quantising takes kept by clients.

    Args:
        quantise: both ways.
        feedback: whether clients keep it.
    """

    def __init__(self, quantise: Quantiser, feedback: bool) -> None:
        self._quantise, self._feedback = quantise, feedback
        self._kept: dict[tuple[int, str], Numbers] = {}

    def change(self, client: int, name: str, wanted: Numbers) -> Numbers:
        """What a client sends of its change of one parameter."""
        if self._feedback:
            wanted = wanted + self._kept.get((client, name), np.zeros(()))
        sent = self._quantise(wanted)
        self._kept[client, name] = wanted - sent
        return sent

    def kept(self, client: int, name: str) -> Numbers:
        return self._kept[client, name]

    def round(
        self, model: PreTrainedModel, plans: Mapping[tuple[str, ...], Sequence[Plan]], count: int
    ) -> dict[str, tuple[Numbers, Numbers]]:
        """The parameters after a round, of those that it changes: the least and the most.

        The two differ where a mean lies half-way between two numbers that can be sent.

        Args:
            plans: by what they train.
        """
        after = as_numbers(weights(model))
        changed: dict[str, tuple[Numbers, Numbers]] = {}
        for names, those in plans.items():
            shares = np.array([len(data(count)[plan.client]) for plan in those], dtype=float)
            each = [trained(model, names, plan, count) for plan in those]
            for name in names:
                sent = [
                    self.change(p.client, name, own[name])
                    for p, own in zip(those, each, strict=True)
                ]
                mean = np.tensordot(shares / shares.sum(), np.stack(sent), axes=1)
                error = 1e-6 * np.abs(mean)
                ways = [self._quantise(mean + e) for e in (-error, 0 * error, error)]
                changed[name] = after[name] + np.min(ways, 0), after[name] + np.max(ways, 0)
        return changed


def close(model: PreTrainedModel, wanted: Mapping[str, tuple[Numbers, Numbers]]) -> None:
    """Within what float32 rounds."""
    undecided = total = 0
    for name, (least, most) in wanted.items():
        found = model.get_parameter(name).detach().double().numpy()
        slack = 2e-7 * (1 + np.abs(most).max())
        assert np.all((least - slack <= found) & (found <= most + slack)), name
        undecided += int(np.sum(most - least > 4 * slack))
        total += found.size
    assert undecided < total / 3  # Adam's first steps are alike, so many means are half-way


def one(wanted: Named) -> dict[str, tuple[Numbers, Numbers]]:
    return {name: (value, value) for name, value in wanted.items()}


# Federated averaging


CODECS: list[tuple[str, Quantiser]] = [
    ("int8", in_8_bits),
    ("bfloat16", in_16_bits),
    ("float32", exactly),
]


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize(("precision", "quantise"), CODECS, ids=[name for name, _ in CODECS])
def test_fedavg_in_few_bits(precision: str, quantise: Quantiser, feedback: bool) -> None:
    codec = {"name": "dense", "precision": precision, "error_feedback": feedback}
    federation = built(make("llama"), 3, recipe(3, method={"name": "fedavg"}, codec=codec))
    hand, model = ByHand(quantise, feedback), federation.model
    names = tuple(name for name, _ in model.named_parameters())
    for round in range(3):
        plans = federation.method.plans(round, federation.last)
        wanted = hand.round(model, {names: plans}, 3)
        before = as_numbers(weights(model))
        federation.round()
        close(model, wanted)
        assert any(np.any(before[name] != wanted[name][0]) for name in names)
    if precision == "int8" and feedback:
        for client in range(3):
            kept = federation.worker._states.load(client, "all", 3)
            assert set(kept) == {f"codec/{name}" for name in names}
            for name in names:
                residual = kept[f"codec/{name}"].double().numpy()
                np.testing.assert_allclose(residual, hand.kept(client, name), rtol=0, atol=1e-7)


@pytest.mark.parametrize("quantiser", ["int8", "bfloat16"])
@pytest.mark.parametrize("name", ["fedit", "ffa-lora"])
def test_adapters_in_few_bits(name: str, quantiser: str) -> None:
    codec = {"name": "dense", "precision": quantiser, "error_feedback": True}
    method = {"name": name, "rank": 2, "alpha": 3.0}
    federation = built(make("llama"), 3, recipe(3, method=method, codec=codec))
    hand, model = ByHand(dict(CODECS)[quantiser], True), federation.model
    names = tuple(federation.method.scope.trained(model))
    frozen = {n: value for n, value in as_numbers(weights(model)).items() if n not in names}
    assert len(names) == {"fedit": 12, "ffa-lora": 6}[name]
    for round in range(3):
        plans = federation.method.plans(round, federation.last)
        wanted = hand.round(model, {names: plans}, 3)
        federation.round()
        close(model, wanted)
    now = as_numbers(weights(model))
    assert all(np.array_equal(now[n], value) for n, value in frozen.items())


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("together", "cohort"), [(1, 1), (1, 2), (2, 2), (2, 4)], ids=lambda number: str(number)
)
def test_fedcybgd_in_few_bits(precision: str, together: int, cohort: int) -> None:
    """Two cycles, so that everybody comes back to a block with what it kept."""
    federation = built(
        make("llama"),
        6,
        recipe(
            cohort,
            method={"name": "fedcybgd", "clients_per_block": together},
            codec={"name": "dense", "precision": precision, "error_feedback": True},
        ),
    )
    model, method = federation.model, federation.method
    hand, layers = ByHand(dict(CODECS)[precision], True), layer_names(federation.model)
    for round in range(2 * -(-6 // cohort)):
        plans: dict[tuple[str, ...], list[Plan]] = {}
        for plan in method.plans(round, federation.last):
            plans.setdefault(layers[int(plan.values["block"])], []).append(plan)  # type: ignore[arg-type]
        assert all(len(those) == together for those in plans.values())
        before, wanted = as_numbers(weights(model)), hand.round(model, plans, 6)
        federation.round()
        close(model, wanted)
        now = as_numbers(weights(model))
        assert all(np.array_equal(now[n], before[n]) for n in now if n not in wanted)
        assert all(np.any(now[n] != before[n]) for n in wanted)


# Sketches


def matrix(owner: int, round: int, coordinates: int, shapes: Mapping[str, Any]) -> Numbers:
    """V, (elements, coordinates): what each coordinate alone is reconstructed as."""
    basis = SignBasis(SEED, round, owner=owner, coordinates=coordinates)
    columns = []
    for one in torch.eye(coordinates):
        zeros = [torch.zeros(shape) for shape in shapes.values()]
        basis.reconstruct_(zeros, one)
        columns.append(torch.cat([t.reshape(-1) for t in zeros]).double().numpy())
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("seeds", [None, "client", "shared"])
@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(
            (name, step)
            for name in ("cyclic-ferret", "fedcybgd", "fedavg")
            for step in ("auto", 0.5)
        ),
        ("fedit", "auto"),  # which has no such option
    ],
)
def test_whatever_is_trained_can_be_sketched(name: str, step: Any, seeds: str | None) -> None:
    """w += step * sum of shares times V V' change, of a block or of all that is trained."""
    count, k, cyclic = 6, 24, name in ("cyclic-ferret", "fedcybgd")
    codec: dict[str, Any] = {"name": "sketch", "coordinates": k}
    codec |= {} if seeds is None else {"seeds": seeds}
    method: dict[str, Any] = {"name": name}
    method |= {"clients_per_block": 2} if cyclic else {}
    method["rank" if name == "fedit" else "server_step"] = 2 if name == "fedit" else step
    mean = {"name": "mean"}
    made = recipe(2, method=method, codec=codec, aggregation=mean)
    federation = built(make("llama"), count, made)
    model, layers = federation.model, layer_names(federation.model)
    for round in range(4):
        plans = federation.method.plans(round, federation.last)
        names = tuple(federation.method.scope.trained(model))
        if cyclic:
            (block,) = {int(plan.values["block"]) for plan in plans}  # type: ignore[arg-type]
            names = layers[block]
        before = as_numbers(weights(model))
        shapes = {n: before[n].shape for n in names}
        each = [trained(model, names, plan, count) for plan in plans]
        samples = np.array([len(data(count)[plan.client]) for plan in plans], dtype=float)
        result = federation.round()
        applied = number(result.update, "server_step")
        assert 0 < applied <= 1
        assert step == "auto" or applied == step
        total = np.zeros(sum(before[n].size for n in names))
        for plan, share, own in zip(plans, samples / samples.sum(), each, strict=True):
            v = matrix(SHARED if seeds == "shared" else plan.client, round, k, shapes)
            change = np.concatenate([own[n].reshape(-1) for n in names])
            total += share * (v @ (v.T @ change))
        ends = np.cumsum([before[n].size for n in names])[:-1]
        moved = np.split(applied * total, ends)
        wanted = {
            n: before[n] + m.reshape(before[n].shape) for n, m in zip(names, moved, strict=True)
        }
        close(model, one(wanted))
        now = as_numbers(weights(model))
        assert all(np.array_equal(now[n], before[n]) for n in now if n not in wanted)
        sent = [t for n, t in result.update.tensors.items() if n.endswith("coordinates")]
        assert [t.shape for t in sent] == [(k,) if seeds == "shared" else (2, k)]


# The largest numbers


@pytest.mark.parametrize("name", ["fedavg", "fedcybgd", "fedit"])
def test_whatever_is_trained_can_be_sent_by_its_largest_numbers(name: str) -> None:
    """In float32 and without feedback: the others' changes are zero."""
    count, k, cyclic = 3, 10, name == "fedcybgd"
    method: dict[str, Any] = {"name": name} | ({"rank": 2} if name == "fedit" else {})
    codec = {"name": "topk", "count": k, "bits": 32}
    local = {"optimizer": "sgd", "learning_rate": RATE, "steps": STEPS, "batch_size": BATCH}
    federation = built(make("llama"), count, recipe(1, method=method, codec=codec, local=local))
    model, layers = federation.model, layer_names(federation.model)
    for round in range(3):
        (plan,) = federation.method.plans(round, federation.last)
        names = tuple(federation.method.scope.trained(model))
        if cyclic:
            names = layers[int(plan.values["block"])]  # type: ignore[arg-type]
        before = as_numbers(weights(model))
        change = trained(model, names, plan, count, torch.optim.SGD)
        sizes = np.concatenate([np.abs(change[n]).reshape(-1) for n in names])
        least = np.sort(sizes)[-k]
        federation.round()
        largest = {n: np.where(np.abs(c) >= least, c, 0) for n, c in change.items()}
        assert sum(np.count_nonzero(c) for c in largest.values()) == k
        close(model, one({n: before[n] + c for n, c in largest.items()}))


# Tables alone


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_method_is_built_by_its_name_and_trains(name: str, optimizer: str) -> None:
    """With the codec of its own or its default one."""
    known = {"ferret": {"coordinates": 24}, "fed-sb": {"rank": 2}, "flexlora": {"ranks": [1, 2]}}
    known["fedbpt"] = {"prompt_tokens": 3, "dimension": 8, "population": 3}
    known["fedpeptao"] = {"prefix_tokens": 2}
    known["slora"] = {"rank": 2, "sparse_rounds": 1}
    known["fedbuff"] = {"buffer": 1}
    method = {"name": name, **known.get(name, {})}
    tables: dict[str, Any] = {"method": method}
    if name == "cyclic-ferret":
        tables["codec"] = {"name": "sketch", "coordinates": 24}
    tables["local"] = {"optimizer": optimizer, "learning_rate": 1e-3, "steps": 2}
    federation = built(make("llama"), 6, recipe(1, **tables))
    twin = built(make("llama"), 6, recipe(1, **tables))
    before = as_numbers(weights(federation.model))
    for _ in range(2):
        result = federation.round()
        assert not result.refused
        twin.worker.deliver(encode(result.update))
    now, other = (as_numbers(weights(f.model)) for f in (federation, twin))
    assert any(np.any(now[n] != before[n]) for n in now)
    assert all(np.array_equal(now[n], other[n]) for n in now)


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.codec is None])
def test_a_method_with_a_codec_of_its_own_takes_no_other(name: str) -> None:
    method = {"name": name} | ({"coordinates": 9} if name == "ferret" else {})
    with pytest.raises(UserError, match=rf"^codec: {name} has a codec of its own; "):
        choose(recipe(1, method=method, codec={"name": "dense"}))


def test_a_default_codec_is_replaced_whole() -> None:
    """Options of the default do not mix with those of the codec that is named."""

    def codec_of(**tables: Any) -> Any:
        return choose(recipe(1, method={"name": "fedcybgd"}, **tables)).codec

    default = codec_of()
    assert (default.precision, default.error_feedback) == ("bfloat16", True)
    plain = codec_of(codec={"name": "dense"})
    assert (plain.precision, plain.error_feedback) == ("float32", False)


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "fedzo", "fedit", "ffa-lora", "fedcybgd"])
def test_a_composition_says_what_it_was_built_of(method: str) -> None:
    table = {"name": "dense", "precision": "int8", "error_feedback": True}
    rule = {"name": "trimmed-mean", "trim": 0.34}
    options = {"name": method} | ({"clients_per_block": 3} if method == "fedcybgd" else {})
    made: Composition = built(
        make("llama"), 9, recipe(3, method=options, codec=table, aggregation=rule)
    ).method
    assert made.codec == made.setting.codec
    assert made.stateful
    assert not made.aggregation.weights_only
    assert made.aggregation == made.setting.aggregation
