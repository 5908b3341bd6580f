"""Rebuilding a run's model from its base and its log, without its data."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.errors import UserError
from fullfed.federation.log import read_log
from fullfed.federation.messages import MessageError, Update, decode
from fullfed.federation.replica import Replica
from fullfed.runs.assembly import build_method, make_replica, method_options
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_model


def load_base(folder: RunFolder) -> tuple[Replica, PreTrainedModel, PreTrainedTokenizerBase]:
    """A replica of the run at version 0.

    Raises:
        UserError: there is no run here, or the base model is not the one it began with.
    """
    recipe = folder.recipe()
    model, tokenizer = load_model(recipe.model.path, recipe.model.dtype, recipe.model.device)
    # Applying updates does not depend on how many clients there are beyond the cohort.
    method = build_method(
        recipe, method_options(recipe.method), model, recipe.federation.clients_per_round
    )
    replica = make_replica(recipe, model, method)
    if replica.content_hash() != folder.base()["model_hash"]:
        raise UserError(
            f"{recipe.model.path}: this is not the base model the run began with; "
            "put that one back."
        )
    return replica, model, tokenizer


def replay(folder: RunFolder) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The run's newest model and its tokenizer.

    Raises:
        UserError: there is no run here, or its log is damaged or does not belong to it.
    """
    replica, model, tokenizer = load_base(folder)
    updates = _updates(folder)
    for update in deque(updates, maxlen=1) if replica.method.cumulative else updates:
        replica.apply(update)
    return model, tokenizer


def verify(folder: RunFolder) -> int:
    """Replay the whole log from the base model and compare every hash the run wrote down.

    Returns:
        how many hashes were compared.

    Raises:
        UserError: a hash differs, or something is missing; says at which version.
    """
    recorded = {r["round"] + 1: r["model_hash"] for r in folder.metrics() if r["model_hash"]}
    final = folder.summary() if folder.summary_file.exists() else None
    replica, _, _ = load_base(folder)
    compared = 1
    for update in _updates(folder):
        replica.apply(update)
        if replica.version in recorded:
            _compare(folder, replica, recorded.pop(replica.version))
            compared += 1
    if recorded:
        raise UserError(
            f"{folder.log_file}: the log ends at version {replica.version}, but metrics.jsonl "
            f"goes on to version {max(recorded)}; restore a copy of it."
        )
    if final is not None:
        _compare(folder, replica, final["model_hash"])
        compared += 1
    return compared


def _updates(folder: RunFolder) -> Iterator[Update]:
    for number, payload in enumerate(read_log(folder.log_file)):
        try:
            yield decode(payload, Update)
        except MessageError as error:
            raise UserError(
                f"{folder.log_file}: record {number} is not an update ({error}); "
                "restore a copy of it."
            ) from error


def _compare(folder: RunFolder, replica: Replica, expected: str) -> None:
    if replica.content_hash() != expected:
        raise UserError(
            f"{folder.path}: the log's model at version {replica.version} is not the one the run "
            "recorded; the log or the record was changed."
        )
