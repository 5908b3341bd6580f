"""The card of an exported model (README.md): what it is and how it came about.

It is made to be handed on: it names no path of this machine, no client, and no record.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from yaml import YAMLError

from fullfed.config import Recipe
from fullfed.data.examples import Example
from fullfed.data.wording import AlpacaWording
from fullfed.evaluation.metrics import METRICS
from fullfed.hub import is_hub_name, is_reachable
from fullfed.quickstart import MODEL_PATH
from fullfed.runs.budget import privacy_text
from fullfed.runs.folder import RunFolder
from fullfed.runs.history import results
from fullfed.runs.loading import BUILTIN
from fullfed.units import bytes_text

UNKNOWN = "unknown"  # the hub's word for a licence that is not said


def model_card(
    folder: RunFolder,
    title: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    version: int | None = None,
) -> str:
    """A run's card in Markdown, its facts for the hub on top in YAML.

    Args:
        title: the model's name.
        model: the exported one. tokenizer: with the chat template that the run trained on.
        version: the model's, after so many rounds; None for the newest.

    Raises:
        UserError: there is no run here, or its files are damaged.
    """
    recipe, base, records = folder.recipe(), folder.base(), folder.metrics()[:version]
    facts = _facts(recipe)
    rounds = f"{len(records):,} round" + "s" * (len(records) != 1)
    sections = {
        "Use": _use(title, tokenizer),
        "Training": _training(recipe, records, model),
        "Data": _data(recipe, folder.clients()),
        "Results": _results(recipe, base, records),
        "Privacy": [
            "The clients' records stayed with the clients. No differential privacy was applied: "
            "nothing bounds what the model may repeat of them."
        ],
        **({"Privacy": told} if (told := privacy_text(recipe.privacy, records)) else {}),
        "Licence": _licence(facts),
        "Reproduction": _reproduction(recipe, base, records),
    }
    lines = ["---", facts.to_yaml().rstrip(), "---", "", f"# {title}", ""]
    lines.append(f"{_base(recipe, model)}, after {rounds} of federated fine-tuning with fullfed.")
    for heading, text in sections.items():
        lines += ["", f"## {heading}", "", *text]
    return "\n".join(lines) + "\n"


def _facts(recipe: Recipe) -> ModelCardData:
    path, licence = recipe.model.path, _base_licence(recipe.model.path)
    names = [source.partition("@")[0].partition(":")[0] for source in _public_sources(recipe)]
    return ModelCardData(
        base_model=path if _on_hub(path) else None,
        datasets=names or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["fullfed", "federated-learning", recipe.method.name],
        license=licence.get("license", UNKNOWN),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )


def _public_sources(recipe: Recipe) -> list[str]:
    """The training data that are on the hub."""
    paths = (source.path for source in recipe.data.training_sources())
    return [path for path in paths if path and _on_hub(path)]


def _on_hub(source: str) -> bool:
    return source != BUILTIN and not Path(source).exists() and is_hub_name(source)


def _base_licence(path: str) -> dict[str, str]:
    """What the base model's own card says of its licence."""
    try:
        said = metadata_load(_base_card(path)) or {}
    except (FileNotFoundError, EntryNotFoundError, HfHubHTTPError, ValueError, YAMLError):
        said = {}  # there is none, or none that can be read: the card says that it is unknown
    keys = ("license", "license_name", "license_link")
    return {key: said[key] for key in keys if isinstance(said.get(key), str)}


def _base_card(path: str) -> Path:
    if path == BUILTIN:
        return Path(MODEL_PATH) / "README.md"
    if _on_hub(path) and is_reachable():
        return Path(hf_hub_download(path, "README.md"))
    return Path(path) / "README.md"


