"""What is no plain causal language model is refused, and its own losses are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fullfed.data.batches import collate
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.loading import load_blank, load_model
from fullfed.training.loss import answer_loss, answer_loss_sum
from trials.architectures import tiny_config

from .small import recipe, write_ingredients, write_model

TINY: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
BART: dict[str, Any] = {
    f"{half}_{what}": 2
    for half in ("encoder", "decoder")
    for what in ("layers", "attention_heads", "ffn_dim")
}


def why_refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


def change(model: Path, file: str = "config.json", **values: Any) -> None:
    (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | values))


def replace_by(model: Path, other: PreTrainedModel) -> None:
    (model / "model.safetensors").unlink()
    other.save_pretrained(model)


@pytest.mark.parametrize("beside_the_base", [False, True])
def test_an_adapter_is_refused(model: Path, tmp_path: Path, beside_the_base: bool) -> None:
    base, tokenizer = load_model(str(model))
    adapter = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=1))  # type: ignore[arg-type]
    folder = model if beside_the_base else tmp_path / "adapter"
    adapter.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    assert "this is a PEFT adapter, not a model; merge it into its base model" in why_refused(
        folder
    )


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_quantised_weights_are_refused(model: Path, method: str) -> None:
    change(model, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    (model / "model.safetensors").unlink()  # nothing of it is read
    assert "the model's weights are quantised" in why_refused(model)
    with pytest.raises(UserError, match="quantised"):
        load_blank(str(model))


def test_encoder_decoders_are_refused(model: Path) -> None:
    replace_by(model, BartForConditionalGeneration(BartConfig(vocab_size=512, d_model=8, **BART)))
    assert "this is an encoder-decoder (bart)" in why_refused(model)
    config = T5Config(vocab_size=512, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    replace_by(model, T5ForConditionalGeneration(config))
    assert "this is an encoder-decoder (t5)" in why_refused(model)


def test_code_that_comes_with_a_model_is_never_run(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "own.py").write_text("raise SystemExit('it ran')")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change(model, model_type="their-own", auto_map=auto_map)
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("it asked"))
    assert "the model needs code that comes with it, which is never run" in why_refused(model)
    change(model, model_type="llama")  # the architecture is known: its code is transformers' own
    change(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    load_model(str(model))


def test_a_model_that_looks_ahead_is_refused(model: Path) -> None:
    replace_by(model, BertLMHeadModel(BertConfig(vocab_size=512, **TINY)))
    assert "what this model predicts depends on what comes after" in why_refused(model)
    replace_by(model, BertLMHeadModel(BertConfig(vocab_size=512, is_decoder=True, **TINY)))
    load_model(str(model))


def test_a_checkpoint_without_a_head_is_refused(model: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(model).config
    replace_by(model, LlamaModel(config))
    assert "lacks lm_head.weight, which would be random" in why_refused(model)
    config.tie_word_embeddings = True  # it needs none of its own then
    replace_by(model, LlamaModel(config))
    load_model(str(model))
    replace_by(model, LlamaForSequenceClassification(config))
    assert "is a LlamaForSequenceClassification, and its score.weight has no" in why_refused(model)


@pytest.mark.parametrize(
    "fault", [ImportError("needs flash_attn"), KeyError("rope"), Exception("x")]
)
def test_what_loading_raises_is_told_in_a_sentence(
    model: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    assert f"the model cannot be loaded ({fault})" in why_refused(model)


def test_a_damaged_tokenizer_is_told_in_a_sentence(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}')
    assert "the model cannot be loaded" in why_refused(model)


def write_mixtral(model: Path, **values: Any) -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(model)), num_key_value_heads=1,
        num_local_experts=4, max_position_embeddings=128, **TINY, **values,
    )  # fmt: skip
    torch.manual_seed(0)
    mixtral = MixtralForCausalLM(config).eval()
    replace_by(model, mixtral)
    return mixtral


def test_a_loss_of_routers_that_the_config_asks_for_is_trained_on(
    model: Path, random_batch: list[TokenizedExample]
) -> None:
    write_mixtral(model, output_router_logits=True, router_aux_loss_coef=0.5)
    mixtral, _ = load_model(str(model))
    batch = collate(random_batch)
    own = mixtral(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    )
    ours = answer_loss(mixtral, batch)
    assert float(ours) == pytest.approx(float(own.loss), rel=1e-5)
    entropy = float(answer_loss_sum(mixtral, batch)) / batch.tokens  # what evaluation measures
    assert float(ours) - entropy == pytest.approx(0.5 * float(own.aux_loss), rel=1e-4)
    assert float(ours) - entropy > 0.5
    gates = [p for name, p in mixtral.named_parameters() if "gate.weight" in name]
    assert gates, "Mixtral has routers"
    for one, other in zip(
        torch.autograd.grad(ours, gates), torch.autograd.grad(own.loss, gates), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)


def test_without_being_asked_for_it_is_not(
    model: Path, random_batch: list[TokenizedExample]
) -> None:
    mixtral = write_mixtral(model, router_aux_loss_coef=0.5)
    batch = collate(random_batch)
    entropy = answer_loss_sum(mixtral, batch) / batch.tokens
    assert float(answer_loss(mixtral, batch)) == float(entropy)


def test_a_loss_that_is_not_known_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mixtral(model)
    plain = MixtralForCausalLM.forward

    def with_more(self: MixtralForCausalLM, *arguments: Any, **named: Any) -> Any:
        output = plain(self, *arguments, **named)
        output.loss = None if output.loss is None else output.loss + 0.01
        return output

    monkeypatch.setattr(MixtralForCausalLM, "forward", with_more)
    assert "switch the further loss off in its config.json" in why_refused(model)


def test_inputs_are_not_cached_where_routers_below_have_a_loss(tmp_path: Path) -> None:
    folder = write_ingredients(tmp_path)
    write_mixtral(folder / "model", output_router_logits=True)
    cached = recipe(folder, method={"name": "fedcybgd"}, memory={"cache_inputs": "1MiB"})
    with pytest.raises(UserError, match=r"memory\.cache_inputs: the layers of this model .Mixtral"):
        run.start(cached, tmp_path / "run")
    assert not (tmp_path / "run").exists()


SHARING = {  # layers that read the keys and values of others
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": [0.0] * 4,
    "laurel_rank": 4,
}


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("bamba", "memory.cache_inputs"),  # its layers return a pair, for which two samples passed
        ("bamba", "method.surrogate"),  # on would be taken
        ("gemma3n_text", "memory.cache_inputs"),
    ],
)
def test_no_layer_is_left_out_that_hands_on_more_than_hidden_states(
    tmp_path: Path, kind: str, key: str
) -> None:
    folder = write_ingredients(tmp_path)
    tokens = len(AutoTokenizer.from_pretrained(folder / "model"))
    torch.manual_seed(0)
    config = tiny_config(kind, tokens, SHARING if kind == "gemma3n_text" else {})
    replace_by(folder / "model", AutoModelForCausalLM.from_config(config))
    weak = {"surrogate": 0.5} if key == "method.surrogate" else {}
    leaving_out = recipe(
        folder,
        method={"name": "fedcybgd", **weak},
        memory={} if weak else {"cache_inputs": "1MiB"},
    )
    with pytest.raises(UserError, match=f"{key}: the layers of this model .* hand on more than"):
        run.start(leaving_out, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def random_batch() -> list[TokenizedExample]:
    """Three samples of different lengths."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(500, (n,), generator=generator).int().numpy() for n in (9, 5, 7)]
    return [TokenizedExample.pair(ids, 3) for ids in drawn]
