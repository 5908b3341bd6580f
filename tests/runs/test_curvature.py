"""The scales of a run: right factors, from text that the model writes, and bound to the run."""

from __future__ import annotations

import copy
import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fullfed.errors import UserError
from fullfed.headway import Headway
from fullfed.methods.codecs.scaling import ModelScales, exponents_of
from fullfed.runs import run
from fullfed.runs.assembly import assemble
from fullfed.runs.curvature import own_texts, scales_of, squared_gradients, with_scales
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay, verify
from fullfed.training.loss import answer_loss
from runs.small import recipe

FEW = {"name": "sketch", "coordinates": 10}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.01}


def factors(scales: ModelScales, name: str) -> Tensor:
    rows, columns = (2 ** (e.double() / 8) for e in scales.exponents[name])
    return rows[:, None] * columns


def test_factors_are_one_over_the_fourth_root_of_the_curvature() -> None:
    curvature = {
        "matrix": (torch.tensor([1.0, 16.0]).double(), torch.tensor([4.0, 13.0]).double()),
        "vector": (torch.tensor([81.0, 9.0, 81.0]).double(), torch.tensor([57.0]).double()),
    }
    scales = scales_of(curvature)
    found = torch.cat([factors(scales, name).flatten() for name in curvature])
    model = [4.0, 13.0, 64.0, 208.0, 81.0, 9.0, 81.0]  # the matrix's: rows times columns over 8.5
    exact = torch.tensor([h / (8.5 if n < 4 else 1) for n, h in enumerate(model)]).double() ** -0.25
    assert (found / found[0] / (exact / exact[0])).log2().abs().max() <= 2 / 8, "roundings"
    assert found.pow(-2).mean() == pytest.approx(1.0, rel=0.1)


def test_curvature_that_is_nothing_or_too_much_leaves_factors_alone() -> None:
    ones = torch.ones(3).double()
    scales = scales_of({"none": (0 * ones, 0 * ones), "much": (math.inf * ones, ones)})
    assert all(not e.any() for pair in scales.exponents.values() for e in pair)
    few = scales_of(
        {"none": (0 * ones, 0 * ones), "some": (ones, ones), "tiny": (1e-30 * ones, ones)}
    )
    assert factors(few, "none").unique().tolist() == [1.0]
    assert few.exponents["tiny"][0].tolist() == [24] * 3, "a factor of 8"


def test_the_model_writes_the_same_text_for_a_seed_and_another_for_another(
    tiny_llama: LlamaForCausalLM,
) -> None:
    texts = [batch.input_ids for batch in own_texts(tiny_llama, 3)]
    assert [t.shape for t in texts] == [(1, 64)] * 8, "as many as the model can read"
    assert all(map(torch.equal, texts, (b.input_ids for b in own_texts(tiny_llama, 3))))
    assert not torch.equal(texts[0], own_texts(tiny_llama, 4)[0].input_ids)
    assert len(torch.cat(texts).unique()) > 20
    assert all(int(text[0, 0]) == 256 for text in texts), "they begin with the model's first token"


def test_tokens_are_drawn_as_likely_as_the_model_says(tiny_llama: LlamaForCausalLM) -> None:
    """Second tokens of many texts against the probabilities after the first."""
    counts = np.zeros(258)
    for seed in range(60):
        for batch in own_texts(tiny_llama.eval(), seed):
            counts[int(batch.input_ids[0, 1])] += 1
    logits = tiny_llama(torch.tensor([[256]])).logits[0, -1]
    expected = logits.double().softmax(-1).detach().numpy() * counts.sum()
    likely = expected > 10
    deviations = (counts - expected)[likely] / np.sqrt(expected[likely])
    assert likely.sum() >= 3
    assert np.abs(deviations).max() < 4.5


