"""Tiny models of every causal architecture of the installed transformers, through all that we do.

    python tests/trials/architectures.py [--write docs/results/architectures.md] [NAME ...]

Each is saved and loaded, its loss compared with the model's own, trained for a round of Ferret and
for one of FedCyBGD with cached inputs and checkpointed activations, exported and loaded again. What
is refused, and why, is a row as well; anything but a refusal in a sentence is a fault, of which the
exit code tells.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it

from fullfed.config import Recipe
from fullfed.data.batches import collate
from fullfed.errors import UserError
from fullfed.quickstart import MODEL_PATH
from fullfed.runs import run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_model, read_data, tokenize_data
from fullfed.runs.replay import replay
from fullfed.training.loss import answer_loss_value
from runs.small import recipe, write_data

# Sizes, by every name that configurations have for them; each takes those that it has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim"), 32),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "decoder_layers"), 2
    ),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "dff"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "moe_num_experts_per_tok"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": None,  # the vocabulary's
    "n_group": 1,
    "topk_group": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "state_size": 8,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
# Their latent attention has a key and a value for every head.
_LATENT = (
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
    *("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"),
)
_ROBERTAS = (
    *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta"),
    "xlm-roberta-xl",
)
# What else some need, or must have for anything to be tried.
FURTHER: dict[str, dict[str, Any]] = {
    "mixtral": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
    "qwen2_moe": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    **{name: {"num_key_value_heads": 4} for name in _LATENT},
    **{name: {"is_decoder": True, "pad_token_id": 1} for name in _ROBERTAS},
    "modernbert-decoder": {"pad_token_id": 0},
    "bert": {"is_decoder": True, "pad_token_id": 0},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "laurel_rank": 4,
    },
}


class Row(NamedTuple):
    """What became of one architecture."""

    name: str
    parameters: int = 0
    ours: float | None = None
    own: float | None = None
    ferret: str = ""
    fedcybgd: str = ""
    exported: str = ""
    refused: str = ""
    untried: str = ""
    fault: str = ""


LARGEST = 3_000_000  # parameters; with more of them an architecture has not been made tiny


def tiny_config(name: str, tokens: int, further: dict[str, Any] | None = None) -> PretrainedConfig:
    """A configuration of hidden size 32 with two layers, and with what FURTHER or a caller says."""
    return _tiny(CONFIG_MAPPING[name], tokens, further or FURTHER.get(name, {}))


def _tiny(kind: type[PretrainedConfig], tokens: int, further: dict[str, Any]) -> PretrainedConfig:
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    fields |= set(kind.attribute_map)
    sizes = SIZES | {"vocab_size": tokens, "vocab_size_per_layer_input": tokens}
    given = {key: value for key, value in sizes.items() if key in fields}
    # A name that stands for another one is that one.
    given = {kind.attribute_map.get(key, key): value for key, value in given.items()}
    given |= {
        key: _tiny(part, tokens, {}).to_dict()
        for key, part in kind.sub_configs.items()
        if part is not AutoConfig
    }
    return kind(**given | {"bos_token_id": 0, "eos_token_id": 1} | further)


def trial(name: str, folder: Path) -> Row:
    """All of it for one architecture; what is no refusal is raised."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    config = tiny_config(name, len(tokenizer))
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        return Row(name, size, untried="not made tiny here")
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_data(folder / "train.jsonl")
    row = Row(name, sum(p.numel() for p in made.parameters()))
    try:
        model, tokenizer = load_model(str(folder / "model"))
        recipe = _recipe(folder, {"name": "ferret"})
        data = tokenize_data(recipe, read_data(recipe), model, tokenizer)
        batch = collate(data.test[:3])
        with torch.no_grad():
            own = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                labels=batch.labels,
                use_cache=False,
            ).loss
        row = row._replace(ours=answer_loss_value(model, batch), own=float(own))
        run.start(_recipe(folder, {"name": "ferret", "coordinates": 50}), folder / "ferret")
        row = row._replace(ferret="yes")
    except UserError as error:
        return row._replace(refused=str(error))
    for memory in ({"cache_inputs": "16MiB"}, {"checkpoint_activations": True}):
        try:
            cyclic = _recipe(folder, {"name": "fedcybgd", "order": "descending"}, memory)
            done = folder / f"fedcybgd-{next(iter(memory))}"
            run.start(cyclic, done)
        except UserError as error:
            row = row._replace(refused=f"{next(iter(memory))}: {error}")
    if not (done / "summary.json").exists():
        return row
    row = row._replace(fedcybgd="yes")
    export(RunFolder(done), folder / "exported")
    again = AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
    trained, _ = replay(RunFolder(done))
    with torch.no_grad():
        one, other = (
            m(input_ids=batch.input_ids, use_cache=False).logits for m in (again, trained)
        )
    assert torch.equal(one, other), "the exported model is another"
    return row._replace(exported="yes")


