"""The recipe: everything a run depends on, validated before anything is loaded."""

from __future__ import annotations

import datetime
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fullfed.errors import UserError
from fullfed.validation import describe_validation, keys_of

NOT_BOTH = "not both (on the command line --set KEY= leaves a key of the recipe out)"
_UNITS = {
    **{"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
}


def parse_bytes(amount: str | int) -> int:
    """The number of bytes in a text like "32KiB", in capitals or not, or the number itself.

    Raises:
        ValueError: it is neither a number nor one with a unit, or is negative.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | str):
        raise ValueError(f"{str(amount)[:40]} is not a number of bytes such as 4096 or '32KiB'")
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]i?b|b|)\s*", str(amount).lower())
    if match is None:
        raise ValueError(f"{amount!r} is not a number of bytes such as 4096 or '32KiB'")
    return int(float(match[1]) * _UNITS[match[2] or "b"])


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is no device; take 'auto', 'cpu', 'cuda' or 'cuda:1'")
    return name


Positive = Annotated[int, Field(gt=0)]
Source = Annotated[str, AfterValidator(os.path.expanduser)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0), BeforeValidator(parse_bytes)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelTable(_Table):
    """The base model everybody holds.

    path: a folder or hub name that transformers loads, or "builtin" for the embedded one.
    dtype: of the replicas, in training too. device: "auto" is a GPU if there is one.
    rounding: of updates too small for 16 bits: "master" keeps exact weights beside them, at 4 more
    bytes a parameter; "stochastic" rounds bfloat16 up or down at random, alike everywhere.
    """

    path: Source
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    rounding: Literal["master", "stochastic"] = "master"
    device: Annotated[str, AfterValidator(_check_device)] = "auto"

    @model_validator(mode="after")
    def _rounding_fits(self) -> ModelTable:
        if self.rounding == "stochastic" and self.dtype != "bfloat16":
            raise ValueError(f"rounding = 'stochastic' is for bfloat16, not {self.dtype}")
        return self


class ColumnsTable(_Table):
    """What a record's field is called that holds the prompt, its context, the completion (the
    answer that is trained on), the list of all accepted answers, the task's and the category's
    name; where this is not said, the record's format says it."""

    prompt: str | None = None
    context: str | None = None
    completion: str | None = None
    references: str | None = None
    task: str | None = None
    category: str | None = None


class DataTable(_Table):
    """Where examples come from, how they are worded and who holds them.

    train, test: a file, a folder, a hub name, or "builtin". Without ``test`` the evaluation set
    is held out of ``train``: the category named by ``hold_out``, or ``test_samples`` at random.
    columns, ignore: of records; a field that has text in it and is neither in their format nor in
    one of these is refused. date: what a chat template that writes the date is told; the day a run
    begins on, which its folder records, where it is not said.
    """

    train: Source
    test: Source | None = None
    columns: ColumnsTable = ColumnsTable()
    ignore: tuple[str, ...] = ()
    hold_out: str | None = None
    template: Literal["auto", "alpaca", "chat"] = "auto"
    max_length: Positive | None = None
    date: datetime.date | None = None
    partition: Literal["task", "category", "dirichlet", "iid"] = "task"
    clients: Positive | None = None
    alpha: PositiveFloat = 0.5
    min_samples: Positive = 1
    test_samples: Positive | None = None


class FederationTable(_Table):
    """Rounds, cohorts, and the seed that everything random flows from."""

    rounds: Positive
    clients_per_round: Positive
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    snapshot_every: Positive = 10


