"""A run's task on a node: loaded from the settings of its server and what the node has itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config_data import ColumnsTable
from fullfed.data.federated import refuse_empty
from fullfed.data.sources import read_examples
from fullfed.data.tokens import PackedExamples, Untokenized, tokenize
from fullfed.deployment.node import RECIPE
from fullfed.engines.node import NodeTask
from fullfed.engines.node_limits import Limits, RefusalError
from fullfed.engines.node_messages import Answer, Frames, Order, TaskSettings, decode_settings
from fullfed.engines.node_team import Team, led, tell_to_load
from fullfed.errors import MessageError, UserError
from fullfed.federation.log import first_record, read_log
from fullfed.federation.messages import Plan, Update, decode
from fullfed.federation.replica import content_hash
from fullfed.methods.codecs.scaling import ModelScales
from fullfed.methods.composition import Composition
from fullfed.payloads import Payload
from fullfed.runs.assembly import (
    Choices,
    assemble,
    build_method,
    check_examples,
    check_records,
    choose,
    make_replica,
    make_worker,
)
from fullfed.runs.curvature import with_scales_of
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import check_tokens, find_device, load_blank, load_model, max_tokens
from fullfed.runs.sharding import check_sharded, check_shards
from fullfed.runs.snapshots import load_snapshot
from fullfed.training.devices import shard
from fullfed.training.trainer import Trainer

_log = logging.getLogger(__name__)


class TaskLoader:
    """Makes a run's task of its settings and of what a node has itself.

    Args:
        data: the node's own training data, as read_examples takes it.
        model: the node's copy of the base model: a folder, a hub name or "builtin".
        device: a torch device, or "auto".
        limits: what the node's owner allows.
        columns, ignore: of the data's fields, as read_examples takes them.
        trainer: the owner's own, in the place of the run's.
        team: the processes that hold a part of the model each; None where this one holds it whole.

    Raises:
        UserError: the data cannot be read.
    """

    def __init__(
        self,
        data: str,
        model: str,
        device: str = "auto",
        limits: Limits | None = None,
        columns: ColumnsTable | None = None,
        ignore: Sequence[str] = (),
        trainer: Trainer | None = None,
        team: Team | None = None,
    ) -> None:
        self._data, self._model = data, model
        self._device = device if team is None else team.device
        self._trainer, self._team = trainer, team
        self._limits = limits or Limits()
        self._examples = read_examples(data, columns=columns, ignore=ignore)

    def __call__(self, settings: bytes, scales: bytes, has_replica: bool) -> Callable[[], NodeTask]:
        """See engines.node.LoadTask."""
        try:
            told = decode_settings(settings, self._model, self._device, self._data)
            _log.info("%s%s, its base model %s", RECIPE, told.recipe_hash, told.base_hash)
            told.check_scales(scales)
            self._limits.check_settings(told, has_replica)
            self._limits.check_work(told.recipe.local, len(self._examples))
            choices = choose(told.recipe, self._trainer)
            check_examples(told.recipe, self._examples)
            check_records(told.recipe, len(self._examples))
            if self._team is not None:
                check_sharded(told.recipe, choices.codec or choices.method, self._trainer)
        except RefusalError:
            raise
        except UserError as error:
            raise RefusalError(str(error), "the run's settings do not fit this node") from error
        load = partial(self._load, told, choices, scales, has_replica)
        return partial(self._lead, settings, scales, load)

    def follow(self, settings: bytes, scales: bytes) -> NodeTask:
        """The same in a process that does not lead its team; the one that does has checked them."""
        told = decode_settings(settings, self._model, self._device, self._data)
        return self._load(told, choose(told.recipe), scales, has_replica=True)

    def _lead(self, settings: bytes, scales: bytes, load: Callable[[], NodeTask]) -> NodeTask:
        if self._team is not None:
            tell_to_load(self._team, settings, scales)
        return load()

    def _load(
        self, told: TaskSettings, choices: Choices, scales: bytes, has_replica: bool
    ) -> NodeTask:
        recipe = told.recipe
        with nullcontext() if self._team is None else self._team.in_turn():
            model, tokenizer, method, known = self._built(told, choices, has_replica)
        _log.info("model %s loaded", recipe.model.path)
        length = max_tokens(recipe, model)
        table = recipe.data
        own = tokenize(self._examples, tokenizer, table.template, length, table.date, table.answers)
        if not own.examples:
            raise UserError(
                f"{self._data}: no example's answer fits into {length} tokens; "
                "leave the node out of this run."
            )
        refuse_empty(self._data, [own])
        check_tokens(model, own.examples)
        changed = own.shortened, own.dropped, own.empty
        _log.info("%d prompts shortened, %d samples left out, %d answers empty", *changed)
        self._limits.check_work(recipe.local, len(own.examples))
        replica = make_replica(recipe, model, method) if has_replica else None
        # All of a team compute it, who does not lead as well.
        if replica is not None and content_hash(replica.state()) != told.base_hash:
            raise RefusalError(
                f"{self._model}: this is not the base model the run begins with; "
                "name the right one by `fullfed join --model`.",
                "its base model is not the one the run begins with",
            )
        method = _scaled(method, scales)  # after the hash, which says more than their size
        if replica is not None:
            replica.method = method
        device, every = find_device(recipe.model.device), recipe.federation.snapshot_every
        source = None
        if choices.trainer is not None:
            words = self._examples, tokenizer, table.template, table.answers
            source = Untokenized.of(own, *words)
        examples = PackedExamples(own.examples, source)
        task = NodeTask(model, method, replica, examples, device, every, known)
        return task if self._team is None else led(task, self._team)

    def _built(
        self, told: TaskSettings, choices: Choices, has_replica: bool
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Composition, frozenset[str]]:
        """Model, tokenizer, method, and the names of what the base model has of what updates
        change."""
        base, team = told.recipe.model, self._team
        if has_replica:
            device = base.device if team is None else "cpu"
            model, tokenizer = load_model(base.path, base.dtype, device)
        else:
            model, tokenizer = load_blank(base.path)
        loaded = {parameter.data_ptr() for parameter in model.parameters()}
        method = build_method(told.recipe, choices, model, told.clients)
        replicated = method.replicated(model).items()
        known = frozenset(name for name, tensor in replicated if tensor.data_ptr() in loaded)
        if team is not None:
            try:
                check_shards(model)
            except UserError as error:
                raise RefusalError(
                    str(error), "the node's devices cannot share the model"
                ) from error
            shard(model, team.mesh)
        return model, tokenizer, method, known


def _scaled(method: Composition, scales: bytes) -> Composition:
    """The method with the scales that a server sent, if any.

    Raises:
        RefusalError: they are not of this model, or the run's recipe wants none.
    """
    if not scales:
        return method
    try:
        # Not ``wants_scales``: a node's own trainer says nothing of what the other nodes' do.
        if method.codec.asks_scales == "none":
            raise MessageError("the run's recipe has no scales, and the server sent some")
        return method.scaled(ModelScales.read(scales, method.setting.shapes))
    except MessageError as error:
        raise RefusalError(f"{error}.", "the run's scales do not fit this node") from error


class SimulatedNode:
    """Answers orders for all clients of a run, in a process of Flower's own simulation.

    Flower keeps such processes from one message to the next, and has several at once. Each holds
    one replica; as they share the server's disk, a process that did not get the last order catches
    up from the run's log.

    Raises:
        UserError: the run's recipe cannot be carried out.
    """

    def __init__(self, run: Path) -> None:
        folder = RunFolder(run)
        assembly = assemble(folder.recipe())
        method = with_scales_of(folder, assembly.method)
        assembly = replace(assembly, method=method)
        replica = make_replica(assembly.recipe, assembly.model, method)
        self._worker = make_worker(assembly, replica, folder.states())
        self._folder = folder

    def handle(self, frames: Frames) -> Mapping[str, Payload]:
        """Answer one order."""
        order = Order.of(frames)
        plan = decode(order.plan, Plan)
        if not order.submodel:
            self._catch_up(order, plan.round)
        arrival = self._worker.visit(order.plan, order.submodel)
        seconds = arrival.train_seconds, arrival.encode_seconds
        return Answer(plan.round, arrival.payload or b"", arrival.failure, *seconds).frames()

    def _catch_up(self, order: Order, version: int) -> None:
        replica, known = self._worker.replica, dict(enumerate(order.updates, order.first))
        while replica.version < version:
            number = version - 1 if replica.method.cumulative else replica.version
            if number not in known:
                known = self._logged(number)
            if number in known:
                self._worker.deliver(known[number])
            else:  # there is a snapshot in its place
                load_snapshot(self._folder, replica, self._folder.snapshot_file)
                self._worker.last = decode(known[replica.version - 1], Update)

    def _logged(self, number: int) -> dict[int, Payload]:
        """The updates from one on, as far as the run's log has them."""
        file = self._folder.log_file
        skipped = max(number - first_record(file), 0)
        return dict(enumerate(islice(read_log(file), skipped, None), first_record(file) + skipped))


simulated_node = lru_cache(maxsize=1)(SimulatedNode)  # one for this process
