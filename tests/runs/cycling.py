"""A small federation whose clients keep states, for processes of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fullfed.config import Recipe
from fullfed.runs import run
from runs.small import recipe

METHOD = {
    "name": "fedcybgd",
    "order": "rotating",
    "codec": {"name": "dense", "precision": "int8", "error_feedback": True},
}


def small(folder: Path) -> Recipe:
    """Two of four clients at once, so that each is visited every second round."""
    return recipe(
        folder,
        method=METHOD,
        local={"optimizer": "adamw", "learning_rate": 0.02, "optimizer_state": "kept"},
        federation={"snapshot_every": 3},
    )


def go(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    if (out / "recipe.toml").exists():
        run.resume(out)
    else:
        run.start(small(folder), out)


def go_until_replacement(folder: Path, out: Path, number: int) -> None:
    """Die right after one of the files, counted from 1, has got its new content."""
    left = [number]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            result = function(*arguments)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    Path.replace = deadly(Path.replace)  # type: ignore[method-assign]
    go(folder, out)
