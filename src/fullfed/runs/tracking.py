"""Callbacks that hand every round's numbers to programs that draw them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fullfed.errors import UserError
from fullfed.runs.assembly import Assembly
from fullfed.runs.binding import tables_of
from fullfed.runs.callback import Callback


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, by name: metrics, bytes, seconds, the server step."""
    numbers = {name: value for name, value in record.items() if isinstance(value, float)}
    numbers |= {f"bytes/{way}": float(record["bytes"][way]) for way in ("up", "down")}
    numbers |= {f"seconds/{part}": spent for part, spent in record["seconds"].items()}
    step = record["step"].items()
    return numbers | {f"step/{n}": value for n, value in step if isinstance(value, float)}


class TensorBoard(Callback):
    """Writes every round's numbers as TensorBoard events into a folder (extra ``tracking``).

    The command line does it by itself where TensorBoard is installed.

    Examples:
        >>> run = fullfed.run("first.toml", callbacks=[fullfed.TensorBoard("events")])
        >>> len(list(Path("events").iterdir()))
        1
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        _check_installed("tensorboard", "tracking")

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        # Only now is it certain that there is a run whose folder this belongs into.
        from tensorboard.summary import Writer

        self._writer: Any = Writer(str(self._folder))

    def on_round_end(self, record: dict[str, Any]) -> None:
        for name, value in numbers_of(record).items():
            self._writer.add_scalar(name, value, record["round"] + 1)
        self._writer.flush()

    def on_run_end(self, summary: dict[str, Any]) -> None:
        self._writer.close()


class WeightsAndBiases(Callback):
    """Hands the recipe and every round's numbers to Weights & Biases (extra ``wandb``).

    They leave the machine, to the service that ``wandb login`` names; with ``WANDB_MODE=offline``
    they stay here. A run that is resumed from the same folder goes on as the same one there.

    Args:
        project: the name of the project there.
        folder: the run's; its path tells it from others.

    Examples:
        >>> tracker = fullfed.WeightsAndBiases("my-project", "runs/first")  # doctest: +SKIP
        >>> run = fullfed.run("first.toml", "runs/first", callbacks=[tracker])  # doctest: +SKIP
    """

    def __init__(self, project: str, folder: str | Path) -> None:
        self._project, self._folder = project, Path(folder).absolute()
        _check_installed("wandb", "wandb")

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        import wandb

        self._run = wandb.init(
            project=self._project,
            name=self._folder.name,
            id=hashlib.sha256(str(self._folder).encode()).hexdigest()[:16],
            resume="allow",
            dir=self._folder,
            config=tables_of(assembly.recipe),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )

    def on_round_end(self, record: dict[str, Any]) -> None:
        self._run.log(numbers_of(record), step=record["round"] + 1)

    def on_run_end(self, summary: dict[str, Any]) -> None:
        self._run.finish()


def _check_installed(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f'{package} is not installed; install it with pip install "fullfed[{extra}]".'
        )