def _recipe(folder: Path, method: dict[str, Any], memory: dict[str, Any] | None = None) -> Recipe:
    return recipe(
        folder,
        method=method,
        federation={"rounds": 1, "clients_per_round": 1},
        local={"learning_rate": 0.01, "steps": 3, "batch_size": 8, "clip_by": "tensor"},
        evaluation={"every": 1},
        data={"max_length": 64},
        memory=memory or {},
    )


def rows(names: list[str]) -> Iterator[Row]:
    """A row for each name."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = trial(name, Path(folder).resolve())
            except Exception as error:  # a fault is what is looked for
                text = str(error).strip().splitlines() or [""]
                why = f"{type(error).__name__}: {text[0][:120]}"
                made = (Path(folder) / "model").exists()
                row = Row(name, fault=why) if made else Row(name, untried=f"cannot be made ({why})")
            yield row._replace(refused=row.refused.replace(f"{folder}/model: ", ""))


_HEAD = """# Architectures

    python tests/trials/architectures.py --write docs/results/architectures.md

Every causal language model of transformers {version} ({number} names), with random weights, hidden
size 32 and two layers, is saved, loaded, trained for a round of Ferret and for one of FedCyBGD
(with cached inputs, and with checkpointed activations), exported and loaded again; exported logits
equal the replica's bit for bit. "Loss" is ours of a batch of padded samples, "own" what the model
computes of it itself; losses of routers are in both where the configuration asks for them. The
models are random: the numbers say that two ways to compute them agree, and nothing else. "Without"
names the key that this model is refused with. The suite runs a few of these architectures.

{carried} are carried out, {refused} refused, {untried} not tried, {faults} fail otherwise.

## Carried out

| model type | parameters | loss | own | Ferret | FedCyBGD | exported | without |
|---|---|---|---|---|---|---|---|
"""


def table(found: list[Row]) -> str:
    """The page of results."""
    carried = [row for row in found if row.exported]
    refused = [row for row in found if row.refused and not row.exported]
    untried, faults = [row for row in found if row.untried], [row for row in found if row.fault]
    text = _HEAD.format(
        version=transformers.__version__,
        number=len(found),
        carried=len(carried),
        refused=len(refused),
        untried=len(untried),
        faults=len(faults),
    )
    for row in carried:
        key = row.refused.partition(":")[0]
        text += f"| {row.name} | {row.parameters:,} | {row.ours:.5f} | {row.own:.5f} "
        text += f"| {row.ferret} | {row.fedcybgd} | {row.exported} | {key} |\n"
    lists = (("Refused", refused), ("Not tried", untried), ("Failed", faults))
    for heading, listed in lists:
        if listed:
            text += f"\n## {heading}\n\n| model type | why |\n|---|---|\n"
            for row in listed:
                why = (row.refused or row.untried or row.fault).replace("|", "\\|")
                text += f"| {row.name} | {why} |\n"
    return text


def main() -> int:
    """Try the architectures named, or all; tell of each, write the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    found = []
    for row in rows(arguments.names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        found.append(row)
        print(*row, sep=" | ", flush=True)
    print(
        transformers.__version__, len(found), "tried", sum(bool(r.fault) for r in found), "faults"
    )
    if arguments.write:
        arguments.write.write_text(table(found), encoding="utf-8")
    return int(any(row.fault for row in found))


if __name__ == "__main__":
    sys.exit(main())
