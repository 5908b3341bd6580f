"""The recipe: everything a run depends on, validated before anything is loaded."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fullfed.config_data import DataTable
from fullfed.config_privacy import PrivacyTable
from fullfed.config_values import NOT_BOTH, Bytes, Positive, PositiveFloat, RecipeTable, Source
from fullfed.errors import UserError
from fullfed.validation import describe_validation, keys_of


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is no device; take 'auto', 'cpu', 'cuda' or 'cuda:1'")
    return name


class ModelTable(RecipeTable):
    """The base model everybody holds.

    Attributes:
        path: a folder or hub name that transformers loads, or "builtin" for the embedded one.
        dtype: of the replicas, in training too.
        rounding: of updates too small for 16 bits: "master" keeps exact weights beside them, at 4
            more bytes a parameter; "stochastic" rounds bfloat16 up or down at random, alike
            everywhere.
        device: where to compute; "auto" is a GPU if there is one.
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


class FederationTable(RecipeTable):
    """Rounds, cohorts, and the seed that everything random flows from.

    Attributes:
        rounds: how often a cohort trains and the server combines what it reports.
        clients_per_round: how many clients train in a round.
        seed: what everything random follows from.
        snapshot_every (rounds): between snapshots, which make replays of the log shorter.
        keep_updates: which updates the run's folder keeps. Without those from before the newest
            snapshot it stays small where updates are as large as the model; then the run can be
            verified, taken back and exported from there on only, and the best model is kept apart.
    """

    rounds: Positive
    clients_per_round: Positive
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    snapshot_every: Positive = 10
    keep_updates: Literal["all", "since-snapshot"] = "all"


