"""Benchmarks by the LM Evaluation Harness (extra ``lm-eval``): its own tasks, and task files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.errors import UserError

_ENDINGS = (".yaml", ".yml")
_TOGETHER = 8  # requests


def check_tasks(tasks: Sequence[str]) -> None:
    """See that the tasks can be carried out, before a model is loaded for them.

    Args:
        tasks: names of the harness's tasks, groups and tags, or paths of task files.

    Raises:
        UserError: there is none, the extra is not installed, or a file is missing.
    """
    if not tasks:
        raise UserError("no task is named; name tasks of lm-eval, or files of them.")
    if find_spec("lm_eval") is None:
        raise UserError('tasks need lm-eval; install it with: pip install "fullfed[lm-eval]".')
    for task in tasks:
        if task.endswith(_ENDINGS) and not Path(task).is_file():
            raise UserError(f"{task}: there is no such file; name a task file of lm-eval.")


def measure_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str]
) -> dict[str, float]:
    """The metrics of a model on tasks, as the harness's own command measures them: prompts as the
    tasks word them, without a chat template.

    Args:
        tasks: see ``check_tasks``. Task files with local data need no network.

    Returns:
        Values by "task metric", such as "arc_easy acc_norm", the filter of answers after it where
        there is one.

    Raises:
        UserError: there is no such task, its data cannot be had, or it does not fit the model.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    named = [task for task in tasks if not task.endswith(_ENDINGS)]
    manager = TaskManager(include_defaults=bool(named))  # there are 14,000 names in the index
    for name in named:
        if name not in manager.all_tasks:
            raise UserError(
                f"{name}: lm-eval has no task of this name; `lm-eval ls tasks` lists them."
            )
    try:
        measured = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=_TOGETHER),
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=0,  # no standard errors, which would take longer than the rest
            log_samples=False,
        )
    except Exception as error:  # tasks are programs, and fail in any way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].rstrip(".")
        raise UserError(f"{', '.join(tasks)}: lm-eval cannot measure them ({reason}).") from error
    return {
        f"{task} {name}": float(value)
        for task, found in measured["results"].items()
        for name, value in _metrics(found).items()
    }


def _metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one task, of which the harness names each as "metric,filter"."""
    values = {}
    for key, value in found.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr"):
            values[metric if kind == "none" else f"{metric}, {kind}"] = value
    return values
