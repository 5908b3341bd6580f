"""The commands for whoever writes a recipe; each calls one function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fullfed.deployment.commands import Overrides, RecipeFile, say


def register(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    for command in (init, check, methods, schema):
        app.command()(command)


def init(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a hub name, or builtin.")
    ],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A file, a folder, a pattern, a hub name, or builtin."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The recipe, a new file.")
    ] = Path("recipe.toml"),
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="See fullfed methods.")
    ] = "ferret",
) -> None:
    """Write a commented recipe for a model and data."""
    from fullfed.preflight.draft import write_draft

    found = write_draft(model, data, out, method)
    counted = f", {found.samples:,} samples" if found.samples else ""
    if found.format:
        say(f"{data}: {found.format}{counted}")
    else:
        names = ", ".join(found.ignore)
        say(f"{data}: no known format{counted}; say which of {names} is what, by columns in {out}")
    say(f"{out}: written; see what it would do with: fullfed check {out}")


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
    colour = console.color_system is not None and not console.no_color
    console.print(report(found, colour), highlight=False, soft_wrap=True)


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them, to see its options.")
    ] = None,
) -> None:
    """What methods, codecs, aggregation rules and trainers there are, and their options."""
    if name is None:
        _list_methods()
    else:
        _show_options(name)


def _list_methods() -> None:
    from fullfed.methods.catalogue import METHODS
    from fullfed.methods.registration import load_plugins
    from fullfed.schema.recipe_schema import NAMED

    load_plugins()
    table = Table("method", "paper", "composition", "options")
    for name, method in METHODS.items():
        table.add_row(
            name, method.paper, method.composition, ", ".join(method.options.__dataclass_fields__)
        )
    Console().print(table)
    for kind in ("codec", "aggregation", "trainer"):
        table = Table(kind, "what it does", "options")
        for name, entry in NAMED[kind].items():
            table.add_row(name, entry.description, ", ".join(entry.options.__dataclass_fields__))
        Console().print(table)


def _show_options(name: str) -> None:
    from fullfed.schema.recipe_schema import options_schema
    from fullfed.schema.reference import COLUMNS, described, entries_called, keys

    for kind, entry in entries_called(name).items():
        say(f"{kind} {name}: {described(entry)}")
        table = Table(*COLUMNS)
        for key in keys(options_schema(entry.options), entry.options):
            table.add_row(*map(escape, key))
        if table.row_count:
            Console().print(table)


def schema() -> None:
    """The JSON schema of recipes, with which editors complete them and see mistakes."""
    from fullfed.schema.recipe_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
