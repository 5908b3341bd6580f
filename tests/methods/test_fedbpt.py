"""FedBPT: a prompt is searched for by forward passes, at clients and at the server."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pytest
import torch
from peft import PeftModel

from fullfed.data.batches import collate, training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError, UserError
from fullfed.evaluation.generation import evaluating
from fullfed.federation.messages import Plan, Report, Update, encode
from fullfed.methods import fedbpt
from fullfed.methods.aggregation import TrimmedMean
from fullfed.methods.fedbpt import (
    FITNESS,
    PATH,
    SIGMA,
    SPREAD,
    FedBPTOptions,
    NormalNumbers,
    perturbed,
    search,
)
from fullfed.methods.prompts import SoftPrompt, Z
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss_value
from methods.lora import SEED, reports, three_clients
from methods.test_adapters import tiny_gpt2
from methods.tiny import Federation, method_options, same, setting, sgd, tiny_model, weights
from training.architectures import make as family

OPTIONS = FedBPTOptions(prompt_tokens=3, dimension=6, population=4)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])


def federate(
    options: FedBPTOptions = OPTIONS,
    data: list[list[TokenizedExample]] | None = None,
    **changes: Any,
) -> Federation:
    model = tiny_model()
    scope = fedbpt.scope(SEED, options)
    scope.attach(model)
    shapes = {name: p.shape for name, p in scope.trained(model).items()}
    known: dict[str, Any] = {"local": sgd(), "work": {"steps": 2}, "shapes": shapes}
    made = setting(model, clients=3, **known | changes)
    return Federation(model, fedbpt.build(made, options), data or three_clients())


def prompted(make: Any, numbers: float = 1.0) -> tuple[Any, Any]:
    """A model, and the same with a prompt of some z."""
    base = make()
    model = copy.deepcopy(base)
    fedbpt.scope(SEED, OPTIONS).attach(model)
    with torch.no_grad():
        model.get_parameter(Z).copy_(numbers * torch.arange(1.0, 7.0))
    return base, model


@torch.no_grad()
def by_hand(base: Any, rows: torch.Tensor, ids: torch.Tensor, mask: Any = None) -> torch.Tensor:
    """The logits of ids after the prompt's rows, by the model's own way to take embeddings."""
    embedded = base.get_input_embeddings()(ids)
    both = torch.cat([rows.expand(len(ids), -1, -1), embedded], dim=1)
    found: torch.Tensor = base(inputs_embeds=both, attention_mask=mask).logits
    return found[:, len(rows) :]


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2, lambda: family("opt")])
@torch.no_grad()
def test_a_prompt_comes_before_every_input(make: Any) -> None:
    base, model = prompted(make)
    prompt = model.get_submodule("soft_prompt")
    assert isinstance(prompt, SoftPrompt)
    rows = prompt.rows()
    z = torch.arange(1.0, 7.0).double()
    wanted = prompt.start.double() + (prompt.matrix.double() @ z).view(3, -1)
    torch.testing.assert_close(rows.double(), wanted, rtol=0, atol=1e-6)
    found = model(input_ids=IDS).logits
    assert not torch.allclose(found, base(input_ids=IDS).logits, atol=1e-3)
    torch.testing.assert_close(found, by_hand(base, rows, IDS), rtol=0, atol=1e-6)
    assert found.shape == (2, 6, 11)


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
def test_answers_are_those_of_greedy_steps_by_hand_with_padding(make: Any) -> None:
    """A batch padded on the left, with a cache, beside each prompt alone without one."""
    base, model = prompted(make)
    rows = model.get_submodule("soft_prompt").rows().detach()
    short = torch.cat([torch.zeros(1, 2, dtype=torch.int64), IDS[1:, :4]], dim=1)
    batch = torch.cat([IDS[:1], short])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    with evaluating(model):
        written = model.generate(
            input_ids=batch, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=10
        )
    for ids, answer in ((IDS[:1], written[0, 6:]), (IDS[1:, :4], written[1, 6:])):
        whole = ids
        for token in answer.tolist():
            best = int(by_hand(base, rows, whole)[0, -1].argmax())
            assert token == best
            if token == 10:
                break
            whole = torch.cat([whole, torch.tensor([[token]])], dim=1)


def test_the_matrix_is_of_the_spread_that_is_asked_for() -> None:
    model = tiny_model()
    scope = replace(fedbpt.scope(SEED, OPTIONS), tokens=10, dimension=400, scale=0.5)
    scope.attach(model)
    prompt: Any = model.get_submodule("soft_prompt")
    embedding = model.get_input_embeddings().weight
    wanted = 0.5 * float(embedding.detach().std()) / math.sqrt(400)
    assert float(prompt.matrix.std()) == pytest.approx(wanted, rel=0.02)
    assert all(any(torch.equal(row, e) for e in embedding) for row in prompt.start)
    other = tiny_model()
    torch.manual_seed(9)
    scope.attach(other)
    assert torch.equal(prompt.matrix, other.get_submodule("soft_prompt").matrix)


def test_normals_are_normal_and_go_on() -> None:
    normals = NormalNumbers(Stream(1, Purpose.EVOLUTION))
    one, two = normals(50, 100), normals(5000)
    both = np.concatenate([one.reshape(-1), two])
    assert abs(both.mean()) < 0.03
    assert both.std() == pytest.approx(1, rel=0.02)
    assert abs(float(np.corrcoef(one.reshape(-1), two)[0, 1])) < 0.05
    assert np.mean(both**4) == pytest.approx(3, rel=0.1)
    assert np.array_equal(NormalNumbers(Stream(1, Purpose.EVOLUTION))(50, 100), one)


def test_a_visit_is_cmas_search_on_the_clients_losses() -> None:
    """Carried out again here, with the package's defaults but for what the method says."""
    options = replace(OPTIONS, perturbed=0.0)
    federation = federate(options)
    federation.round()
    state = np.random.get_state()
    sent = reports(federation)[0]
    assert str(np.random.get_state()) == str(state)
    model, z = federation.model, federation.model.get_parameter(Z)
    start, sigma = z.detach().double().numpy(), float(federation.last.values[SIGMA])  # type: ignore[union-attr, arg-type]
    es = cma.CMAEvolutionStrategy(
        start,
        sigma,
        {
            "popsize": 4,
            "CMA_on": 0,
            "seed": float("nan"),
            "verbose": -9,
            "randn": NormalNumbers(Stream(SEED, Purpose.EVOLUTION, 1, 0)),
        },
    )
    batches = list(
        training_batches(
            three_clients()[0],
            federation.method.setting.local.batch_size,
            2,
            Stream(SEED, Purpose.BATCHES, 1, 0),
        )
    )

    def loss(candidate: Any, among: Any) -> float:
        with torch.no_grad():
            z.copy_(torch.from_numpy(candidate))
        total = sum(answer_loss_value(model, batch) * batch.tokens for batch in among)
        return total / sum(batch.tokens for batch in among)

    spread = 0.0
    for batch in batches:
        candidates = es.ask()
        spread += es.sigma**2
        es.tell(candidates, [loss(c, [batch]) for c in candidates])
    np.testing.assert_allclose(sent.tensors[Z].numpy(), es.mean, atol=1e-6)
    assert sent.values[SPREAD] == pytest.approx(spread)
    assert sent.values[FITNESS] == pytest.approx(loss(es.mean, batches), rel=1e-5)
    assert np.linalg.norm(es.mean - start) > 0.1


