"""The commands for whoever writes a recipe; each calls one function."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from fullfed.deployment.commands import Overrides, RecipeFile


def register(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    app.command()(check)


def check(
    recipe: RecipeFile,
    set_: Overrides = None,
    step: Annotated[
        bool, typer.Option("--step/--no-step", help="Load the weights and time a short visit.")
    ] = True,
) -> None:
    """What a recipe would do: data, bytes, memory, time; what is wrong with it shows here."""
    from fullfed.preflight.check import check as check_recipe
    from fullfed.preflight.text import report

    console = Console()
    found = check_recipe(recipe, step=step, overrides=set_ or ())
    colour = console.color_system is not None
    console.print(report(found, colour), highlight=False, soft_wrap=True)