def _base(recipe: Recipe, model: PreTrainedModel) -> str:
    size = f"{model.num_parameters():,} parameters"
    if recipe.model.path == BUILTIN:
        return f"The small model that comes with fullfed ({size})"
    if _on_hub(recipe.model.path):
        return f"[{recipe.model.path}](https://huggingface.co/{recipe.model.path}) ({size})"
    return f"A {type(model).__name__} ({size})"


def _use(title: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if tokenizer.chat_template:
        return [
            "```python",
            "from transformers import pipeline",
            "",
            f'chat = pipeline("text-generation", model="{title}")',
            'answer = chat([{"role": "user", "content": "..."}], max_new_tokens=128)',
            "```",
            "",
            "The tokenizer's chat template is the one that the model was fine-tuned on.",
        ]
    prompt = AlpacaWording.prompt(Example.single("...", "", ""))
    return ["The model was fine-tuned on prompts worded so:", "", "```", prompt.rstrip(), "```"]


def _training(
    recipe: Recipe, records: Sequence[Mapping[str, Any]], model: PreTrainedModel
) -> list[str]:
    federation, local = recipe.federation, recipe.local
    visit = f"{local.steps} steps" if local.steps else f"epochs: {local.epochs or 1},"
    up, down = (sum(record["bytes"][way] for record in records) for way in ("up", "down"))
    return _table(
        {
            "method": recipe.method.name,
            "rounds": f"{len(records):,}, with {federation.clients_per_round} clients each",
            "a visit": f"{visit} with batches of {local.batch_size}",
            "optimizer": f"{local.optimizer}, learning rate {local.learning_rate:g}",
            "bytes from clients": bytes_text(up),
            "bytes to clients": bytes_text(down),
            "weights": str(model.dtype).removeprefix("torch."),
        }
    )


def _data(recipe: Recipe, clients: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many clients and samples, and what of the data is public."""
    public = _public_sources(recipe)
    lines = [f"From the hub: {', '.join(public)}."] if public else []
    if recipe.data.train == BUILTIN:
        lines.append("Generated tasks that come with fullfed.")
    samples = [client["samples"] for client in clients if client.get("samples") is not None]
    if samples and len(samples) == len(clients):
        least, most = min(samples), max(samples)
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        lines.append(f"{len(clients):,} clients held {sum(samples):,} samples, {each} each.")
    elif clients:
        lines.append(f"{len(clients):,} clients held the samples.")
    return ["  \n".join(lines) or "Samples of the clients' own."]


def _results(
    recipe: Recipe, base: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[str]:
    found = results(base, records, recipe.evaluation.metrics)
    if not found:
        return ["Nothing was measured."]
    rows = ["| on the test set | base model | this model |", "|---|---:|---:|"]
    for one in found:
        metric, now = METRICS[one.metric], one.last[0] if one.last else None
        cells = ("–" if value is None else f"{value:.4f}" for value in (one.base, now))
        rows.append(f"| {metric.heading}, {metric.unit} | {' | '.join(cells)} |")
    measured = max((one.last[1] for one in found if one.last), default=0)
    return [*rows, "", f"This model was measured last after round {measured}."]


def _licence(facts: ModelCardData) -> list[str]:
    if facts.license == UNKNOWN:
        said = "The base model's folder does not say what its licence is."
    else:
        said = f"The base model's card says: {facts.license}."
    return [
        f"{said} A fine-tuned model is bound by the licence of its base and by what was agreed on "
        "for the data; see what both allow before you use it or hand it on."
    ]


def _reproduction(
    recipe: Recipe, base: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[str]:
    hashed = (r for r in reversed(records) if r["model_hash"])
    after: Iterator[tuple[str, str]] = (
        (f"model after round {r['round'] + 1}, SHA-256", f"`{r['model_hash']}`") for r in hashed
    )
    return _table(
        {
            "fullfed": importlib.metadata.version("fullfed"),
            "seed": str(recipe.federation.seed),
            "base model, SHA-256": f"`{base['model_hash']}`",
            **dict([found] if (found := next(after, None)) else []),
        }
    )


def _table(values: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]
