"""A commented recipe to begin with, made from a model and a source of data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fullfed.errors import UserError
from fullfed.evaluation.generation import context_length
from fullfed.methods.catalogue import METHODS
from fullfed.methods.entries import MethodEntry
from fullfed.methods.registration import load_plugins
from fullfed.preflight.survey import Survey, survey
from fullfed.recipe_file import load_recipe
from fullfed.runs.loading import load_blank

_REAL = 50_000_000  # parameters, from which on a model is tuned as pretrained language models are
_SAMPLES = 500  # of a test set, at most
_CLIENTS, _COHORT = 4, 8  # clients of random samples; clients of a round, at most
_LENGTH = 512  # tokens of a sample, at most
_COMPRESSION = 1000  # times fewer bytes than the model has
_LEAST_UPLOAD = 4096  # bytes


@dataclass(frozen=True)
class _Model:
    """What a draft needs to know of a model."""

    path: str
    parameters: int
    context: int | None
    chat: bool

    @property
    def real(self) -> bool:
        return self.parameters >= _REAL


def write_draft(model: str, data: str, out: Path, method: str = "ferret") -> Survey:
    """Write a recipe for a model and a source of data; return what the source has.

    Args:
        model, data: as a recipe names them.
        out: a new file.
        method: of ``fullfed methods``.

    Raises:
        UserError: there is no such model, data or method, or the file is there already.
    """
    if out.exists():
        raise UserError(f"{out}: there is a file here already; name a new one with --out.")
    load_plugins()
    if method not in METHODS:
        raise UserError(f"method.name: there is no method {method!r}; see fullfed methods.")
    found = survey(data)
    blank, tokenizer = load_blank(model)
    parameters = sum(parameter.numel() for parameter in blank.parameters())
    chat = tokenizer.chat_template is not None
    text = _recipe(_Model(model, parameters, context_length(blank), chat), data, found, method, out)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{out}: the recipe cannot be written ({error.strerror}).") from error
    load_recipe(out)
    return found


def _recipe(model: _Model, data: str, found: Survey, method: str, out: Path) -> str:
    tested = max(min(found.samples // 10, _SAMPLES), 1)
    if found.partition == "iid":
        clients = max(min(_CLIENTS, (found.samples - tested) // 4), 1)
    else:
        clients = found.clients
    # In a cycle of blocks one client trains at a time, as published.
    cohort = 1 if "cycle" in METHODS[method].composition else min(clients, _COHORT)
    parts = [
        f"# {METHODS[method].title} on {model.path}, {model.parameters:,} parameters.",
        "#",
        f"#   fullfed check {out}      what it would do: data, bytes, memory, time",
        f"#   fullfed run {out}",
        "#",
        "# Every key is in docs/recipe.md. `fullfed schema > recipe.schema.json` and a first line",
        "# `#:schema ./recipe.schema.json` here let editors complete keys and mark mistakes.",
        "",
        "[model]",
        f"path = {json.dumps(model.path)}",
        _line('dtype = "float32"', "of the weights that everybody holds"),
        "",
        *_data(model, data, found, tested, clients),
        "",
        "[federation]",
        "rounds = 10",
        _line(f"clients_per_round = {cohort}", f"of {clients}"),
        _line("seed = 0", "everything random follows from it"),
        "",
        *_local(model, method),
        "",
        *_method(model, method, cohort),
        "",
        "[evaluation]",
        _line("every = 5", "rounds; the base model and the last one are always measured"),
        _line('metrics = ["loss"]', 'of answers there are "exact_match", "gsm8k", "rouge_l"'),
    ]
    return "\n".join(parts) + "\n"


def _line(key: str, said: str) -> str:
    """A key with a comment."""
    return f"{key:<27} # {said}"


def _data(model: _Model, data: str, found: Survey, tested: int, clients: int) -> list[str]:
    lines = ["[data]", _line(f"train = {json.dumps(data)}", found.format or "no known format")]
    if found.samples:
        lines[-1] += f", {found.samples:,} samples"
        lines.append(_line(f"test_samples = {tested}", "held out at random; or test = a source"))
    if not found.format:
        lines += [
            '# Name the field of the question and that of the answer; or take text = "FIELD", or',
            '# messages = "FIELD" of conversations. The first record has',
            f"# {', '.join(found.ignore)}.",
            'columns = { prompt = "?", completion = "?" }',
        ]
    elif found.ignore:
        lines += [
            "# Fields that are not learned from; one that belongs to the question is named so:",
            '# columns = { context = "FIELD" }',
            f"ignore = {json.dumps(list(found.ignore))}",
        ]
    lines.append(_line(f'partition = "{found.partition}"', "what makes a client"))
    if found.partition == "iid":
        lines.append(f"clients = {clients}")
    for name, count in found.labels.items():
        lines.append(_line(f'# partition = "{name}"', f"would make {count} clients"))
    for name, count in found.fields.items():
        lines.append(_line('# partition = "column"', f"with by = {json.dumps(name)}: {count}"))
    worded = "the tokenizer's own" if model.chat else "Alpaca's; the tokenizer has none"
    lines.append(_line('template = "auto"', worded))
    if model.context is None or model.context > _LENGTH:
        lines.append(_line(f"max_length = {_LENGTH}", "tokens; longer prompts lose their middle"))
    return lines


def _rate(model: _Model, entry: MethodEntry) -> tuple[str, float, str]:
    """(optimizer, learning rate, why)."""
    if entry.learning_rate is not None:
        return "sgd", 1e-6 if model.real else entry.learning_rate, "without gradients, small steps"
    if entry.composition.startswith("LoRA"):
        return "adamw", 3e-4, "adapters want more than whole matrices do"
    if model.real:
        return "adamw", 2e-5, "usual for a pretrained model"
    return "sgd", 0.3, "a small model learns at a large rate"


def _local(model: _Model, method: str) -> list[str]:
    optimizer, rate, why = _rate(model, METHODS[method])
    lines = [
        "[local]",
        f'optimizer = "{optimizer}"',
        _line(f"learning_rate = {rate}", why),
        _line("steps = 10", "batches a visit"),
        _line("batch_size = 4", "micro_batch_size = 1 takes less memory for the same steps"),
    ]
    if model.real:
        lines.append(_line('precision = "bfloat16"', "what steps compute in; weights are float32"))
    return lines


def _method(model: _Model, method: str, cohort: int) -> list[str]:
    lines = ["[method]", _line(f"name = {json.dumps(method)}", f"fullfed methods {method}")]
    if method == "ferret":
        upload = max(4 * model.parameters // _COMPRESSION, _LEAST_UPLOAD)
        lines.append(_line(f"upload = {upload}", "bytes of a client in a round"))
    if method == "fedbuff":
        # As many reports as clients train at a time would be rounds that wait for all of them.
        lines.append(_line(f"buffer = {max(cohort // 2, 1)}", "reports that make an update"))
    return lines
