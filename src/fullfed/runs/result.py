"""What came of a run, read from its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.runs.best import version_of
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import ordinary
from fullfed.units import bytes_text


class RunResult(Mapping[str, Any]):
    """A run that has ended: its measurements, its traffic, its model.

    As a mapping it is what summary.json holds, so that ``run["loss"]["final"]`` is the last loss.
    Everything is read from the folder when it is asked for.

    Args:
        folder: of a run, by whichever process it was carried out.

    Attributes:
        folder: the run's.

    Raises:
        UserError: when it is asked for: the run has not ended, or its folder is damaged.

    Examples:
        >>> run = fullfed.RunResult("runs/first")
        >>> run.losses[-1] < run.losses[0]
        True
        >>> model, tokenizer = run.model()
        >>> inputs = tokenizer("Reverse: a b c", return_tensors="pt")
        >>> answer = model.generate(inputs.input_ids, max_new_tokens=4)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = RunFolder(self.folder)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """First and last of every metric, bytes, seconds, peak memory, the model's hash."""
        return self._files.summary()

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One dict a round, the lines of metrics.jsonl: cohort, losses, bytes, seconds, memory."""
        return self._files.metrics()

    @property
    def losses(self) -> list[float]:
        """The loss on the test set, in nats per answer token, in the order of its measurements:
        before the first round, then after each round that measured it; losses that are not finite
        are left out."""
        measured = [self._files.base().get("loss"), *(line["loss"] for line in self.history)]
        return [loss for loss in measured if loss is not None]

    @property
    def bytes_up(self) -> int:
        """What all clients sent in all rounds."""
        return int(self["bytes"]["up"])

    @property
    def bytes_down(self) -> int:
        """What all clients were sent in all rounds."""
        return int(self["bytes"]["down"])

    @property
    def best(self) -> int | None:
        """How many rounds led to the model that measured best by the recipe's
        ``evaluation.best_by``; None where nothing was measured."""
        best: int | None = self["best"]
        return best

    def model(
        self, round: int | Literal["best"] | None = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The trained model, adapters merged into it, and its tokenizer, for transformers to use.

        The model is rebuilt from the base model and the log, anew at each call.

        Args:
            round: the model after so many rounds, or the ``best``; the newest if None.

        Raises:
            UserError: the run has no such model.
        """
        return ordinary(self._files, version_of(self._files, round))

    def __getitem__(self, key: str) -> Any:
        return self.summary[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.summary)

    def __len__(self) -> int:
        return len(self.summary)

    def __repr__(self) -> str:
        losses = [f"{loss:.3f}" for loss in self.losses]
        loss = f", loss {losses[0]} -> {losses[-1]}" if losses else ""
        return (
            f"<{self['method']}, {self['rounds']} rounds{loss}, {bytes_text(self.bytes_up)} up, "
            f"{bytes_text(self.bytes_down)} down, in {self.folder}>"
        )
