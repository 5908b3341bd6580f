"""Measuring any model on a recipe's evaluation set."""

from __future__ import annotations

from pathlib import Path

from fullfed.config import Recipe
from fullfed.evaluation.evaluate import evaluate
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_data, load_model
from fullfed.runs.replay import replay


def measure(model_or_run: str, recipe: Recipe) -> dict[str, float]:
    """The recipe's metrics of a model folder, a hub name, or a run's newest model.

    Raises:
        UserError: there is no such model or run, or the recipe's data are bad.
    """
    folder = RunFolder(Path(model_or_run))
    if folder.recipe_file.exists():
        model, tokenizer = replay(folder)
    else:
        model, tokenizer = load_model(model_or_run)
    table = recipe.evaluation
    return evaluate(
        model,
        tokenizer,
        load_data(recipe, model, tokenizer).test,
        table.metrics,
        table.max_new_tokens,
        table.batch_size,
        table.generation_samples,
    )