class LocalTable(_Table):
    """A client's work in one visit: ``steps`` batches, or ``epochs`` over its samples (1 if neither
    is said).

    optimizer: one of torch.optim's, in capitals or not. learning_rate, momentum, weight_decay,
    arguments: what it is called with; momentum is for those that take one. clip: the largest norm
    that gradients keep. clip_by: of all of the model's together, or of each tensor's own. Methods
    without gradients take the learning rate, the duration and the batch size only. precision: what
    float32 weights compute in; they and their steps stay float32. "bfloat16" is torch's autocast,
    "tf32" what matrix units of GPUs do with float32 (on a CPU it is float32).
    """

    optimizer: str = "sgd"
    learning_rate: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    arguments: dict[str, Any] = {}
    clip: PositiveFloat | None = 1.0
    clip_by: Literal["model", "tensor"] = "model"
    steps: Positive | None = None
    epochs: Positive | None = None
    batch_size: Positive = 4
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_duration(self) -> LocalTable:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"give steps or epochs, {NOT_BOTH}")
        return self

    def batches(self, samples: int) -> int:
        """How many batches a client with ``samples`` samples trains on."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 1) * -(-samples // self.batch_size)


class MemoryTable(_Table):
    """What a client trades for memory in a visit; docs/memory.md has the prices.

    optimizer_in_backward: each tensor steps as soon as its gradient is there, so that one gradient
    lives at a time; its norm can only be clipped by itself. checkpoint_activations: layers keep
    their inputs and compute again in the backward pass. frozen: how what is not trained is held
    while a visit lasts. cache_inputs: bytes for what comes into the first trained layer, such as
    "256MiB", so that later epochs do not compute the layers before it.
    """

    optimizer_in_backward: bool = False
    checkpoint_activations: bool = False
    frozen: Literal["exact", "int8", "int4"] = "exact"
    cache_inputs: Bytes = 0


class EvaluationTable(_Table):
    """What is measured on the held-out set: before, every ``every`` rounds, and after.

    batch_size: as many tokens are computed together, padding included, as so many of the longest
    samples have; ``local.batch_size`` where it is not said, so that measuring needs no more memory
    than a visit does.
    """

    every: Positive = 1
    metrics: tuple[Literal["loss", "rouge_l", "exact_match", "gsm8k"], ...] = ("loss",)
    generation_samples: Positive = 100
    max_new_tokens: Positive = 64
    batch_size: Positive | None = None


class SimulationTable(_Table):
    """What simulated clients suffer; real ones see to that themselves.

    failures: the share of visits, drawn afresh each round, that end without a report.
    """

    failures: Annotated[float, Field(ge=0, lt=1)] = 0.0


class DeploymentTable(_Table):
    """How long the server of a real federation waits in a round, and for how many.

    A round ends when the whole cohort has reported, and at the latest ``deadline_seconds`` after
    it began, if at least the share ``quorum`` of the cohort has reported by then.
    """

    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    deadline_seconds: PositiveFloat = 3600.0


class NamedTable(BaseModel):
    """The name of a method, codec or aggregation rule, and the options it validates itself."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Recipe(_Table):
    """One experiment. ``load_recipe`` reads it from TOML.

    codec: how changes become bytes; None for the method's own default. aggregation: how the server
    combines reports.
    """

    model: ModelTable
    data: DataTable
    federation: FederationTable
    method: NamedTable
    codec: NamedTable | None = None
    aggregation: NamedTable = NamedTable(name="mean")
    local: LocalTable = LocalTable()
    memory: MemoryTable = MemoryTable()
    evaluation: EvaluationTable = EvaluationTable()
    simulation: SimulationTable = SimulationTable()
    deployment: DeploymentTable = DeploymentTable()

    @property
    def evaluated_together(self) -> int:
        """The batch size of evaluation."""
        return self.evaluation.batch_size or self.local.batch_size

    @model_validator(mode="after")
    def _precision_fits(self) -> Recipe:
        if self.model.dtype != "float32" and self.local.precision != "float32":
            raise ValueError(
                f"local.precision is what float32 weights compute in, and model.dtype is "
                f"{self.model.dtype}; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _clipping_fits(self) -> Recipe:
        together = self.local.clip is not None and self.local.clip_by == "model"
        if self.memory.optimizer_in_backward and together:
            raise ValueError(
                "memory.optimizer_in_backward lets no two gradients live at once, which "
                "clipping by their common norm needs; set local.clip_by = 'tensor'"
            )
        return self


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a TOML file, with ``key=value`` overrides applied.

    Overriding ``method.name`` leaves the options and the codec of the recipe's own method behind,
    and so do ``codec.name`` and ``aggregation.name`` with options. ``key=`` leaves a key of the
    file out. The tables under ``compare`` are for ``fullfed compare`` alone.

    ``$NAME`` and ``${NAME}`` in the file's and the overrides' strings stand for environment
    variables; relative paths are relative to the folder the command runs in.

    Raises:
        UserError: the file is missing or not TOML, a key is unknown, a value is out of range.
    """
    tables = load_tables(path, overrides)
    tables.pop("compare", None)
    return parse_recipe(expand_variables(tables), str(path))


def load_tables(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The tables of a recipe's file, overrides applied, neither expanded nor validated.

    Raises:
        UserError: the file is missing or not TOML, or an override does not fit it.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: the recipe cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: this is not valid TOML ({error}).") from error
    for override in overrides or []:
        key, _, name = override.partition("=")
        if key.strip() == "method.name":
            change_method(tables, str(_toml_value(name.strip())))
    for override in overrides or []:
        key, _, name = override.partition("=")
        table = key.strip().removesuffix(".name")
        if table in ("codec", "aggregation") and key.strip() != table:
            rename(tables, table, str(_toml_value(name.strip())))
    for override in overrides or []:
        _apply_override(tables, override)
    return tables


def parse_recipe(tables: dict[str, Any], source: str) -> Recipe:
    """The recipe in nested tables; ``source`` is named in errors.

    Raises:
        UserError: a key is unknown or missing, or a value is of the wrong kind or range.
    """
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise UserError(f"{source}: {describe_validation(error, keys=keys_of(Recipe))}.") from error


def rename(tables: dict[str, Any], table: str, name: str) -> None:
    """Leave the options of another method, codec or rule behind: they mean nothing to this one."""
    if tables.get(table, {}).get("name") != name:
        tables[table] = {"name": name}


def change_method(tables: dict[str, Any], name: str) -> None:
    """Leave another method's options and its codec behind: the new one has its own."""
    if tables.get("method", {}).get("name") != name:
        tables.pop("codec", None)
    rename(tables, "method", name)


def _apply_override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: write it as key=value, such as federation.rounds=3.")
    *parents, last = key.strip().split(".")
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override}: {parent!r} is not a table of the recipe.")
    if text.strip():
        table[last] = _toml_value(text.strip())
    else:
        table.pop(last, None)


def _toml_value(text: str) -> Any:
    """The text as a TOML value; what is not one is a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def expand_variables(value: Any) -> Any:
    """The value with every string in it expanded.

    Raises:
        UserError: an environment variable is not set.
    """
    if isinstance(value, dict):
        return {key: expand_variables(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item) for item in value]
    return _expanded(value) if isinstance(value, str) else value


def _expanded(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"{text}: the environment variable {name} is not set; set it.")
        return os.environ[name]

    return re.sub(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", replace, text)
