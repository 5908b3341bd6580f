"""From a recipe to the objects of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import MemoryTable, MethodTable, Recipe, describe_validation, parse_bytes
from fullfed.data.federated import FederatedData, federate
from fullfed.data.sources import read_examples
from fullfed.errors import UserError
from fullfed.federation.precision import Rounding
from fullfed.federation.replica import Replica
from fullfed.methods.catalogue import METHODS
from fullfed.methods.composition import Composition
from fullfed.methods.setting import LocalWork, Setting
from fullfed.runs.loading import BUILTIN, check_cohort, context_length, load_data, load_model
from fullfed.training.first_order import FirstOrder
from fullfed.training.layers import layer_names
from fullfed.training.memory import Memory


@dataclass(frozen=True)
class Assembly:
    """Everything a run of one recipe needs, loaded.

    Attributes:
        recipe: with every method option spelled out.
        model: the base model, to be trained in place.
        tokenizer: the model's.
        data: every client's, and the test set.
        method: the recipe's.
    """

    recipe: Recipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: FederatedData
    method: Composition


def assemble(recipe: Recipe) -> Assembly:
    """Load what a recipe names and build its method.

    Raises:
        UserError: anything in it is unknown, missing or does not fit.
    """
    options = method_options(recipe.method)
    model, tokenizer = load_model(recipe.model.path, recipe.model.dtype, recipe.model.device)
    data = load_data(recipe, model, tokenizer)
    method = build_method(recipe, options, model, len(data.clients))
    method.plans(0, None)  # a schedule that does not fit the federation shows at once
    return Assembly(
        recipe=resolved(recipe, options),
        model=model,
        tokenizer=tokenizer,
        data=data,
        method=method,
    )


def assemble_server(recipe: Recipe, clients: int) -> Assembly:
    """What the server of a real federation needs: no client's data.

    It measures the model on ``data.test`` where the recipe names one, and not at all otherwise.

    Args:
        clients: how many there are; what the recipe says of training data does not count here.

    Raises:
        UserError: anything in it is unknown, missing or does not fit.
    """
    options = method_options(recipe.method)
    model, tokenizer = load_model(recipe.model.path, recipe.model.dtype, recipe.model.device)
    check_cohort(recipe, clients, "federation has")
    table, data = recipe.data, FederatedData((), (), 0, 0)
    if table.test is None:
        unmeasured = recipe.evaluation.model_copy(update={"metrics": ()})
        recipe = recipe.model_copy(update={"evaluation": unmeasured})
    else:
        length = table.max_length or context_length(model)
        test = read_examples(table.test, "test")
        data = federate([], test, [], tokenizer, table.template, length, table.test_samples)
    method = build_method(recipe, options, model, clients)
    method.plans(0, None)  # a schedule that does not fit the federation shows at once
    return Assembly(resolved(recipe, options), model, tokenizer, data, method)


def method_options(table: MethodTable) -> Any:
    """The method's own options, validated.

    Raises:
        UserError: an unknown method or option, or a value out of range.
    """
    if table.name not in METHODS:
        raise UserError(
            f"method.name: there is no method {table.name!r}; choose among {', '.join(METHODS)}."
        )
    adapter = TypeAdapter(METHODS[table.name].options)
    try:
        return adapter.validate_python(table.options, extra="forbid")
    except ValidationError as error:
        raise UserError(f"{describe_validation(error, 'method')}.") from error


def resolved(recipe: Recipe, options: Any) -> Recipe:
    """The recipe with every option of its method spelled out, and paths that hold anywhere."""
    known = {name: value for name, value in asdict(options).items() if value is not None}
    test = recipe.data.test
    data = {"train": _absolute(recipe.data.train), "test": test and _absolute(test)}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"path": _absolute(recipe.model.path)}),
            "data": recipe.data.model_copy(update=data),
            "method": MethodTable(name=recipe.method.name, **known),
        }
    )


def _absolute(source: str) -> str:
    """The source itself where it is no path: a hub name, or "builtin"."""
    path = Path(source)
    return str(path.resolve()) if source != BUILTIN and path.exists() else source


def build_method(recipe: Recipe, options: Any, model: PreTrainedModel, clients: int) -> Composition:
    """The recipe's method for this model and number of clients.

    The model becomes version 0: a scope may add parameters to it.

    Raises:
        UserError: an option does not fit the model.
    """
    entry, local = METHODS[recipe.method.name], recipe.local
    scope = entry.scope(recipe.federation.seed, options)
    scope.attach(model)
    shapes = {name: p.shape for name, p in scope.trained(model).items()}
    work = LocalWork(local.batch_size, local.steps, local.epochs or (None if local.steps else 1))
    setting = Setting(
        seed=recipe.federation.seed,
        clients=clients,
        cohort_size=recipe.federation.clients_per_round,
        merge_weights=recipe.federation.merge_weights,
        optimizer=FirstOrder(
            local.optimizer,
            local.learning_rate,
            local.momentum,
            local.weight_decay,
            local.clip,
            local.clip_by,
            _memory(recipe.memory),
        ),
        work=work,
        shapes=shapes,
        layers=tuple(tuple(n for n in layer if n in shapes) for layer in layer_names(model)),
        replicated={name: p.shape for name, p in scope.replicated(model).items()},
    )
    return entry.build(setting, options)


def _memory(table: MemoryTable) -> Memory:
    return Memory(
        table.optimizer_in_backward,
        table.checkpoint_activations,
        table.frozen,
        parse_bytes(table.cache_inputs) if table.cache_inputs else 0,
    )


def make_replica(recipe: Recipe, model: PreTrainedModel, method: Composition) -> Replica:
    """The model as the recipe's federation holds it, at version 0."""
    return Replica(model, method, Rounding(recipe.model.rounding, recipe.federation.seed))
