"""From a recipe to the objects of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import NamedTable, Recipe
from fullfed.config_data import TEMPLATES, is_jinja
from fullfed.data.examples import Example
from fullfed.data.federated import Divided, FederatedData, set_apart
from fullfed.data.record_files import read_text
from fullfed.data.sources import read_examples
from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.federation.replica import Replica, Rounding
from fullfed.federation.states import States
from fullfed.headway import Observer, unobserved
from fullfed.hub import absolute
from fullfed.methods.catalogue import AGGREGATIONS, CODECS, METHODS, TRAINERS
from fullfed.methods.composition import Composition
from fullfed.methods.fedbuff import BufferedComposition
from fullfed.methods.own_training import OwnTraining
from fullfed.methods.private_training import check_private, with_private_records
from fullfed.methods.registration import load_plugins
from fullfed.methods.scopes import Scope
from fullfed.methods.setting import Setting
from fullfed.methods.suffixes import SuffixComposition
from fullfed.methods.summing import summed
from fullfed.runs.checking import check_cohort_of_check, check_trusted
from fullfed.runs.checkpoint import check_passing_over
from fullfed.runs.loading import BUILTIN, load_model, read_data, tokenize_data
from fullfed.runs.visit_memory import check_memory
from fullfed.training.layers import layer_names
from fullfed.training.optimizers import check_optimizer
from fullfed.training.trainer import Trainer
from fullfed.validation import describe_validation, keys_of

if TYPE_CHECKING:
    from fullfed.privacy.summing import SummingClients


@dataclass(frozen=True)
class Choices:
    """The tables of a recipe whose options are checked by what they name.

    Attributes:
        method, codec, aggregation: the options; the codec's are None where the method has a codec
            of its own.
        trainer: what trains in visits; None for the method's own work.
        tables: the same as tables, every option spelled out.
    """

    method: Any
    codec: Any
    aggregation: Any
    trainer: Trainer | None
    tables: Mapping[str, NamedTable | None]


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


def assemble(recipe: Recipe, own: Trainer | None = None) -> Assembly:
    """Load what a recipe names and build its method.

    Args:
        own: takes the place of the recipe's trainer, or of the method's own gradient steps.

    Raises:
        UserError: anything in it is unknown, missing or does not fit.
    """
    recipe, choices = settled(recipe), choose(recipe, own)
    divided = read_data(recipe)  # before the model, whose loading may take minutes
    check_trusted(recipe, [part.name for part in divided.parts])
    check_examples(recipe, divided.train)
    check_records(recipe, min(len(part.indices) for part in divided.parts))
    model, tokenizer = load_model(recipe.model.path, recipe.model.dtype, recipe.model.device)
    data = tokenize_data(recipe, divided, model, tokenizer)
    method = build_method(recipe, choices, model, len(data.clients))
    method.plans(0, None)  # a schedule that does not fit the federation shows at once
    return Assembly(resolved(recipe, choices), model, tokenizer, data, method)


def assemble_server(recipe: Recipe, clients: int) -> Assembly:
    """What the server of a real federation needs: no client's data.

    It measures the model on ``data.test`` where the recipe names one, and not at all otherwise.

    Args:
        clients: how many there are; what the recipe says of training data does not count here.

    Raises:
        UserError: anything in it is unknown, missing or does not fit.
    """
    recipe, choices = settled(recipe), choose(recipe)
    table = recipe.data
    examples: Sequence[Example] = ()
    if table.test is not None:
        examples = read_examples(table.test, "test", columns=table.columns, ignore=table.ignore)
    if recipe.check is not None and recipe.check.data is None:
        raise UserError(
            "check.data: the server of a federation has no training data to hold samples out of; "
            "name samples of its own, or leave the table check out."
        )
    _, checked = set_apart((), recipe.check, table)
    model, tokenizer = load_model(recipe.model.path, recipe.model.dtype, recipe.model.device)
    if table.test is None:
        unmeasured = recipe.evaluation.model_copy(update={"metrics": ()})
        recipe = recipe.model_copy(update={"evaluation": unmeasured})
    data = tokenize_data(recipe, Divided([], examples, [], checked), model, tokenizer)
    method = build_method(recipe, choices, model, clients)
    if isinstance(method, BufferedComposition):
        raise UserError(
            f"method.name: in {recipe.method.name} clients begin and end by themselves, which is "
            "simulated so far, and nodes work in rounds; take another method, such as fedavg."
        )
    method.plans(0, None)  # a schedule that does not fit the federation shows at once
    return Assembly(resolved(recipe, choices), model, tokenizer, data, method)


def check_examples(recipe: Recipe, examples: Sequence[Example]) -> None:
    """See that the recipe's trainer can learn from the clients' examples.

    Raises:
        UserError: it cannot.
    """
    if recipe.trainer is not None:
        TRAINERS[recipe.trainer.name].check_examples(examples)


def check_records(recipe: Recipe, records: int) -> None:
    """See that noise for each of a client's records can keep what the recipe says.

    Args:
        records: that the client has.

    Raises:
        UserError: it cannot.
    """
    if recipe.privacy is not None and recipe.privacy.protects == "record":
        from fullfed.privacy.records import record_mechanism

        record_mechanism(recipe.privacy, recipe.local, recipe.federation.rounds, records)


def choose(recipe: Recipe, own: Trainer | None = None) -> Choices:
    """Method, codec, rule and trainer of a recipe, their options validated. Loads no model.

    Args:
        own: takes the place of the recipe's trainer, or of the method's own gradient steps.

    Raises:
        UserError: an unknown name or option, a value out of range, or what does not go together.
    """
    load_plugins()
    check_optimizer(recipe.local)
    method, method_table = _options("method", recipe.method, METHODS)
    default, codec, codec_table = METHODS[recipe.method.name].codec, None, None
    if default is not None:
        codec, codec_table = _options("codec", recipe.codec or NamedTable(**default), CODECS)
    elif recipe.codec is not None:
        raise UserError(
            f"codec: {recipe.method.name} has a codec of its own; leave the table out, or take "
            "another method."
        )
    rule = recipe.aggregation or _usual_rule(recipe, codec_table)
    aggregation, rule_table = _options("aggregation", rule, AGGREGATIONS)
    if recipe.privacy is not None and recipe.privacy.protects == "record":
        check_private(recipe.local, recipe.memory, recipe.trainer is not None or own is not None)
    trainer, trainer_table = None, None
    if recipe.trainer is not None:
        entry_options, trainer_table = _options("trainer", recipe.trainer, TRAINERS)
        TRAINERS[recipe.trainer.name].check(recipe.local)
        trainer = TRAINERS[recipe.trainer.name].build(entry_options)
    tables = {
        "method": method_table,
        "aggregation": rule_table,
        "codec": codec_table,
        "trainer": trainer_table,
    }
    return Choices(method, codec, aggregation, trainer if own is None else own, tables)


def _usual_rule(recipe: Recipe, codec: NamedTable | None) -> NamedTable:
    """The aggregation rule of a recipe that names none."""
    if recipe.privacy is not None and recipe.privacy.only_sums:
        return NamedTable.model_validate({"name": "mean", "weights": "equal"})
    if codec is None:
        return NamedTable(name=METHODS[recipe.method.name].aggregation)
    return NamedTable(name=CODECS[codec.name].aggregation)


def _options(key: str, table: NamedTable, known: Mapping[str, Any]) -> tuple[Any, NamedTable]:
    """What a table's options are, and the table with every option that has a value spelled out."""
    if table.name not in known:
        raise UserError(
            f"{key}.name: there is no {key} {table.name!r}; choose among {', '.join(known)}, or "
            "install the package that registers it."
        )
    try:
        adapter = TypeAdapter(known[table.name].options)
        options = adapter.validate_python(table.options, extra="forbid")
    except ValidationError as error:
        options = known[table.name].options.__dataclass_fields__
        keys = [*(f"{key}.{option}" for option in options), *keys_of(Recipe)]
        raise UserError(f"{describe_validation(error, key, keys, deepest=1)}.") from error
    spelled = {name: value for name, value in asdict(options).items() if value is not None}
    return options, NamedTable(name=table.name, **spelled)


