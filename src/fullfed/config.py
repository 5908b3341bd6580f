"""The recipe: everything a run depends on, validated before anything is loaded."""

from __future__ import annotations

import datetime
import math
import os
import re
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


TEMPLATES = ("auto", "chat", "alpaca")  # by name


def _check_template(template: str) -> str:
    if not (template in TEMPLATES or template.endswith(".jinja") or is_jinja(template)):
        raise ValueError(
            f"{template[:40]!r} is no template; take 'auto', 'chat', 'alpaca' or a .jinja file"
        )
    return template


def is_jinja(template: str) -> bool:
    """Whether a template is written out, rather than named."""
    return "{{" in template or "{%" in template


def _check_source_name(name: str) -> str:
    if not name.strip() or "/" in name:
        raise ValueError(f"{name!r} is no source's name; take one without slashes")
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
    """What a record's fields are called, where the record's format does not say it.

    prompt, context, completion: what is asked, what it is about, and the answer that is trained on;
    texts, or lists of messages. messages: a whole conversation. text: what is learned as it is.
    chosen, rejected: two answers, of which the first is liked better. system: what the assistant is
    told to be. history: pairs of earlier questions and answers. tools: what the assistant may call.
    references: the list of all accepted answers. task, category: their names.
    """

    prompt: str | None = None
    context: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    references: str | None = None
    task: str | None = None
    category: str | None = None


class SourceTable(_Table):
    """One of several sources of training data: its name, where it is (as ``data.train``), and what
    is said of its records' fields, where it is not what the table ``data`` says."""

    name: Annotated[str, AfterValidator(_check_source_name)]
    path: Source
    columns: ColumnsTable | None = None
    ignore: tuple[str, ...] | None = None


