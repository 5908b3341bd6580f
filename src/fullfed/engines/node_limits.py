"""What a node's owner lets a server ask of it: the table ``limits`` of node.toml.

Whoever runs a federation's server chooses method, data wording, steps, rate and batch, and sends
the model to train on. These limits are the node's own, and are checked there before anything is
loaded, wherever that can be. docs/flower.md says what each is for.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fullfed.config import LocalTable
from fullfed.config_privacy import PrivacyTable
from fullfed.config_values import Bytes, Positive, PositiveFloat
from fullfed.engines.node_messages import TaskSettings
from fullfed.errors import UserError

_AGAIN_SECONDS = 5.0  # between interruptions, should one be lost in a destructor
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RefusalError(UserError):
    """Why a node cannot take part in a run.

    Args:
        reason: for the node's operator.
        public: for the server; names no file and quotes no data.
    """

    def __init__(self, reason: str, public: str) -> None:
        super().__init__(reason)
        self.public = public


class LimitError(RefusalError):
    """A server asked for more than a limit of the node's allows; both sides are told the same."""

    def __init__(self, limit: str, said: str) -> None:
        text = f"limits.{limit} of the node: {said}"
        super().__init__(f"{text}; node.toml says what this node allows.", text)


class OverdueError(BaseException):
    """An order has taken too long.

    No Exception, so that nothing between takes it for an error of its own.
    """


