"""The shipped model: it loads without a network, is small, and is as good as its card says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as TokenizerBase

import pretrain_quickstart as script
from fullfed.data.examples import Example
from fullfed.quickstart import MODEL_PATH
from fullfed.quickstart.tasks import FEDERATED
from pretraining import PRETRAINING


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for each other in a model this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL_PATH, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        MODEL_PATH, local_files_only=True, dtype=torch.float32
    ).eval()


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL_PATH.iterdir()) < 4_000_000


def test_the_model_is_a_small_llama_with_a_pad_token(
    model: PreTrainedModel, tokenizer: TokenizerBase
) -> None:
    assert model.config.model_type == "llama"
    assert sum(p.numel() for p in model.parameters()) < 1_500_000
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize("text", ["Anna found the ball.", "Löwe? {x: 1}\n\ty", "a  b"])
def test_text_survives_the_tokenizer(tokenizer: TokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_every_example_fits_the_context(tokenizer: TokenizerBase) -> None:
    items = script.examples(PRETRAINING | FEDERATED, 50, 6, "train")
    longest = max(map(len, script.encode(tokenizer, items)))
    assert longest <= 96 < script.CONTEXT


@pytest.mark.parametrize("row", range(3))
def test_the_loss_is_as_the_card_says(
    model: PreTrainedModel, tokenizer: TokenizerBase, row: int
) -> None:
    card = (MODEL_PATH / "README.md").read_text()
    group, kinds = list(script.GROUPS.items())[row]
    stated = re.search(rf"^\| {group} \| ([\d.]+) \|", card, re.MULTILINE)
    assert stated is not None
    items = script.examples(kinds, script.TESTED, script.TEST_SEED, "test")
    loss = script.measure_loss(model, tokenizer, items)
    assert loss == pytest.approx(float(stated[1]), rel=0.01, abs=0.001)


def test_initial_weights_follow_from_the_seed(tokenizer: TokenizerBase) -> None:
    first, again, other = (script.build_model(tokenizer, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_training_follows_from_the_seed_and_learns(tokenizer: TokenizerBase) -> None:
    kinds = {name: PRETRAINING[name] for name in ("copy_list", "who")}
    data = script.encode(tokenizer, script.examples(kinds, 96, 1, "train"))
    tests = script.examples(kinds, 20, 1, "test")
    losses = []
    for _ in range(2):
        model = script.build_model(tokenizer, 1)
        before = script.measure_loss(model, tokenizer, tests)
        script.train(model, data, 1)
        losses.append(script.measure_loss(model, tokenizer, tests))
    assert losses[0] == losses[1] < before


def test_the_template_costs_three_tokens(tokenizer: TokenizerBase) -> None:
    example = Example.single("Say cat.", "", "cat", ("cat",))
    tokens = tokenizer.convert_ids_to_tokens(script.encode(tokenizer, [example])[0].ids.tolist())
    assert tokens[0] == "<s>"
    assert tokens[1].startswith("Below is")
    assert tokens[2:] == ["### Instruction:", "ĠSay", "Ġcat", ".", "### Response:", "Ġcat", "</s>"]