class DataTable(_Table):
    """Where examples come from, how they are worded and who holds them.

    train, test: a file, a folder, a pattern of file names, a hub name, or "builtin". sources:
    several of them in place of ``train``. Without ``test`` the evaluation set is held out of the
    training data: the category named by ``hold_out``, or ``test_samples`` at random.
    columns, ignore: of records; a field that has text in it and is neither in their format nor in
    one of these is refused. template: "chat" is the tokenizer's own chat template, "alpaca"
    Stanford Alpaca's, "auto" the first where there is one; or a file of a chat template in Jinja
    (.jinja), or its content. answers: which of a conversation's are learned. date: what a chat
    template that writes the date is told; the day a run begins on, which its folder records, where
    it is not said. by: the field whose values are the clients of the partition "column".
    clients_per_source: into how many clients the partition "source" divides each.
    """

    train: Source | None = None
    sources: Annotated[tuple[SourceTable, ...], Field(min_length=1)] | None = None
    test: Source | None = None
    columns: ColumnsTable = ColumnsTable()
    ignore: tuple[str, ...] = ()
    hold_out: str | None = None
    template: Annotated[str, AfterValidator(_check_template)] = "auto"
    answers: Literal["all", "last"] = "all"
    max_length: Positive | None = None
    date: datetime.date | None = None
    partition: Literal[
        "task", "category", "file", "folder", "column", "source", "dirichlet", "quantity", "iid"
    ] = "task"
    by: str | None = None
    clients_per_source: Positive | None = None
    clients: Positive | None = None
    alpha: PositiveFloat = 0.5
    min_samples: Positive = 1
    test_samples: Positive | None = None

    @model_validator(mode="after")
    def _one_place(self) -> DataTable:
        if self.train is not None and self.sources is not None:
            raise ValueError(f"give train or [[data.sources]], {NOT_BOTH}")
        if self.train is None and self.sources is None:
            raise ValueError("the key 'data.train' is missing; add it, or [[data.sources]]")
        names = [source.name for source in self.sources or ()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two of the sources are called {twice!r}; rename one")
        return self

    @model_validator(mode="after")
    def _partition_fits(self) -> DataTable:
        if self.partition == "column" and self.by is None:
            raise ValueError(
                "partition = 'column' needs the field that tells clients apart; add by"
            )
        if self.partition == "source" and self.sources is None:
            raise ValueError("partition = 'source' makes clients of [[data.sources]]; add them")
        for key, kind in (("by", "column"), ("clients_per_source", "source")):
            if getattr(self, key) is not None and self.partition != kind:
                raise ValueError(
                    f"{key} is for partition = '{kind}', not '{self.partition}'; leave it out"
                )
        return self

    def training_sources(self) -> tuple[SourceTable, ...]:
        """Where training data come from, each with its columns and what it ignores.

        The one source of ``train`` has no name.
        """
        of_all = {"columns": self.columns, "ignore": self.ignore}
        if self.sources is None:
            unnamed = {"name": "", "path": self.train, **of_all}
            return (SourceTable.model_construct(None, **unnamed),)
        return tuple(
            one.model_copy(update={k: v for k, v in of_all.items() if getattr(one, k) is None})
            for one in self.sources
        )


class FederationTable(_Table):
    """Rounds, cohorts, and the seed that everything random flows from."""

    rounds: Positive
    clients_per_round: Positive
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    snapshot_every: Positive = 10


# Rates at which others tune whole pretrained models of 0.1 to 10 billion parameters: 1e-5 to 5e-5
# where a step is about as long as the rate, as Adam's and its kin's (Muon's steps are given the
# size of AdamW's); Adafactor's is a share of a tensor's own size. All others begin at 0.1.
_RATES = {
    **dict.fromkeys(("adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "muon"), 2e-5),
    "adafactor": 1e-3,
}


class LocalTable(_Table):
    """A client's work in one visit: ``steps`` batches, or ``epochs`` over its samples (1 if neither
    is said).

    optimizer: one of torch.optim's, in capitals or not. learning_rate, momentum, weight_decay,
    arguments: what it is called with; the rate's default depends on the optimizer, momentum is for
    those that take one. schedule: the rate of the first round falls to nothing after the last, in a
    line or half a cosine's wave. warmup_steps: of each visit, in which the rate rises to the
    round's. optimizer_state: whether the optimizer begins anew at every visit, or goes on from
    where the client's last visit (to the same block) ended. clip: the largest norm that gradients
    keep. clip_by: of all of the model's together, or of each tensor's own.
    micro_batch_size: samples of a batch that are computed together; fewer need less memory, and the
    step is the same. precision: what float32 weights compute in; they and their steps stay float32.
    "bfloat16" is torch's autocast, "tf32" what matrix units of GPUs do with float32 (on a CPU it is
    float32). Methods without gradients take the rate, the duration, the sizes of batches and the
    precision only.
    """

    optimizer: str = "sgd"
    learning_rate: PositiveFloat = 0.1  # _usual_rate has others
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    arguments: dict[str, Any] = {}
    optimizer_state: Literal["reset", "kept"] = "reset"
    clip: PositiveFloat | None = 1.0
    clip_by: Literal["model", "tensor"] = "model"
    steps: Positive | None = None
    epochs: Positive | None = None
    batch_size: Positive = 4
    micro_batch_size: Positive | None = None
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _usual_rate(cls, table: Any) -> Any:
        if not isinstance(table, dict) or "learning_rate" in table:
            return table
        rate = _RATES.get(str(table.get("optimizer")).lower())
        return table if rate is None else {**table, "learning_rate": rate}

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

    def in_round(self, round: int, rounds: int) -> LocalTable:
        """The table with the learning rate that the schedule has for a round, from 0."""
        share = 1.0
        if self.schedule == "linear":
            share = 1 - round / rounds
        if self.schedule == "cosine":
            share = (1 + math.cos(math.pi * round / rounds)) / 2
        return self.model_copy(update={"learning_rate": self.learning_rate * share})

    def warmup(self, step: int) -> float:
        """The share of the round's learning rate that a visit's step has, from 0."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


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
    samples have; those of a visit's batch (or micro-batch) where it is not said, so that measuring
    needs no more memory than a visit does.
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
        local = self.local
        return self.evaluation.batch_size or local.micro_batch_size or local.batch_size

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
        if self.memory.optimizer_in_backward and self.local.micro_batch_size is not None:
            raise ValueError(
                "memory.optimizer_in_backward steps as soon as a gradient is there, and "
                "local.micro_batch_size adds several up; leave one of the two out"
            )
        return self


def parse_recipe(tables: dict[str, Any], source: str) -> Recipe:
    """The recipe in nested tables; ``source`` is named in errors.

    Raises:
        UserError: a key is unknown or missing, or a value is of the wrong kind or range.
    """
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise UserError(f"{source}: {describe_validation(error, keys=keys_of(Recipe))}.") from error