def scope_of(recipe: Recipe) -> Scope:
    """Which parameters the recipe's method trains."""
    return METHODS[recipe.method.name].scope(recipe.federation.seed, choose(recipe).method)


def resolved(recipe: Recipe, choices: Choices) -> Recipe:
    """The recipe with every option spelled out, and paths that hold anywhere."""
    table, path = recipe.data, recipe.model.path
    data: dict[str, Any] = {"test": table.test and absolute(table.test)}
    if table.sources is not None:
        data["sources"] = tuple(
            source.model_copy(update={"path": absolute(source.path)}) for source in table.sources
        )
    elif table.train != BUILTIN:
        data["train"] = table.train and absolute(table.train)
    model = {} if path == BUILTIN else {"path": absolute(path)}
    check = recipe.check
    if check is not None and check.data is not None:
        check = check.model_copy(update={"data": absolute(check.data)})
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": table.model_copy(update=data),
            "check": check,
            **choices.tables,
        }
    )


def settled(recipe: Recipe, day: date | None = None) -> Recipe:
    """The recipe with what another day or another folder would change said in full: the date (its
    own, or else the given one, or else today's), and the template of a file.

    Raises:
        UserError: the template's file cannot be read, or is no template.
    """
    table = recipe.data
    changes: dict[str, Any] = {"date": table.date or day or date.today()}
    if table.template not in TEMPLATES and not is_jinja(table.template):
        changes["template"] = read_text(Path(table.template))
        if not is_jinja(changes["template"]):
            raise UserError(
                f"{table.template}: this is no chat template in Jinja; correct data.template."
            )
    return recipe.model_copy(update={"data": table.model_copy(update=changes)})


