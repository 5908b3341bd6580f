"""The command line: thin, every command calls one function of the library."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fullfed import __version__, recipe_commands
from fullfed.chat import chat
from fullfed.deployment import commands, federation_commands
from fullfed.deployment.commands import Overrides, RecipeFile, say, show_end
from fullfed.errors import UserError
from fullfed.files import private_files

if TYPE_CHECKING:
    from fullfed.runs.callback import Callback

app = typer.Typer(
    help="Federated full-parameter fine-tuning of language models in kilobytes a round.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run's folder, new or empty.")
]


def _show_versions(asked: bool) -> None:
    """Print fullfed's version, and those of what a run's bits depend on."""
    if not asked:
        return
    say(f"fullfed {__version__}")
    for name in ("torch", "transformers", "numba", "flwr", "trl"):
        with suppress(PackageNotFoundError):
            say(f"{name} {version(name)}")
    say(f"Python {platform.python_version()} on {platform.platform()}")
    raise typer.Exit


@app.callback()
def main_options(
    version_: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_versions, is_eager=True, help="Print versions and end."
        ),
    ] = False,
) -> None:
    """Federated full-parameter fine-tuning of language models in kilobytes a round."""


Wandb = Annotated[
    str | None,
    typer.Option("--wandb", metavar="PROJECT", help="Tell Weights & Biases of it as well."),
]


@app.command()
def run(recipe: RecipeFile, set_: Overrides = None, out: Out = None, wandb: Wandb = None) -> None:
    """Carry out a recipe."""
    from fullfed import api
    from fullfed.runs.folder import unused

    directory = out or unused(Path("runs") / recipe.stem)
    _carry_out(
        directory,
        lambda told: api.run(recipe, directory, callbacks=told, overrides=set_ or ()),
        wandb=wandb,
    )


@app.command()
def resume(directory: RunDirectory, wandb: Wandb = None) -> None:
    """Carry a stopped run on to its end."""
    from fullfed import api

    _carry_out(directory, partial(api.resume, directory), wandb=wandb)


@app.command()
def verify(directory: RunDirectory) -> None:
    """Replay a run's log from the base model and compare every recorded hash."""
    from fullfed.runs.folder import RunFolder
    from fullfed.runs.replay import verify as verify_run

    compared = verify_run(RunFolder(directory))
    say(f"{directory}: verified, {compared} hashes equal")


@app.command()
def rollback(
    directory: RunDirectory,
    version: Annotated[
        int, typer.Argument(metavar="ROUND", min=0, help="How many rounds are to stay.")
    ],
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="For the record.")] = "",
) -> None:
    """Take a run back to the model after so many rounds; resume or start carries it on."""
    from fullfed.runs.folder import RunFolder
    from fullfed.runs.rollback import roll_back

    with private_files():
        roll_back(RunFolder(directory), version, why)
    commands.record_rollback(directory, version, why)
    say(f"{directory}: at version {version}; what was cut is kept there (rollbacks.json)")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="A model or a run.")],
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A TOML file; a run's own.")
    ] = None,
    set_: Overrides = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="A,B.yaml", help="Tasks of lm-eval, and task files."),
    ] = None,
) -> None:
    """Measure a model, or a run's newest one, on a recipe's evaluation set or on benchmarks."""
    from fullfed import api
    from fullfed.headway import QUIET_SECONDS, NowAndThen
    from fullfed.recipe_file import load_recipe
    from fullfed.runs.folder import RunFolder
    from fullfed.runs.replay import measure

    console = Console(stderr=True)
    watch = NowAndThen(lambda _, text: console.print(text, highlight=False), QUIET_SECONDS)
    if tasks is not None:
        names = [name for part in tasks.split(",") if (name := part.strip())]
        measured = api.evaluate(model, recipe, tasks=names, overrides=set_ or ())
    else:
        if recipe is None:
            folder = RunFolder(Path(model))
            folder.recipe()  # is there, and is the run's
            recipe = folder.recipe_file
        measured = measure(model, load_recipe(recipe, set_ or ()), watch)
    table = Table("metric", "value")
    for name, value in measured.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


@app.command()
def export(
    directory: RunDirectory,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder.")],
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="OWNER/NAME", help="Upload it to the hub as well."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="For the owner alone.")] = False,
    round_: Annotated[
        str | None,
        typer.Option("--round", metavar="N", help="The model after so many rounds, or 'best'."),
    ] = None,
) -> None:
    """Write a run's model and a model card as a checkpoint that transformers loads."""
    from fullfed import api

    if round_ is not None and round_ != "best" and not round_.isdecimal():
        raise UserError(f"--round {round_}: write a number of rounds, or 'best'.")
    number: Any = int(round_) if round_ and round_.isdecimal() else round_
    api.export(directory, target, push, private=private, round=number)
    say(f"{target}: written; load it with AutoModelForCausalLM.from_pretrained")
    if push is not None:
        say(f"{push}: pushed to the hub")


