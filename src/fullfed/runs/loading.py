"""What a recipe names, loaded: the model with its tokenizer, and everybody's data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fullfed.config import Recipe
from fullfed.data.federated import FederatedData, federate, load_federated
from fullfed.data.partition import partition
from fullfed.errors import UserError
from fullfed.quickstart import tasks

BUILTIN = "builtin"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_QUICKSTART_SAMPLES = 48  # of each task's client
_QUICKSTART_TEST_SAMPLES = 10  # of each task in the test set


def load_model(
    path: str, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, in evaluation mode.

    Args:
        path: a folder, a hub name, or "builtin".
        dtype: "float32", "bfloat16", "float16", or "auto" for the checkpoint's own.
        device: a torch device, or "auto" for a GPU if there is one.

    Raises:
        UserError: there is no such model, or no such device.
    """
    with _named(path) as source:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
        ).to(find_device(device))  # type: ignore[arg-type]
    model.eval()
    return model, tokenizer


def load_blank(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model without weights, on the meta device, and its tokenizer.

    Args:
        path: as for ``load_model``; of a folder only configuration and tokenizer are read.

    Raises:
        UserError: there is no such model.
    """
    with _named(path) as source:
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.eval()
    return model, tokenizer


@contextmanager
def _named(path: str) -> Iterator[str]:
    """What transformers calls a model; inside, its errors are told as the user's."""
    source = str(resources.files("fullfed.quickstart") / "model") if path == BUILTIN else path
    if not Path(source).is_dir() and not _HUB_NAME.fullmatch(source):
        raise UserError(f"{path}: there is no model folder here; correct model.path.")
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield source
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if Path(source).is_dir():
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"{path}: the model cannot be loaded ({reason}).") from error
        raise UserError(
            f"{path}: there is no model folder here and no such model could be fetched from the "
            "hub; correct model.path."
        ) from error


def find_device(name: str) -> torch.device:
    """
    Args:
        name: a torch device, or "auto" for a GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device: there is no {name} here; take 'auto' or 'cpu'.")
    return torch.device(name)


def load_data(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> FederatedData:
    """Every client's data and the test set, tokenised for the model.

    Raises:
        UserError: bad data, or more clients a round than there are.
    """
    table = recipe.data
    length = table.max_length or context_length(model)
    if table.train == BUILTIN:
        data = _quickstart_data(recipe, tokenizer, length)
    else:
        data = load_federated(
            table.train,
            table.test,
            tokenizer,
            table.template,
            length,
            table.partition,
            table.clients,
            table.alpha,
            table.min_samples,
            recipe.federation.seed,
            table.test_samples,
            table.hold_out,
        )
    check_cohort(recipe, len(data.clients), "data make")
    return data


def check_cohort(recipe: Recipe, clients: int, source: str) -> None:
    """
    Args:
        clients: how many there are.
        source: what there are so many of, for the error: "data make".

    Raises:
        UserError: a round asks for more.
    """
    if recipe.federation.clients_per_round > clients:
        raise UserError(
            f"federation.clients_per_round: {recipe.federation.clients_per_round} clients a round, "
            f"but the {source} only {clients} clients; lower it."
        )


def context_length(model: PreTrainedModel) -> int:
    """The most tokens the model reads at once.

    Raises:
        UserError: its configuration does not say.
    """
    length = getattr(model.config, "max_position_embeddings", None)
    if length is None:
        raise UserError("the model's configuration gives no context length; set data.max_length.")
    return int(length)


def _quickstart_data(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, length: int
) -> FederatedData:
    """One client a generated task. Training data follow the recipe's seed, test data do not."""
    kinds = tasks.FEDERATED_KINDS
    train = [
        example
        for kind in kinds
        for example in tasks.examples(kind, _QUICKSTART_SAMPLES, recipe.federation.seed, "train")
    ]
    test = [e for kind in kinds for e in tasks.examples(kind, _QUICKSTART_TEST_SAMPLES, 0, "test")]
    table = recipe.data
    parts = partition(
        train,
        table.partition,
        table.clients,
        table.alpha,
        table.min_samples,
        recipe.federation.seed,
    )
    return federate(train, test, parts, tokenizer, table.template, length, recipe.data.test_samples)
