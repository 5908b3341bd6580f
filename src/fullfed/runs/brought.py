"""Trainers that a program brings: functions that take the place of a recipe's trainer."""

from __future__ import annotations

import pickle
import sys

from fullfed.config import NamedTable, Recipe
from fullfed.errors import UserError
from fullfed.training.trainer import OWN, Trainer


def with_trainer(recipe: Recipe, trainer: Trainer | None) -> Recipe:
    """The recipe of a new run that is given a trainer, which takes the place of its own.

    Raises:
        UserError: none is given, and the recipe's clients train with one that must be.
    """
    if trainer is not None:
        if not callable(trainer):
            raise UserError(
                f"local: {trainer!r} is no function; give one, or name a trainer in the table "
                "[trainer]."
            )
        if recipe.trainer is not None and recipe.trainer.name != OWN:
            raise UserError(
                f"trainer.name: clients train with a function that is given, or with "
                f"{recipe.trainer.name}; give one of the two."
            )
        recipe = recipe.model_copy(update={"trainer": NamedTable(name=OWN)})
    check_brought(recipe, trainer)
    return recipe


def check_brought(recipe: Recipe, trainer: Trainer | None) -> None:
    """See that a trainer is given where the recipe's clients train with one that must be, and only
    there; and that worker processes can be given it.

    Raises:
        UserError: it is not.
    """
    named = recipe.trainer is not None and recipe.trainer.name == OWN
    if named and trainer is None:
        raise UserError(
            "trainer.name: the clients of this recipe train with a function of yours; give it in "
            "Python, as local=, or name another trainer."
        )
    if trainer is not None and not named:
        raise UserError("trainer.name: the run began with a trainer of its recipe's; give none.")
    if trainer is not None and recipe.simulation.workers > 1:
        _check_sendable(trainer)


def _check_sendable(trainer: Trainer) -> None:
    try:
        pickle.dumps(trainer)
        reason = "it was typed in" if _is_typed_in(trainer) else ""
    except Exception as error:  # whatever its parts raise when they are written down
        reason = str(error)
    if reason:
        raise UserError(
            f"simulation.workers: the function that trains cannot be sent to worker processes "
            f"({reason}); define it at the top of a file, or take simulation.workers = 1."
        )


def _is_typed_in(trainer: Trainer) -> bool:
    """Whether a function is of a program that no other process can read: typed in, or piped."""
    ours = getattr(trainer, "__module__", None) == "__main__"
    return ours and not hasattr(sys.modules["__main__"], "__file__")
