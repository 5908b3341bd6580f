"""Rebuilding a run's model from its base and its log, without its data: verify, measure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import Recipe
from fullfed.config_data import is_jinja
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate
from fullfed.federation.log import first_record, read_log
from fullfed.federation.messages import MessageError, Update, decode
from fullfed.federation.replica import Replica
from fullfed.headway import Observer, unobserved
from fullfed.payloads import Payload
from fullfed.runs.assembly import build_method, choose, make_replica, scope_of, settled
from fullfed.runs.curvature import with_scales_of
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_model, read_data, tokenize_data
from fullfed.runs.snapshots import (
    go_towards,
    load_snapshot,
    newest_snapshot,
    recorded_hashes,
)


def load_base(folder: RunFolder) -> tuple[Replica, PreTrainedModel, PreTrainedTokenizerBase]:
    """A replica of the run at version 0.

    Raises:
        UserError: there is no run here, or the base model is not the one it began with.
    """
    recipe = folder.recipe()
    model, tokenizer = load_model(recipe.model.path, recipe.model.dtype, recipe.model.device)
    # Applying updates does not depend on how many clients there are beyond the cohort.
    method = build_method(recipe, choose(recipe), model, recipe.federation.clients_per_round)
    method = with_scales_of(folder, method)
    replica = make_replica(recipe, model, method)
    folder.check_base_model(recipe, replica.content_hash())
    return replica, model, tokenizer


def replay(
    folder: RunFolder, version: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The run's model and its tokenizer, with the chat template that the run was given.

    Args:
        version: the model after so many rounds; None for the newest.

    Raises:
        UserError: there is no run here, its log is damaged or does not belong to it, or the newest
            model is asked for before the first round is over.
    """
    if version is None and not folder.metrics():
        raise UserError(f"{folder.path}: no round of the run is over yet; resume it first.")
    replica, model, tokenizer = load_base(folder)
    go_towards(folder, replica, version)
    updates = _updates(folder, replica.version, version)
    for update in deque(updates, maxlen=1) if replica.method.cumulative else updates:
        replica.apply(update)
    template = folder.recipe().data.template
    if is_jinja(template):
        tokenizer.chat_template = template
    return model, tokenizer


def ordinary(
    folder: RunFolder, version: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same with adapters merged into the model, as transformers has it.

    Raises:
        UserError: as for ``replay``.
    """
    model, tokenizer = replay(folder, version)
    with TemporaryDirectory() as saved:
        scope_of(folder.recipe()).detach(model, Path(saved) / "adapter")
    return model, tokenizer


def verify(folder: RunFolder) -> int:
    """Replay the whole log from the base model and compare every hash the run wrote down; where
    the run kept no older updates, from its newest snapshot.

    Returns:
        how many hashes were compared.

    Raises:
        UserError: a hash differs, or something is missing; says at which version.
    """
    recorded = recorded_hashes(folder)
    final = folder.summary() if folder.summary_file.exists() else None
    replica, _, _ = load_base(folder)
    compared = 1
    if first_record(folder.log_file) > 0:
        load_snapshot(folder, replica, newest_snapshot(folder))
        compared += 1
    for update in _updates(folder, replica.version):
        replica.apply(update)
        if replica.version in recorded:
            check_recorded(folder, replica, recorded[replica.version])
            compared += 1
    if final is not None:
        check_recorded(folder, replica, final["model_hash"])
        compared += 1
    return compared


def _updates(folder: RunFolder, begin: int, end: int | None = None) -> Iterator[Update]:
    """The log's updates between two versions, ``end`` None for the newest."""
    first, payloads = first_record(folder.log_file), read_log(folder.log_file, folder.digests())
    for number, payload in enumerate(islice(payloads, end and max(end - first, 0)), first):
        if number >= begin:
            yield logged_update(folder, number, payload)


def logged_update(folder: RunFolder, number: int, payload: Payload) -> Update:
    """The update in a record of the log.

    Raises:
        UserError: it holds none.
    """
    with record_read(folder, number):
        return decode(payload, Update)


@contextmanager
def record_read(folder: RunFolder, number: int) -> Iterator[None]:
    """Inside, a record of the log is decoded.

    Raises:
        UserError: it holds no update.
    """
    try:
        yield
    except MessageError as error:
        raise UserError(
            f"{folder.log_file}: record {number} is not an update ({error}); restore a copy of "
            "it, or take the fullfed that the run began with."
        ) from error


def check_recorded(folder: RunFolder, replica: Replica, expected: str) -> None:
    """Raise a UserError unless the replica has the hash that the run recorded for its version."""
    if replica.content_hash() != expected:
        raise UserError(
            f"{folder.path}: the log's model at version {replica.version} is not the one the run "
            "recorded; the log or the record was changed."
        )


ModelOrRun = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A model's folder, a hub name, a run's folder, or a model with its tokenizer."""


def measure(
    model_or_run: ModelOrRun, recipe: Recipe, observer: Observer = unobserved
) -> dict[str, float]:
    """The recipe's metrics of a model, or of a run's newest one.

    A model is loaded with the recipe's dtype and on its device, a run's as the run holds it, and
    one that is loaded is measured as it is. The observer is told how far it is.

    Raises:
        UserError: there is no such model or run, or the recipe's data are bad.
    """
    divided = read_data(recipe)
    run, table = _run_of(model_or_run), recipe.model
    recipe = settled(recipe, run.recipe().data.date if run else None)
    model, tokenizer = load(model_or_run, table.dtype, table.device)
    data = tokenize_data(recipe, divided, model, tokenizer)
    together = recipe.evaluated_together
    return evaluate(model, tokenizer, data.test, recipe.evaluation, together, observer).metrics


def load(
    model_or_run: ModelOrRun, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with its tokenizer.

    Args:
        dtype, device: as for ``load_model``; a run's model is as the run holds it, and one that is
            loaded is as it is.

    Raises:
        UserError: there is no such model or run.
    """
    if isinstance(model_or_run, tuple):
        return model_or_run
    if (folder := _run_of(model_or_run)) is not None:
        return replay(folder)
    return load_model(str(model_or_run), dtype, device)


def _run_of(model_or_run: ModelOrRun) -> RunFolder | None:
    if isinstance(model_or_run, tuple):
        return None
    folder = RunFolder(Path(model_or_run))
    return folder if folder.recipe_file.exists() else None