def test_a_fitness_is_a_ratio_of_losses() -> None:
    plain, ratio = federate(replace(OPTIONS, perturbed=0.0)), federate()
    assert all(0 < float(r.values[FITNESS]) < 3 for r in reports(ratio))  # type: ignore[arg-type]
    one, other = reports(plain)[0], reports(ratio)[0]
    assert one.values[FITNESS] != other.values[FITNESS]


def test_only_prompts_are_perturbed() -> None:
    [batch] = training_batches(three_clients()[0], 9, 1, Stream(0, Purpose.BATCHES))
    stream = Stream(1, Purpose.PERTURBATION)
    changed = perturbed(batch, 0.5, 11, stream)
    differ = changed.input_ids != batch.input_ids
    prompt = (batch.labels == -100) & (batch.attention_mask == 1)
    assert not bool((differ & ~prompt).any())
    assert 0.2 < float(differ.sum() / prompt.sum()) < 0.7
    assert torch.equal(changed.labels, batch.labels)
    assert torch.equal(perturbed(batch, 0.0, 11, stream).input_ids, batch.input_ids)
    assert int(perturbed(batch, 1.0, 11, stream).input_ids.max()) < 11


def told(numbers: list[list[float]], fitnesses: list[float]) -> list[Report]:
    return [
        Report(0, n, 1, 0.0, {FITNESS: f, SPREAD: 2.0}, {Z: torch.tensor(row)})
        for n, (row, f) in enumerate(zip(numbers, fitnesses, strict=True))
    ]


def test_the_servers_step_by_hand() -> None:
    """Hansen's tutorial, arXiv 1604.00772, eq. 42 to 44, of which the covariance stays 1; with the
    package's c_sigma."""
    federation = federate()
    codec, shapes = federation.method.codec, federation.method.setting.shapes
    rows = [[1.0, 0.5, 0.0, -1.0, 2.0, 0.2], [0.3] * 6, [-1.0, 2.0, 0.1, 0.0, 0.4, 1.0]]
    sent, fitnesses = told(rows, [0.9, 0.2, 0.5]), [0.9, 0.2, 0.5]
    mean, path, sigma = np.zeros(6), np.zeros(6), 1.0
    last = None
    for round in range(3):
        encoded = codec.stack(
            [(1 / 3, r) for r in sent], Plan(round, 0, {SIGMA: sigma}), shapes, last
        )
        n, wide = 6, math.sqrt(3 * 2.0 / 3 / 2)  # of three clients, two parents each
        raw = math.log(3.5) - np.log([1, 2, 3])
        w = raw / raw.sum()
        effective = 1 / (w**2).sum()
        ranked = np.array(rows)[np.argsort(fitnesses)]
        moved = w @ (ranked - mean)
        c = (effective + 2) / (n + effective + 3)
        path = (1 - c) * path + math.sqrt(c * (2 - c) * effective) * moved / wide
        damp = 1 + c + 2 * max(0.0, math.sqrt((effective - 1) / (n + 1)) - 1)
        usual = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        sigma *= math.exp(min(1.0, c / damp * (float(np.linalg.norm(path)) / usual - 1)))
        mean = mean + moved
        np.testing.assert_allclose(encoded.tensors[Z].numpy(), mean, atol=1e-6)
        np.testing.assert_allclose(encoded.tensors[PATH].numpy(), path, rtol=1e-3, atol=1e-4)
        assert encoded.values[SIGMA] == pytest.approx(sigma, rel=1e-3)
        last = Update(round, {**encoded.values, "server_step": 1.0}, encoded.tensors)


