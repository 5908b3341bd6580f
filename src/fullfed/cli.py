"""The command line: thin, every command calls one function of the library."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fullfed.config import Recipe, load_recipe
from fullfed.deployment import commands
from fullfed.errors import UserError
from fullfed.files import write_atomically

if TYPE_CHECKING:
    from fullfed.runs.callbacks import Callback

app = typer.Typer(
    help="Federated full-parameter fine-tuning of language models in kilobytes a round.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")]
RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run's folder, new or empty.")
]


@app.command()
def run(recipe: RecipeFile, set_: Overrides = None, out: Out = None) -> None:
    """Carry out a recipe."""
    carry_out(load_recipe(recipe, set_), out or _unused(Path("runs") / recipe.stem))


@app.command()
def resume(directory: RunDirectory) -> None:
    """Carry a stopped run on to its end."""
    from fullfed.runs import run as runs

    with _progress(directory) as callbacks:
        summary = runs.resume(directory, callbacks)
    _show_end(directory, summary)


@app.command()
def verify(directory: RunDirectory) -> None:
    """Replay a run's log from the base model and compare every recorded hash."""
    from fullfed.runs.folder import RunFolder
    from fullfed.runs.replay import verify as verify_run

    compared = verify_run(RunFolder(directory))
    _print(f"{directory}: verified, {compared} hashes equal")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="A model or a run.")],
    recipe: RecipeFile,
    set_: Overrides = None,
) -> None:
    """Measure a model, or a run's newest one, on a recipe's evaluation set."""
    from fullfed.runs.measure import measure

    table = Table("metric", "value")
    for name, value in measure(model, load_recipe(recipe, set_)).items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


@app.command()
def export(
    directory: RunDirectory,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder.")],
) -> None:
    """Write a run's model as a checkpoint that transformers loads."""
    from fullfed.runs.export import export as export_run
    from fullfed.runs.folder import RunFolder

    export_run(RunFolder(directory), target)
    _print(f"{target}: written; load it with AutoModelForCausalLM.from_pretrained")


@app.command()
def plot(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs' folders.")],
    out: Annotated[Path, typer.Option("--out", help="Where the pictures go.")] = Path(),
) -> None:
    """Draw the loss of one or several runs against rounds and against bytes."""
    from fullfed.reports.plots import can_plot, plot_runs
    from fullfed.runs.folder import RunFolder

    if not can_plot():
        raise UserError('plots need matplotlib; install it with: pip install "fullfed[report]".')
    for path in plot_runs({d.name: RunFolder(d) for d in directories}, out):
        _print(str(path))


@app.command()
def compare(
    recipe: RecipeFile,
    methods: Annotated[
        str,
        typer.Option(
            "--methods", metavar="A,B,C", help="Methods, or labels under [compare] in the recipe."
        ),
    ],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each method.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The comparison's folder, new or begun."),
    ] = None,
    set_: Overrides = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes at once.")] = 1,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Short runs to find each learning rate.")
    ] = 5,
    trial_rounds: Annotated[
        int | None,
        typer.Option(
            "--trial-rounds", min=1, help="Rounds of each; a fifth of the recipe's, but 2 to 5."
        ),
    ] = None,
) -> None:
    """Several methods on the same clients, samples, rounds and evaluation."""
    from fullfed.compare.comparison import Comparison
    from fullfed.compare.folder import ComparisonFolder
    from fullfed.compare.progress import comparison_progress
    from fullfed.reports.comparison_page import write_page
    from fullfed.reports.comparison_text import comparison_document, comparison_table

    labels = [label.strip() for label in methods.split(",")]
    comparison = Comparison(recipe, labels, set_, seeds, trials, trial_rounds, jobs)
    _print(comparison.budget)
    folder = ComparisonFolder(out or Path("runs") / f"{recipe.stem}-compared")
    command = shlex.join(["fullfed", *sys.argv[1:]])
    try:
        with comparison_progress(Console()) as callback:
            data = comparison.carry_out(folder, command, callback)
    except KeyboardInterrupt:
        _print("stopped; the same command carries on with what is missing")
        sys.exit(130)
    write_atomically(folder.markdown_file, comparison_document(data).encode())
    write_page(data, folder.page_file)
    Console().print(comparison_table(data))
    _print(f"written to {folder.path}: comparison.html, comparison.md, comparison.json, runs/")


@app.command()
def methods() -> None:
    """What methods there are, with each one's paper and options."""
    from fullfed.methods.catalogue import METHODS

    table = Table("method", "paper", "composition", "options")
    for name, entry in METHODS.items():
        options = ", ".join(f"{f}" for f in entry.options.__dataclass_fields__)
        table.add_row(name, entry.paper, entry.composition, options)
    Console().print(table)


@app.command()
def quickstart(out: Out = None) -> None:
    """FedAvg beside Ferret on the embedded model and tasks; no network, under two minutes."""
    from fullfed.quickstart import quickstart_recipe
    from fullfed.reports.tables import summary_table

    folder = out or _unused(Path("runs") / "quickstart")
    summaries = [
        carry_out(quickstart_recipe(method), folder / method, table=False)
        for method in ("fedavg", "ferret")
    ]
    Console().print(summary_table(summaries, "Tasks of 24 clients, learned without their data"))


commands.register(app)


def carry_out(recipe: Recipe, directory: Path, table: bool = True) -> dict[str, Any]:
    """Run a recipe into a folder, showing progress; return the summary."""
    from fullfed.runs import run as runs

    with _progress(directory) as callbacks:
        summary = runs.start(recipe, directory, callbacks)
    _show_end(directory, summary, table)
    return summary


@contextmanager
def _progress(directory: Path) -> Iterator[list[Callback]]:
    """What shows a run's progress; an interruption ends the program with a word on how to go on."""
    from fullfed.runs.progress import progress_callbacks

    try:
        with progress_callbacks(Console(), directory) as callbacks:
            yield callbacks
    except KeyboardInterrupt:
        _print(f"stopped; carry on with: fullfed resume {directory}")
        sys.exit(130)


def _show_end(directory: Path, summary: dict[str, Any], table: bool = True) -> None:
    from fullfed.reports.plots import can_plot, plot_runs
    from fullfed.reports.tables import summary_table
    from fullfed.runs.folder import RunFolder

    if can_plot() and "loss" in summary:
        plot_runs({summary["method"]: RunFolder(directory)}, directory)
    if table:
        Console().print(summary_table([summary]))
    _print(f"model {summary['model_hash'][:16]}  written to {directory}")


def _unused(path: Path) -> Path:
    """The path, or the path with the first free number after it."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _print(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point: a UserError is one sentence and exit code 2, never a traceback."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)
