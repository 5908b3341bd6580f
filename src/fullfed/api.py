"""What a program calls: each function does what the command of its name does.

``import fullfed`` gives all of them; docs/python.md shows them at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.comparisons.comparison import Comparison
from fullfed.comparisons.folder import ComparisonFolder
from fullfed.errors import UserError
from fullfed.evaluation.harness import check_tasks, measure_tasks
from fullfed.files import write_atomically
from fullfed.recipe_file import RecipeSource, load_recipe, source_of, title_of
from fullfed.reports.comparison_page import comparison_page
from fullfed.reports.comparison_text import comparison_document
from fullfed.reports.pages import write_page
from fullfed.reports.run_page import run_page
from fullfed.runs import export as exports
from fullfed.runs import replay
from fullfed.runs import run as runs
from fullfed.runs.best import version_of
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder, unused
from fullfed.runs.given import Given, Records, start_with
from fullfed.runs.result import RunResult
from fullfed.training.trainer import Trainer


def run(
    recipe: RecipeSource,
    out: str | Path | None = None,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    clients: Mapping[str, Records] | None = None,
    test: Records | None = None,
    local: Trainer | None = None,
    callbacks: Sequence[Callback] = (),
    overrides: Sequence[str] = (),
) -> RunResult:
    """Carry out a recipe into a new folder.

    What is given as an object is written into the folder first (``base/``, ``data/``) and loaded
    from there, so that the run can be resumed, verified and exported in another process. The model
    that is given is not changed: ``RunResult.model`` returns the trained one.

    Args:
        recipe: the path of a TOML file; the same as a nested dict; or a ``Recipe``.
        out: the run's folder, new or empty; by default ``runs/`` and the recipe's name.
        model: the base model, in place of the recipe's ``model.path``. The recipe's ``model.dtype``
            holds, which is float32 where it is not said.
        tokenizer: the model's.
        clients: each client's records by its name, in place of ``data.train``, ``data.partition``
            and ``data.clients``. Records are a list of dicts, a ``datasets.Dataset``, or the path
            of a file; the recipe's ``data.columns`` says what their fields are called.
        test: the records of the test set, in place of ``data.test``.
        local: a function that trains in a client's visit, in the place of the recipe's optimizer:
            ``local(model, dataset, context)`` trains what of the model requires gradients, in
            place, and returns ``{"loss": ...}``; docs/trainers.md has more.
        callbacks: are told how the run gets on.
        overrides: changes of the recipe, such as ``["federation.rounds=3"]``.

    Raises:
        UserError: bad input, or a round in which no client could work.

    Examples:
        >>> run = fullfed.run("first.toml", "runs/first")
        >>> run["rounds"], run["bytes"]["up"]
        (2, 16296)

        >>> def records(fruit):
        ...     prompts = [f"Say {fruit} {n} times." for n in range(1, 9)]
        ...     return [{"instruction": p, "output": fruit} for p in prompts]
        >>> own = {"north": records("pear"), "south": records("plum")}
        >>> recipe = {
        ...     "model": {"path": "builtin"},
        ...     "data": {"test_samples": 4},
        ...     "federation": {"rounds": 1, "clients_per_round": 2},
        ...     "method": {"name": "fedavg"},
        ... }
        >>> fullfed.run(recipe, "runs/fruit", clients=own).history[0]["cohort"]
        [0, 1]
    """
    _check_arguments(overrides, callbacks)
    path = unused(Path("runs") / title_of(recipe)) if out is None else Path(out)
    given = Given(model, tokenizer, clients, test)
    if given.nothing:
        runs.start(load_recipe(recipe, overrides), path, callbacks, local)
    else:
        start_with(given, recipe, path, callbacks, overrides, local)
    return RunResult(path)


def resume(
    run: str | Path | RunResult,
    callbacks: Sequence[Callback] = (),
    *,
    local: Trainer | None = None,
) -> RunResult:
    """Carry a run on from where it stopped, to the end that it would have had.

    Args:
        run: its folder.
        callbacks: are told how the run gets on.
        local: the function that its clients train with, if they do.

    Raises:
        UserError: there is no run here, or it is damaged.

    Examples:
        >>> fullfed.resume("runs/first")["rounds"]  # it has ended, so nothing is left to do
        2
    """
    runs.resume(_folder(run), callbacks, local)
    return RunResult(_folder(run))


def evaluate(
    model: str | Path | RunResult | PreTrainedModel,
    recipe: RecipeSource | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Measure a model on a recipe's test set, or on benchmarks; return each metric by name.

    Args:
        model: a run, whose newest model it is, or a run's folder; a model's folder or hub name; or
            a transformers model, with its tokenizer.
        recipe: as for ``run``; says the test set and ``evaluation.metrics``. A run's own where
            none is given.
        tokenizer: of a transformers model.
        tasks: of the LM Evaluation Harness (extra ``lm-eval``), by name or as task files, in the
            place of a recipe's test set. The values are named "task metric".
        overrides: changes of the recipe.

    Raises:
        UserError: there is no such model, run or task, or the recipe's data are bad.

    Examples:
        >>> measured = fullfed.evaluate("runs/first")
        >>> measured["loss"] == fullfed.RunResult("runs/first").losses[-1]
        True
    """
    if tasks is not None and (recipe is not None or overrides):
        raise UserError("A model is measured by a recipe or on tasks; give one of the two.")
    named: replay.ModelOrRun
    if isinstance(model, PreTrainedModel):
        if tokenizer is None or (recipe is None and tasks is None):
            raise UserError("A model is measured with its tokenizer, by a recipe; give both.")
        named = model, tokenizer
    else:
        named = _folder(model)
    if tasks is not None:
        check_tasks(tasks)
        return measure_tasks(*replay.load(named), tasks)
    if recipe is None:
        assert isinstance(named, Path)  # a model comes with a recipe
        folder = RunFolder(named)
        folder.recipe()  # is there, and is the run's
        recipe = folder.recipe_file
    return replay.measure(named, load_recipe(recipe, overrides))