def test_squared_gradients_are_those_of_autograd(tiny_llama: LlamaForCausalLM) -> None:
    parameters = dict(tiny_llama.named_parameters())
    texts, heard = own_texts(tiny_llama, 0)[:3], list[Headway]()
    found = squared_gradients(tiny_llama, parameters, texts, heard.append)
    wide = copy.deepcopy(tiny_llama).double().eval()
    sums: dict[str, Tensor] = {}
    for batch in texts:
        loss = answer_loss(wide, batch)
        gradients = torch.autograd.grad(loss, list(wide.parameters()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] = sums.get(name, torch.zeros(())) + gradient.square()
    for name, total in sums.items():
        matrix = total if total.ndim > 1 else total[:, None]
        torch.testing.assert_close(found[name][0], matrix.mean(1), rtol=1e-3, atol=1e-12)
        torch.testing.assert_close(found[name][1], matrix.mean(0), rtol=1e-3, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in tiny_llama.parameters())
    assert [(h.work, h.done, h.of) for h in heard] == [("curvature", n, 3) for n in range(4)]


@pytest.mark.parametrize(
    ("local", "method", "wanted"),
    [
        (ADAMW, {}, True),
        ({"optimizer": "Muon"}, {}, True),
        ({"optimizer": "SGD"}, {}, False),
        ({"optimizer": "sgd"}, {"scales": "curvature"}, True),
        (ADAMW, {"scales": "none"}, False),
        (ADAMW, {"basis": "normal"}, False),
        (ADAMW, {"seeds": "shared"}, True),
    ],
)
def test_scales_are_wanted_where_the_optimizer_normalises(
    ingredients: Path, local: dict[str, object], method: dict[str, object], wanted: bool
) -> None:
    method = {"name": "ferret", "coordinates": 300, **method}
    assembly = assemble(recipe(ingredients, local=local, method=method))
    assert assembly.method.wants_scales == wanted
    made = with_scales(assembly.method, assembly.model)
    exponents = zlib.decompress(made.scales) if made.scales else b""
    assert len(exponents) == (exponents_of(made.setting.shapes) if wanted else 0)


@pytest.mark.parametrize(
    ("method", "trainer", "wanted"),
    [
        ({"name": "fedit", "codec": FEW}, None, False),
        ({"name": "fedavg"}, None, False),
        ({"name": "cyclic-ferret", "blocks": 2, "server_step": 1.0, "codec": FEW}, None, True),
        ({"name": "ferret", "coordinates": 300}, "transformers", True),
    ],
)
def test_scales_are_of_the_models_own_parameters(
    ingredients: Path, method: dict[str, object], trainer: str | None, wanted: bool
) -> None:
    changes = {"local": ADAMW, "method": method}
    if trainer is not None:
        changes["trainer"] = {"name": trainer}
    assert assemble(recipe(ingredients, **changes)).method.wants_scales == wanted


def test_what_a_trainer_of_somebodys_own_does_is_not_known(ingredients: Path) -> None:
    made = recipe(ingredients, local=ADAMW, trainer={"name": "own"})
    assert not assemble(made, own=lambda *_: None).method.wants_scales  # type: ignore[arg-type, return-value]


def test_a_run_keeps_its_scales_and_everything_follows_from_them(
    ingredients: Path, tmp_path: Path
) -> None:
    chosen, out = recipe(ingredients, local=ADAMW), tmp_path / "run"
    run.start(chosen, out)
    folder = RunFolder(out)
    assembly = assemble(chosen)
    assert folder.scales() == with_scales(assembly.method, assembly.model).scales
    assert verify(folder) == 4
    replay(folder)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    plain = tmp_path / "plain"
    method = {"name": "ferret", "coordinates": 300, "scales": "none"}
    run.start(recipe(ingredients, local=ADAMW, method=method), plain)
    first = json.loads((plain / "metrics.jsonl").read_text().splitlines()[0])
    assert RunFolder(plain).scales() == b""
    assert not (plain / "scales.bin").exists()
    more = lines[0]["bytes"]["down"] - first["bytes"]["down"]
    assert more == 2 * len(folder.scales()), "both clients of the round are told them"
    assert lines[0]["model_hash"] is first["model_hash"] is None
    assert (out / "updates.log").read_bytes() != (plain / "updates.log").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"other"])
def test_scales_that_are_not_the_runs_are_refused(
    ingredients: Path, tmp_path: Path, content: bytes | None
) -> None:
    out = tmp_path / "run"
    run.start(recipe(ingredients, local=ADAMW, federation={"rounds": 2}), out)
    file = out / "scales.bin"
    file.unlink() if content is None else file.write_bytes(content)
    said = f"{file}: the file is missing or was changed; restore a copy of it."
    for carry_on in (run.resume, lambda path: verify(RunFolder(path))):
        with pytest.raises(UserError) as raised:
            carry_on(out)
        assert str(raised.value) == said


def test_a_model_of_other_shapes_is_named_and_not_the_scales(
    ingredients: Path, tmp_path: Path
) -> None:
    own, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(ingredients / "model", own)
    changes = {"local": ADAMW, "federation": {"rounds": 2}, "model": {"path": str(own)}}
    run.start(recipe(ingredients, **changes), out)
    LlamaForCausalLM(LlamaConfig.from_pretrained(own, num_hidden_layers=3)).save_pretrained(own)
    for carry_on in (run.resume, lambda path: verify(RunFolder(path))):
        with pytest.raises(UserError, match=f"^{own}: this is not the base model the run began"):
            carry_on(out)