# Rates at which others tune whole pretrained models of 0.1 to 10 billion parameters: 1e-5 to 5e-5
# where a step is about as long as the rate, as Adam's and its kin's (Muon's steps are given the
# size of AdamW's); Adafactor's is a share of a tensor's own size. All others begin at 0.1.
_RATES = {
    **dict.fromkeys(("adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "muon"), 2e-5),
    "adafactor": 1e-3,
}


def _usual_rate(said: dict[str, Any]) -> float:
    """The rate of a table that says none; ``said``: its keys before the rate."""
    return _RATES.get(said.get("optimizer", "").lower(), 0.1)


class LocalTable(RecipeTable):
    """A client's work in one visit: ``steps`` batches, or ``epochs`` over its samples (1 if neither
    is said). Methods without gradients take the rate, the duration, the sizes of batches and the
    precision only.

    Attributes:
        optimizer: one of torch.optim's, in capitals or not.
        learning_rate: of the optimizer; what is usual for it where none is given.
        schedule: of the rate from round to round: it stays, or falls to nothing after the last, in
            a line or half a cosine's wave.
        warmup_rounds (rounds): the first ones, in which the rate rises.
        warmup_steps (steps): of each visit, in which the rate rises to the round's.
        momentum: for optimizers that take one.
        weight_decay: as the optimizer takes it.
        arguments: what else the optimizer is called with.
        optimizer_state: whether the optimizer begins anew at every visit, or goes on from where
            the client's last visit (to the same block) ended.
        clip: the largest norm that gradients keep.
        clip_by: whether that is the norm of all of the model's together, or each tensor's own.
        steps: batches of a visit.
        epochs: of a visit, in place of steps.
        batch_size (samples): of a step.
        micro_batch_size (samples): of a batch, computed together; fewer need less memory, and the
            step is the same.
        precision: what float32 weights compute in; they and their steps stay float32. "bfloat16"
            is torch's autocast, "tf32" what matrix units of GPUs do with float32 (on a CPU it is
            float32).
    """

    optimizer: str = "sgd"
    learning_rate: PositiveFloat = Field(default_factory=_usual_rate)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    arguments: dict[str, Any] = Field(default_factory=dict)
    optimizer_state: Literal["reset", "kept"] = "reset"
    clip: PositiveFloat | None = 1.0
    clip_by: Literal["model", "tensor"] = "model"
    steps: Positive | None = None
    epochs: Positive | None = None
    batch_size: Positive = 4
    micro_batch_size: Positive | None = None
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

    def in_round(self, round: int, rounds: int) -> LocalTable:
        """The table with the learning rate that the schedule has for a round, from 0."""
        warmup = self.warmup_rounds
        share, progress = 1.0, (round - warmup) / max(rounds - warmup, 1)
        if round < warmup:
            share = (round + 1) / (warmup + 1)
        elif self.schedule == "linear":
            share = 1 - progress
        elif self.schedule == "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        return self.model_copy(update={"learning_rate": self.learning_rate * share})

    def warmup(self, step: int) -> float:
        """The share of the round's learning rate that a visit's step has, from 0."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class MemoryTable(RecipeTable):
    """What a client trades for memory in a visit; docs/memory.md has the prices.

    Attributes:
        optimizer_in_backward: whether each tensor steps as soon as its gradient is there, so that
            one gradient lives at a time; its norm can only be clipped by itself.
        checkpoint_activations: whether layers keep their inputs alone, and compute again in the
            backward pass.
        frozen: how what is not trained is held while a visit lasts.
        cache_inputs (bytes): for what comes into the first trained layer, such as "256MiB", so
            that later epochs do not compute the layers before it.
    """

    optimizer_in_backward: bool = False
    checkpoint_activations: bool = False
    frozen: Literal["exact", "int8", "int4"] = "exact"
    cache_inputs: Bytes = 0


Metric = Literal["loss", "rouge_l", "exact_match", "gsm8k"]


class EvaluationTable(RecipeTable):
    """What is measured on the held-out set: before the first round, every few, and after the last.

    Attributes:
        every (rounds): between measurements.
        metrics: what is measured.
        generation_samples (samples): for whose prompts answers are written, for metrics of texts.
        max_new_tokens (tokens): of an answer that is written, at most.
        batch_size (samples): of the longest may be as many tokens, padding included, as are
            computed together; that of a visit's batch (or micro-batch) where it is not said, so
            that measuring needs no more memory than a visit does.
        best_by: the metric by which a round's model is the best; the first of metrics where it is
            not said.
        patience (measurements): the run ends early when so many in a row have brought nothing
            better.
    """

    every: Positive = 1
    metrics: tuple[Metric, ...] = ("loss",)
    generation_samples: Positive = 100
    max_new_tokens: Positive = 64
    batch_size: Positive | None = None
    best_by: Metric | None = None
    patience: Positive | None = None

    @property
    def decides(self) -> str:
        """The metric by which a round's model is the best."""
        return self.best_by or next(iter(self.metrics), "loss")

    @model_validator(mode="after")
    def _decides_by_what_is_measured(self) -> EvaluationTable:
        if self.best_by is not None and self.best_by not in self.metrics:
            raise ValueError(f"best_by is one of metrics, and {self.best_by} is not among them")
        if self.patience is not None and not self.metrics:
            raise ValueError("patience needs a metric; name one in metrics")
        return self


class CheckTable(RecipeTable):
    """The held-out check: the server measures what each report does to the loss on samples of its
    own, and leaves out those that do harm (docs/aggregation.md).

    Attributes:
        data: the samples, as data.test; without it they are held out of the training data.
        samples (samples): of them, at random; two passes over so many for each report.
        patience (visits): a client whose reports did harm so often in a row is left out from then
            on.
        trusted: clients, by name, whose reports are let in whatever they do; may be changed while
            a run lasts.
    """

    data: Source | None = None
    samples: Positive = 64
    patience: Positive = 3
    trusted: tuple[str, ...] = ()


class SimulationTable(RecipeTable):
    """What simulated clients suffer, and in how many processes; real ones see to that themselves.

    Attributes:
        failures (share): of visits, drawn afresh each round, that end without a report.
        workers: processes that make visits at once, each with a model and a visit's memory of its
            own; GPUs are dealt out in turn. With 1 the run's own process makes them.
        threads: in which each process computes; where it is not said, each worker's share of those
            that torch takes. The last bits of what clients send depend on it.
    """

    failures: Annotated[float, Field(ge=0, lt=1)] = 0.0
    workers: Positive = 1
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None


class DeploymentTable(RecipeTable):
    """How long the server of a real federation waits in a round, and for how many.

    A round ends when the whole cohort has reported, and at the latest ``deadline_seconds`` after
    it began, if at least the share ``quorum`` of the cohort has reported by then.

    Attributes:
        quorum (share): of a cohort, whose reports are enough.
        deadline_seconds (seconds): from the beginning of a round on.
    """

    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    deadline_seconds: PositiveFloat = 3600.0


class NamedTable(BaseModel):
    """The name of a method, codec, rule or trainer, and the options it validates itself.

    Attributes:
        name: as ``fullfed methods`` lists it.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Recipe(RecipeTable):
    """One experiment. ``load_recipe`` reads it from TOML or nested tables; it cannot be changed,
    but ``load_recipe(recipe, ["federation.rounds=3"])`` makes another of it.

    Attributes:
        model: the base model everybody holds.
        data: where examples come from, how they are worded and who holds them.
        federation: rounds, cohorts and the seed.
        method: how clients train and what they send.
        codec: how changes become bytes; the method's own default where it is not said.
        trainer: what trains in visits in the place of a method's own gradient steps.
        aggregation: how the server combines reports; the codec's own default where it is not said.
        check: the held-out check of reports; none where it is not said.
        privacy: who may learn what; the server sees every report where it is not said.
        local: a client's work in one visit.
        memory: what a client trades for memory.
        evaluation: what is measured, and when.
        simulation: what simulated clients suffer, and in how many processes.
        deployment: how long the server of a real federation waits.

    Examples:
        >>> recipe = fullfed.load_recipe("first.toml")
        >>> recipe.method.name, recipe.federation.rounds, recipe.local.batch_size
        ('ferret', 2, 4)
    """

    model: ModelTable
    data: DataTable
    federation: FederationTable
    method: NamedTable
    codec: NamedTable | None = None
    trainer: NamedTable | None = None
    aggregation: NamedTable | None = None
    check: CheckTable | None = None
    privacy: PrivacyTable | None = None
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
    def _check_fits(self) -> Recipe:
        hidden = self.privacy is not None and self.privacy.only_sums
        if self.check is not None and hidden:
            raise ValueError(
                "check looks at each report alone, and with privacy only their sum is known; leave "
                "one of the two tables out"
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


# The rule of a recipe of a sketch that names none, as a run's own recipe spells it out.
SKETCH_RULE = {"name": "clipped-mean", "weights": "samples"}


def parse_recipe(tables: dict[str, Any], source: str) -> Recipe:
    """The recipe in nested tables; ``source`` is named in errors.

    Raises:
        UserError: a key is unknown or missing, or a value is of the wrong kind or range.
    """
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise UserError(f"{source}: {describe_validation(error, keys=keys_of(Recipe))}.") from error