def export(
    run: str | Path | RunResult,
    target: str | Path,
    push: str | None = None,
    *,
    private: bool = False,
    round: int | Literal["best"] | None = None,
) -> Path:
    """Write a run's newest model, its tokenizer and a model card as a folder that transformers
    loads.

    The tokenizer has the chat template that the run trained on. A trained adapter is merged into
    the model, and saved by itself in ``target/adapter`` for PEFT. The card, README.md, names no
    path of this machine and no client.

    Args:
        run: a run, or its folder.
        target: a new folder.
        push: "OWNER/NAME", a repository of the Hugging Face hub to upload the folder to.
        private: whether the repository is to be private.
        round: the model after so many rounds, or the one that measured best by the recipe's
            ``evaluation.best_by``; the newest where it is not said.

    Returns:
        The target.

    Raises:
        UserError: the target has something in it, the run cannot be replayed or has no such round,
            or the hub refuses.

    Examples:
        >>> fullfed.export("runs/first", "my-model").name
        'my-model'
        >>> from transformers import AutoModelForCausalLM
        >>> AutoModelForCausalLM.from_pretrained("my-model").num_parameters()
        967808
    """
    if private and push is None:
        raise UserError("A model is private on the hub; say with push where to upload it.")
    if push is not None:
        exports.check_repository(push)
    folder = RunFolder(_folder(run))
    title = push and push.rpartition("/")[2]
    exports.export(folder, Path(target), title, version_of(folder, round))
    if push is not None:
        exports.push(Path(target), push, private)
    return Path(target)


def report(run: str | Path | RunResult, out: str | Path | None = None) -> Path:
    """Write a page about a run that opens in a browser, from one file and without a network.

    Args:
        run: a run, ended or not, or its folder.
        out: the page's file; by default ``report.html`` in the run's folder.

    Returns:
        The page's file.

    Raises:
        UserError: there is no such run, or it has not begun, or the page cannot be written.

    Examples:
        >>> fullfed.report("runs/first").name
        'report.html'
    """
    folder = _folder(run)
    path = folder / "report.html" if out is None else Path(out)
    write_page(run_page(RunFolder(folder)), path)
    return path