def build_method(
    recipe: Recipe, choices: Choices, model: PreTrainedModel, clients: int
) -> Composition:
    """The recipe's method for this model and number of clients.

    The model becomes version 0: a scope may add parameters to it.

    Raises:
        UserError: an option does not fit the model, or the choices do not fit one another.
    """
    entry, seed = METHODS[recipe.method.name], recipe.federation.seed
    scope = entry.scope(seed, choices.method)
    scope.attach(model)
    rule = choices.tables["aggregation"]
    assert rule is not None  # every recipe has one
    if recipe.memory.cache_inputs:
        check_passing_over(model, "memory.cache_inputs")
    if getattr(choices.method, "surrogate", 1.0) < 1.0:
        check_passing_over(model, "method.surrogate")
    shapes = {name: p.shape for name, p in scope.trained(model).items()}
    setting = Setting(
        federation=recipe.federation,
        local=recipe.local,
        memory=recipe.memory,
        clients=clients,
        shapes=shapes,
        aggregation=AGGREGATIONS[rule.name].build(choices.aggregation),
        layers=tuple(tuple(n for n in layer if n in shapes) for layer in layer_names(model)),
        replicated={name: p.shape for name, p in scope.replicated(model).items()},
    )
    table = choices.tables["codec"]
    if table is not None:
        codec = CODECS[table.name].build(seed, choices.codec)
        setting = replace(setting, codec=setting.aggregation.coding(codec))
    method = entry.build(replace(setting, trainer=choices.trainer), choices.method)
    if choices.trainer is not None and not isinstance(method.local, OwnTraining):
        raise UserError(
            f"trainer: clients of {recipe.method.name} train in a way of its own; leave the table "
            "out, or take another method."
        )
    if isinstance(method, SuffixComposition):
        check_passing_over(model, "method.name", "take another method")
    if recipe.privacy is not None and recipe.privacy.protects == "record":
        method = with_private_records(method, recipe.privacy)
    if recipe.privacy is not None and recipe.privacy.only_sums:
        auto = getattr(choices.method, "server_step", None) == "auto"
        method = summed(method, recipe.privacy, recipe.federation, clients, auto)
    if not method.blocks:
        check_memory(recipe, model, setting)
    check_cohort_of_check(recipe, method.schedule.fewest_together)
    return method


def make_replica(recipe: Recipe, model: PreTrainedModel, method: Composition) -> Replica:
    """The model as the recipe's federation holds it, at version 0."""
    return Replica(model, method, Rounding(recipe.model.rounding, recipe.federation.seed))


def make_worker(
    assembly: Assembly,
    replica: Replica,
    states: States,
    observer: Observer = unobserved,
    summing: SummingClients | None = None,
) -> Worker:
    """A replica of the assembly's model with the data of every client.

    Args:
        summing: as for ``Worker``.
    """
    clients = {n: client.examples for n, client in enumerate(assembly.data.clients)}
    return Worker(replica, assembly.method, clients, states, observer, summing)