class Limits(BaseModel):
    """What a server may ask of a node. The defaults protect a node whose owner has said nothing.

    methods: their names, or "all". trainers: the same, of those that train in the place of a
    method's own steps.
    recipes: the hashes of the settings that a run may have (``recipe_hash``; ``fullfed start`` and
    ``fullfed join`` print it), or "all".
    base_models: the hashes of the models that a run may begin with, or "all".
    submodels: whether a run may send the model to train on, where the node has no copy of its own
    to judge it by.
    fewest_samples_a_step: of the batch. The last batch of an epoch may be smaller.
    fewest_samples_a_visit: different samples that go into one report.
    most_samples_a_step, most_steps: of a visit; epochs count as the steps that they are.
    most_seconds: that an order may take, loading the model included.
    most_message_bytes: of an order, with all updates or the snapshot that it brings.
    most_cache_bytes: of ``memory.cache_inputs``.
    most_drift: how far from the base model a model may be that the node trains on: the norm of the
    difference of any tensor, as a share of the tensor's norm in the base (or of what that norm
    would be if the tensor had numbers of the model's mean size, if that is more; of ten times that
    where the tensor begins near zero).
    secure_sums: whether a run must add reports up so that its server sees none of them alone.
    most_epsilon: that a run's differential privacy may have, of whatever it protects; "any" where
    it need not have any. Then the node's own noise must do, and it counts on no secret sampling.
    most_delta: the same of delta, where there is a largest epsilon.
    most_runs: of which the node keeps its state on disk; the one not used for longest goes first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: Literal["all"] | tuple[str, ...] = "all"
    trainers: Literal["all"] | tuple[str, ...] = "all"
    recipes: Literal["all"] | tuple[Hash, ...] = "all"
    base_models: Literal["all"] | tuple[Hash, ...] = "all"
    submodels: bool = False
    fewest_samples_a_step: Positive = 2
    fewest_samples_a_visit: Positive = 16
    most_samples_a_step: Positive = 1024
    most_steps: Positive = 10_000
    most_seconds: PositiveFloat = 3600.0
    most_message_bytes: Bytes = 4 << 30
    most_cache_bytes: Bytes = 1 << 30
    most_drift: PositiveFloat = 0.5
    secure_sums: bool = False
    most_epsilon: Literal["any"] | PositiveFloat = "any"
    most_delta: PositiveFloat = 1e-3
    most_runs: Positive = 3

    def check_settings(self, told: TaskSettings, replica: bool) -> None:
        """
        Args:
            replica: whether the node is to hold one.

        Raises:
            LimitError: the run asks for what is not allowed.
        """
        recipe, local = told.recipe, told.recipe.local
        if not _among(recipe.method.name, self.methods):
            raise LimitError("methods", f"the method {recipe.method.name[:40]} is not among them")
        if recipe.trainer is not None and not _among(recipe.trainer.name, self.trainers):
            raise LimitError(
                "trainers", f"the trainer {recipe.trainer.name[:40]} is not among them"
            )
        if not _among(told.recipe_hash, self.recipes):
            raise LimitError("recipes", f"the run's recipe {told.recipe_hash} is not among them")
        if not _among(told.base_hash, self.base_models):
            raise LimitError("base_models", "the run's base model is not among them")
        self._check_privacy(recipe.privacy)
        if not replica and self.base_models != "all":
            raise LimitError("base_models", "a model that the run sends cannot be told from others")
        if not replica and not self.submodels:
            raise LimitError("submodels", "the run sends the model to train on")
        if local.batch_size < self.fewest_samples_a_step:
            raise self._size("fewest_samples_a_step", local.batch_size, "samples a step")
        if local.batch_size > self.most_samples_a_step:
            raise self._size("most_samples_a_step", local.batch_size, "samples a step")
        if local.steps is not None and local.steps > self.most_steps:
            raise self._size("most_steps", local.steps, "steps a visit")
        if recipe.memory.cache_inputs > self.most_cache_bytes:
            raise self._size("most_cache_bytes", recipe.memory.cache_inputs, "bytes of cache")

    def _check_privacy(self, privacy: PrivacyTable | None) -> None:
        if self.secure_sums and (privacy is None or not privacy.secure_sum):
            raise LimitError("secure_sums", "the run's server sees every report")
        if self.most_epsilon == "any":
            return
        if privacy is None or privacy.epsilon is None:
            raise LimitError("most_epsilon", "the run keeps to no epsilon")
        if privacy.delta is None or privacy.delta > self.most_delta:
            raise LimitError("most_delta", f"the run's is {privacy.delta}, not {self.most_delta:g}")
        if privacy.protects == "client" and not privacy.secure_sum:
            raise LimitError("most_epsilon", "the noise is the server's, and not seen here")
        if privacy.protects == "client" and privacy.sampling == "poisson":
            raise LimitError("most_epsilon", "who is drawn is the server's word")
        if privacy.epsilon > self.most_epsilon:
            raise LimitError(
                "most_epsilon", f"the run's is {privacy.epsilon:g}, not {self.most_epsilon:g}"
            )

    def check_work(self, local: LocalTable, samples: int) -> None:
        """
        Args:
            samples: how many the node has.

        Raises:
            LimitError: a visit would take more steps, or use fewer samples, than allowed.
        """
        if samples < self.fewest_samples_a_step:
            raise LimitError("fewest_samples_a_step", "the node has fewer samples")
        if fewest_samples(local, samples) < self.fewest_samples_a_visit:
            raise LimitError(
                "fewest_samples_a_visit",
                f"a visit would be made of fewer than {self.fewest_samples_a_visit}",
            )
        if local.batches(samples) > self.most_steps:
            raise LimitError(
                "most_steps", f"{local.epochs or 1} epochs are more than {self.most_steps} steps"
            )

    def check_size(self, nbytes: int) -> None:
        """
        Raises:
            LimitError: an order of so many bytes is too long.
        """
        if nbytes > self.most_message_bytes:
            raise self._size("most_message_bytes", nbytes, "bytes")

    def _size(self, limit: str, asked: int, unit: str) -> LimitError:
        return LimitError(limit, f"the server asks for {asked} {unit}, not {getattr(self, limit)}")

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Interrupt what is done inside when it takes too long. Only a process's main thread can be
        interrupted; in another one nothing is.

        Raises:
            OverdueError: it did. Whatever was at work may be half-way.
        """

        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(*_: object) -> None:
            raise OverdueError

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, self.most_seconds, _AGAIN_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def fewest_samples(local: LocalTable, samples: int) -> int:
    """How many different samples a visit uses at least, whatever the order of its batches is.

    An epoch's last batch is smaller where the numbers do not divide, and may come first.
    """
    size = min(local.batch_size, samples)
    batches = -(-samples // local.batch_size)
    steps = local.batches(samples)
    if steps >= batches:
        return samples
    return (samples % size or size) + (steps - 1) * size


def _among(name: str, allowed: Literal["all"] | tuple[str, ...]) -> bool:
    return allowed == "all" or name in allowed