def compare(
    recipe: RecipeSource,
    methods: Sequence[str],
    out: str | Path | None = None,
    *,
    seeds: int = 1,
    trials: int = 5,
    trial_rounds: int | None = None,
    jobs: int = 1,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Several methods on the same clients, samples, rounds and evaluation.

    Each at the learning rate of a search of its own. Called again with the same folder, it carries
    on with what is missing. Each run is a process of its own, which loads the script that calls
    this: call it under ``if __name__ == "__main__":``.

    Args:
        recipe: as for ``run``; the tables under ``compare`` say what is special to one method.
        methods: names of methods, or of tables under ``compare``.
        out: the comparison's folder; by default ``runs/`` and the recipe's name with "-compared".
        seeds: runs of each method, with the recipe's seed and the next ones.
        trials: short runs in each method's search.
        trial_rounds: rounds of each; a fifth of the recipe's, but 2 to 5, where it is not said.
        jobs: processes at once.
        overrides: changes of the recipe.

    Returns:
        What comparison.json in the folder holds: ``data["methods"]`` has a dict for each method,
        with its ``label``, ``learning_rate``, ``runs`` and ``columns``. comparison.html and
        comparison.md beside it show it.

    Raises:
        UserError: bad input, there is something else in the folder, or every run fails.

    Examples:
        >>> data = fullfed.compare("first.toml", ["ferret"], trials=1)
        >>> [(method["label"], len(method["runs"])) for method in data["methods"]]
        [('ferret', 1)]
    """
    path = Path("runs") / f"{title_of(recipe)}-compared" if out is None else Path(out)
    comparison = Comparison(recipe, methods, overrides, seeds, trials, trial_rounds, jobs)
    folder = ComparisonFolder(path)
    call = f"fullfed.compare({source_of(recipe)!r}, {list(methods)!r}, seeds={seeds})"
    data = comparison.carry_out(folder, call)
    write_reports(data, folder)
    return data


def write_reports(data: Mapping[str, Any], folder: ComparisonFolder) -> None:
    """Write comparison.md and comparison.html of a comparison beside its comparison.json."""
    write_atomically(folder.markdown_file, comparison_document(data).encode())
    write_page(comparison_page(data), folder.page_file)


def simulate(
    recipe: RecipeSource, out: str | Path | None = None, *, overrides: Sequence[str] = ()
) -> RunResult:
    """Carry out a recipe in Flower's own simulation (Ray), by the app that a federation runs.

    The log is that of ``run``, byte for byte. It needs the extra ``simulation``.

    Args:
        recipe, out, overrides: as for ``run``.

    Raises:
        UserError: bad input, Flower or Ray is not installed, or the run stops.

    Examples:
        >>> run = fullfed.simulate("first.toml", "runs/in-flower")  # doctest: +SKIP
    """
    # Flower is an extra.
    from fullfed.deployment.commands import check_installed

    check_installed("ray", "simulation")
    from fullfed.deployment import flower_runs

    path = unused(Path("runs") / title_of(recipe)) if out is None else Path(out)
    flower_runs.simulate(load_recipe(recipe, overrides), path, lambda line: None)
    return RunResult(path)


def _check_arguments(overrides: Sequence[str], callbacks: Sequence[Callback]) -> None:
    """Raise a UserError for what is easily given otherwise: one text, one callback, or a class."""
    if isinstance(overrides, str):
        raise UserError(f"overrides: {overrides!r} is one text; give a list of them.")
    if not isinstance(callbacks, Sequence) or not all(isinstance(c, Callback) for c in callbacks):
        raise UserError("callbacks: give a list of objects of classes made from fullfed.Callback.")


def _folder(run: str | Path | RunResult) -> Path:
    return run.folder if isinstance(run, RunResult) else Path(run)