def test_of_two_reports_the_fittest_is_the_mean() -> None:
    federation = federate()
    sent = told([[1.0] * 6, [2.0] * 6], [0.9, 0.2])
    encoded = federation.method.codec.stack(
        [(0.5, r) for r in sent], Plan(0, 0, {SIGMA: 0.7}), federation.method.setting.shapes, None
    )
    assert encoded.tensors[Z].tolist() == [2.0] * 6
    assert encoded.values[SIGMA] == 0.7


def test_replicas_that_apply_the_same_bytes_are_equal_and_only_z_changes() -> None:
    one, two = federate(), federate()
    before = weights(one.model)
    for _ in range(3):
        update = one.round().update
        assert len(encode(update)) < 300
        two.worker.deliver(encode(update))
        assert same(weights(one.model), weights(two.model))
    changed = [n for n, p in weights(one.model).items() if not torch.equal(p, before[n])]
    assert changed == [Z]


def test_the_search_finds_a_prompt_that_loses_less() -> None:
    """Where clients' data are alike; of unlike ones the server's ranking favours the easiest."""
    options = replace(OPTIONS, perturbed=0.0, population=6)
    data = [three_clients()[0]] * 3
    federation = federate(options, data, work={"batch_size": 9, "steps": 6})
    batch = collate(data[0])
    first = answer_loss_value(federation.model, batch)
    for _ in range(12):
        federation.round()
    assert answer_loss_value(federation.model, batch) < first - 0.1


def test_a_report_takes_two_kilobytes() -> None:
    federation = federate(replace(OPTIONS, dimension=500))
    plan = federation.method.plans(0, None)[0]
    payload = federation.worker.visit(encode(plan)).payload
    assert payload is not None
    assert 2000 < len(payload) < 2100


@pytest.mark.parametrize("values", [{SIGMA: 0.0}, {SIGMA: -1.0}, {SIGMA: 1e9}, {SIGMA: "1"}])
def test_a_sigma_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    federation = federate()
    arrival = federation.worker.visit(encode(Plan(0, 0, values)))
    assert arrival.payload is None
    assert "sigma" in arrival.failure
    report = reports(federation)[0]
    plan = federation.method.plans(0, None)[0]
    name = FITNESS if values[SIGMA] == 1e9 else SPREAD
    spoilt = replace(report, values={**report.values, name: values[SIGMA]})
    with pytest.raises(MessageError):
        federation.method.check(spoilt, plan)


def test_what_is_saved_is_pefts_prompt(tmp_path: Path) -> None:
    federation = federate()
    federation.round()
    model = federation.model
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    federation.method.scope.detach(model, tmp_path)
    base = tiny_model()
    assert same(weights(model), weights(base))
    assert model.config.max_position_embeddings == base.config.max_position_embeddings
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, base(input_ids=IDS).logits)
        adapted = PeftModel.from_pretrained(base, tmp_path).eval()
        found = adapted(input_ids=IDS).logits[:, 3:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.prompt_tokens: 16 are not fewer than the 16"):
        federate(replace(OPTIONS, prompt_tokens=16))


def test_another_rule_is_refused() -> None:
    with pytest.raises(UserError, match=r"^aggregation\.name: FedBPT"):
        federate(aggregation=TrimmedMean(0.4))


@pytest.mark.parametrize(
    "options",
    [{"population": 2}, {"sigma": 0}, {"sigma": 1e-9}, {"dimension": 1}, {"perturbed": 1.5}],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        method_options("fedbpt", **options)


def test_a_search_needs_no_global_generator() -> None:
    state = np.random.get_state()
    es = search(np.zeros(6), 1.0, 4, None, NormalNumbers(Stream(0, Purpose.EVOLUTION)))
    es.tell(es.ask(), [1.0, 2.0, 3.0, 4.0])
    assert str(np.random.get_state()) == str(state)


@pytest.mark.parametrize("sigma", [1e-3, 1e3])
def test_a_search_is_the_same_in_any_unit(sigma: float) -> None:
    """A prompt follows from z over sigma; so does how large a change is."""
    norms = []
    for own in (1.0, sigma):
        federation = federate(replace(OPTIONS, sigma=own))
        result = federation.round()
        assert not result.refused
        norms.append(float(federation.model.get_parameter(Z).detach().norm()) / own)
    assert norms[1] == pytest.approx(norms[0], rel=0.01)
