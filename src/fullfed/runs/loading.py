"""What a recipe names, loaded: the model with its tokenizer, and everybody's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fullfed.config import Recipe
from fullfed.data.federated import Divided, FederatedData, divide, federate, set_apart
from fullfed.data.partition import partition
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.evaluation.generation import context_length
from fullfed.evaluation.metrics import METRICS
from fullfed.hub import cached_model, is_hub_name, is_reachable, refuse_pointer
from fullfed.quickstart.kinds import draw_examples
from fullfed.quickstart.tasks import FEDERATED
from fullfed.runs.checkpoint import check_behaviour, check_weights, read_config

BUILTIN = "builtin"
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
        UserError: there is no such model, it is no plain causal language model, or there is no
            such device.
    """
    with _named(path) as source:
        read_config(source, path)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, found = loaded
        check_weights(model, found, path)
        model.to(find_device(device)).eval()
        check_behaviour(model, path)
    return model, tokenizer


def load_blank(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model without weights, on the meta device, and its tokenizer.

    Args:
        path: as for ``load_model``; of a folder only configuration and tokenizer are read.

    Raises:
        UserError: there is no such model.
    """
    with _named(path) as source:
        config = read_config(source, path)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    model.eval()
    return model, tokenizer


@contextmanager
def _named(path: str) -> Iterator[str]:
    """What transformers calls a model; inside, its errors are told as the user's."""
    source = str(resources.files("fullfed.quickstart") / "model") if path == BUILTIN else path
    if not Path(source).is_dir():
        if not is_hub_name(source):
            raise UserError(f"{path}: there is no model folder here; correct model.path.")
        source = source if is_reachable() else cached_model(source)
    for file in Path(source).glob("*.*"):
        if file.is_file():
            refuse_pointer(file)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield source
    except UserError:
        raise
    except Exception as error:  # a model's files are read by many programs, which fail in many ways
        if Path(source).is_dir() or not isinstance(error, OSError | ValueError):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[0].rstrip(".:")
            raise UserError(f"{path}: the model cannot be loaded ({reason}).") from error
        raise UserError(
            f"{path}: there is no model folder here and no such model could be fetched from the "
            "hub; correct model.path."
        ) from error


def find_device(name: str) -> torch.device:
    """The torch device of a name; of "auto" a GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device: there is no {name} here; take 'auto' or 'cpu'.")
    return torch.device(name)


def read_data(recipe: Recipe) -> Divided:
    """Every client's examples and the test set's. No model is needed for them.

    Raises:
        UserError: bad data, or more clients a round than there are.
    """
    seed = recipe.federation.seed
    builtin = recipe.data.train == BUILTIN
    divided = _quickstart_data(recipe) if builtin else divide(recipe.data, seed, check=recipe.check)
    made = len(divided.parts)
    check_cohort(recipe, made, f"the data make only {made} clients")
    return divided


def tokenize_data(
    recipe: Recipe, divided: Divided, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> FederatedData:
    """What ``read_data`` read, tokenised for the model.

    Raises:
        UserError: they do not fit the model.
    """
    data = federate(
        *divided,
        recipe.data,
        tokenizer,
        max_tokens(recipe, model),
        keep_examples=recipe.trainer is not None,
    )
    for examples in (data.test, data.check, *(client.examples for client in data.clients)):
        check_tokens(model, examples)
    compared = [metric for metric in recipe.evaluation.metrics if METRICS[metric].score]
    if compared and not all(example.references for example in data.test):
        raise UserError(
            f"evaluation.metrics: {compared[0]} compares answers, and the test set has texts "
            "without any; leave it out."
        )
    return data


def check_tokens(model: PreTrainedModel, examples: Sequence[TokenizedExample]) -> None:
    """Raise a UserError if the tokenizer's ids are more than the model has embeddings for."""
    embeddings = model.get_input_embeddings()
    rows = next(embeddings.parameters()).shape[0]
    largest = max((int(example.ids.max()) for example in examples), default=0)
    if largest >= rows:
        raise UserError(
            f"model.path: the data have token {largest} of the tokenizer's, and the model has "
            f"embeddings for {rows} tokens only; take the tokenizer that belongs to it, or resize "
            "its embeddings."
        )


def check_cohort(recipe: Recipe, clients: int, said: str) -> None:
    """Raise a UserError if a round asks for more clients than there are; ``said`` says how many."""
    cohort = recipe.federation.clients_per_round
    if cohort > clients:
        raise UserError(
            f"federation.clients_per_round: {cohort} clients a round, but {said}; lower it."
        )


def max_tokens(recipe: Recipe, model: PreTrainedModel) -> int:
    """The most tokens of a sample: what the recipe says, or else what the model reads at once.

    Raises:
        UserError: neither the recipe nor the model's configuration says, or the recipe says more
            than the model reads.
    """
    length, context = recipe.data.max_length, context_length(model)
    if length is None:
        if context is None:
            raise UserError(
                "the model's configuration gives no context length; set data.max_length."
            )
        return context
    if context is not None and length > context:
        raise UserError(
            f"data.max_length: {length} is more than the {context} tokens that the model reads at "
            "once; lower it or leave it out."
        )
    return length


def _quickstart_data(recipe: Recipe) -> Divided:
    """One client a generated task. Training data follow the recipe's seed, test data do not.

    What the server checks reports on are other samples of the same tasks.
    """
    seed = recipe.federation.seed
    train = [
        example
        for name, kind in FEDERATED.items()
        for example in draw_examples(name, kind, _QUICKSTART_SAMPLES, seed, "train")
    ]
    test = [
        example
        for name, kind in FEDERATED.items()
        for example in draw_examples(name, kind, _QUICKSTART_TEST_SAMPLES, 0, "test")
    ]
    left, checked = set_apart(train, recipe.check, recipe.data)
    return Divided(left, test, partition(left, recipe.data, seed), checked)