@app.command()
def report(
    directory: RunDirectory,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; DIR/report.html.")
    ] = None,
) -> None:
    """Write a page about a run: curves, answers, clients, traffic, time, recipe, hashes."""
    from fullfed import api

    say(f"{api.report(directory, out)}: written; open it in a browser")


@app.command()
def plot(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs' folders.")],
    out: Annotated[Path, typer.Option("--out", help="Where the pictures go.")] = Path(),
) -> None:
    """Draw the loss of one or several runs against rounds and against bytes."""
    from fullfed.reports.runs import can_plot, plot_runs, told_apart
    from fullfed.runs.folder import RunFolder

    if not can_plot():
        raise UserError('plots need matplotlib; install it with: pip install "fullfed[report]".')
    runs = {name: RunFolder(path) for name, path in told_apart(directories).items()}
    for path in plot_runs(runs, out):
        say(str(path))


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
    from fullfed import api
    from fullfed.comparisons.comparison import Comparison
    from fullfed.comparisons.folder import ComparisonFolder
    from fullfed.comparisons.progress import comparison_progress
    from fullfed.reports.comparison_text import comparison_table

    labels = [label for part in methods.split(",") if (label := part.strip())]
    comparison = Comparison(recipe, labels, set_ or (), seeds, trials, trial_rounds, jobs)
    say(comparison.budget)
    folder = ComparisonFolder(out or Path("runs") / f"{recipe.stem}-compared")
    command = shlex.join(["fullfed", *sys.argv[1:]])
    try:
        with comparison_progress(Console()) as callback:
            data = comparison.carry_out(folder, command, callback)
    except KeyboardInterrupt:
        say("stopped; the same command carries on with what is missing")
        sys.exit(130)
    api.write_reports(data, folder)
    Console().print(comparison_table(data))
    say(f"written to {folder.path}: comparison.html, comparison.md, comparison.json, runs/")


@app.command()
def quickstart(out: Out = None) -> None:
    """FedAvg beside Ferret on the embedded model and tasks; no network, a minute and a half.

    One that was stopped is carried on.
    """
    from fullfed.quickstart import quickstart_recipe
    from fullfed.reports.runs import summary_table
    from fullfed.runs import run as runs
    from fullfed.runs.folder import RunFolder, unused

    methods = ("fedavg", "ferret")

    def finished(path: Path) -> bool:
        return RunFolder(path / methods[-1]).summary_file.exists()

    folder = out or unused(Path("runs") / "quickstart", finished)
    summaries: list[Mapping[str, Any]] = []
    for method in methods:
        one = RunFolder(folder / method)
        if one.summary_file.exists():
            summaries.append(one.summary())
            continue
        begun = one.recipe_file.exists()
        work = runs.resume if begun else partial(runs.start, quickstart_recipe(method))
        again = shlex.join(["fullfed", *sys.argv[1:]])
        summaries.append(_carry_out(one.path, partial(work, one.path), False, again))
    Console().print(summary_table(summaries, "Tasks of 24 clients, learned without their data"))
    itself = "fullfed" if shutil.which("fullfed") else sys.argv[0]
    say(f"ask the model before and after: {itself} chat {folder / methods[-1]}")


recipe_commands.register(app)
app.command()(chat)
commands.register(app)
federation_commands.register(app)


def _carry_out(
    directory: Path,
    work: Callable[[list[Callback]], Mapping[str, Any]],
    table: bool = True,
    again: str | None = None,
    wandb: str | None = None,
) -> Mapping[str, Any]:
    """Do the work of the run in a folder; show its progress and its end; return the summary.

    An interruption ends the program with a word on how to go on.

    Args:
        again: the command that goes on; None for ``fullfed resume``.
        wandb: the project of Weights & Biases that is told of it.
    """
    from fullfed.reports.runs import can_plot, plot_runs
    from fullfed.runs.folder import RunFolder
    from fullfed.runs.progress import progress_callbacks

    try:
        with progress_callbacks(Console(), directory, wandb=wandb) as callbacks:
            summary = work(callbacks)
    except KeyboardInterrupt:
        say(f"stopped; carry on with: {again or f'fullfed resume {directory}'}")
        sys.exit(130)
    if can_plot() and "loss" in summary:
        plot_runs({summary["method"]: RunFolder(directory)}, directory)
    show_end(summary, directory, table)
    return summary


def main() -> None:
    """The entry point: a UserError is one sentence and exit code 2, never a traceback."""
    # How long a thread spins for another before it sleeps. By default so long that on a busy
    # machine the other one gets a core late: ten steps that take 0.5 s on two quiet cores took
    # 2.0 s beside two busy processes, and 1.3 s with this. It counts before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)
