"""Federations of every method, codec and rule, small enough for thousands of messages a minute."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from fullfed.deployment.node_task import TaskLoader, _scaled
from fullfed.engines.node import NodeTask
from fullfed.engines.node_limits import Limits
from fullfed.engines.node_messages import Order, TaskSettings, encode_settings
from fullfed.engines.simulation import Simulation
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.replica import Replica
from fullfed.federation.server import run_round
from fullfed.methods.catalogue import AGGREGATIONS, CODECS, METHODS
from fullfed.runs.assembly import Choices, build_method
from fullfed.training.quantised import blank
from methods.test_compositions import built, data, recipe
from training.architectures import make

RUN = "0123456789abcdef"
CLIENTS = 3
# Visits are short here, models random, and nothing may take long.
LIMITS = Limits(
    submodels=True,
    fewest_samples_a_step=1,
    fewest_samples_a_visit=1,
    most_steps=4,
    most_seconds=20.0,
    most_drift=2.0,
)
_LOCAL = {"optimizer": "adamw", "learning_rate": 0.01, "steps": 1, "batch_size": 4}
_OPTIONS: dict[str, dict[str, Any]] = {
    "ferret": {"coordinates": 24},
    "fed-sb": {"rank": 2},
    "fedkseed": {"seeds": 64},
    "fedkseed-pro": {"seeds": 64},
    "fedit": {"rank": 2},
    "flora": {"rank": 2},
    "ffa-lora": {"rank": 2},
    "flexlora": {"ranks": [1, 2, 3]},
    "fedbpt": {"prompt_tokens": 3, "dimension": 8, "population": 3},
    "fedpeptao": {"prefix_tokens": 2},
    "slora": {"rank": 2, "density": 0.1, "sparse_rounds": 2},
}
_CODECS: dict[str, list[dict[str, Any]]] = {
    "dense": [{"precision": "bfloat16"}, {"precision": "int8", "error_feedback": True}],
    "sketch": [
        {"coordinates": 24},
        {"coordinates": 24, "seeds": "shared"},
        {"coordinates": 24, "seeds": "shared", "bits": 1},
        {"coordinates": 24, "bits": 3},
        {"coordinates": 24, "basis": "normal"},
        {"coordinates": 24, "basis": "normal", "seeds": "shared"},
    ],
    "topk": [{"count": 9}, {"count": 9, "bits": 32}, {"count": 9, "bits": 3}],
}
_RULES: dict[str, dict[str, Any]] = {"trimmed-mean": {"trim": 0.34}}


def tables() -> dict[str, dict[str, Any]]:
    """The recipe's tables of every federation, by a name."""
    found: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        found[name] = {"method": {"name": name, **_OPTIONS.get(name, {})}}
    found["cyclic-ferret"]["codec"] = {"name": "sketch", "coordinates": 24}
    weak = {"name": "fedcybgd", "surrogate": 0.4}
    found["fedcybgd without replicas"] = {
        "method": weak,
        "codec": {"name": "dense", "precision": "int8", "error_feedback": True},
        "memory": {"optimizer_in_backward": True},
        "local": {**_LOCAL, "clip_by": "tensor"},
    }
    for name in CODECS:
        for options in _CODECS.get(name, [{}]):
            codec = {"name": name, **options}
            words = " ".join(str(value) for value in codec.values())
            found[f"fedavg, {words}"] = {"method": {"name": "fedavg"}, "codec": codec}
    for name in AGGREGATIONS:
        rule = {"name": name, **_RULES.get(name, {})}
        bits = {"name": "sketch", "coordinates": 24, "bits": 1, "seeds": "shared"}
        bf16 = {"name": "dense", "precision": "bfloat16"}
        codec = bits if name == "majority-vote" else bf16
        found[f"fedavg, {name}"] = {
            "method": {"name": "fedavg"}, "codec": codec, "aggregation": rule
        }  # fmt: skip
    return found


class Subject:
    """A federation after one round, with honest messages of its second.

    Attributes:
        plan, report, update: encoded; of the first client.
        snapshot, last: of version 2, and the update that led to it without its tensors.
        worker: holds version 1.
        weights: the parameters at version 1.
        order: to a node that knows nothing; whole. weak: whether nodes hold no replica.
    """

    def __init__(self, tables: dict[str, Any]) -> None:
        self._base = make("llama")
        cohort = 1 if "cy" in str(tables["method"]["name"]) else CLIENTS
        self.recipe = recipe(cohort, **{"local": _LOCAL, **tables})
        federation = built(self.model(), CLIENTS, self.recipe, scaled=True)
        self.worker, self.method = federation.worker, federation.method
        base_hash = self.worker.replica.content_hash()
        federation.round()
        self.first = federation.last
        self.weights = {n: p.clone() for n, p in self.worker.replica.state().items()}
        first = encode(federation.last)  # type: ignore[arg-type]
        arrivals: list[Arrival] = []
        plans = self.method.plans(1, self.first)
        self.plan = encode(plans[0])
        result = run_round(
            self.method,
            Simulation(self.worker),
            1,
            self.first,
            self.worker.replica.model,
            arrivals.append,
        )
        self.plans, payload = plans, arrivals[0].payload
        assert payload is not None
        self.report, self.update = payload, encode(result.update)
        self.weak = self.method.submodels is not None
        scales = self.method.scales
        scales_hash = hashlib.sha256(scales).hexdigest() if scales else None
        settings = encode_settings(self.recipe, CLIENTS, base_hash, scales_hash)
        self.order = Order(RUN, self.plan, settings, scales)
        if self.weak:
            self.static_weights = self.worker.static_weights()
            self.submodel = self.worker.submodel(self.plan)
            self.order = replace(
                self.order, static_weights=self.static_weights, submodel=self.submodel
            )
        else:
            self.order = replace(self.order, updates=(first,), first=0)
        self.worker.deliver(self.update)
        self.snapshot, self.last = self.worker.snapshot()
        self.after = {n: p.clone() for n, p in self.worker.replica.state().items()}
        self.restore()
        self.by_snapshot = self._order_by_snapshot(settings)

    def _order_by_snapshot(self, settings: bytes) -> Order:
        plan = encode(self.method.plans(2, decode(self.update, Update))[0])
        scales = self.method.scales
        return Order(RUN, plan, settings, scales, snapshot=self.snapshot, last=self.last)

    def model(self) -> PreTrainedModel:
        return copy.deepcopy(self._base)

    def restore(self) -> None:
        """Take the worker back to version 1."""
        replica = self.worker.replica
        with torch.no_grad():
            for name, parameter in replica.state().items():
                parameter.copy_(self.weights[name])
        replica.version, self.worker.last = 1, self.first

    def loader(self) -> TaskLoader:
        """A node's own, but that its model and its data are these."""
        return _Loader(self)

    def client(self) -> int:
        return decode(self.plan, Plan).client


class _Loader(TaskLoader):
    def __init__(self, subject: Subject) -> None:
        self._data, self._model, self._device = "data", "model", "cpu"
        self._limits, self._subject, self._trainer, self._team = LIMITS, subject, None, None
        self._examples = data(CLIENTS)[0]  # type: ignore[assignment]

    def _load(
        self, told: TaskSettings, choices: Choices, scales: bytes, has_replica: bool
    ) -> NodeTask:
        recipe, examples = told.recipe, data(CLIENTS)[0]
        model = self._subject.model()
        if not has_replica:
            model = blank(type(model), model.config)
        loaded = {p.data_ptr() for p in model.parameters()}
        method = _scaled(build_method(recipe, choices, model, told.clients), scales)
        replica = Replica(model, method) if has_replica else None
        if replica is not None and replica.content_hash() != told.base_hash:
            from fullfed.engines.node_limits import RefusalError

            raise RefusalError("another base model", "another base model")
        own = method.replicated(model).items() if has_replica else ()
        base = frozenset(name for name, tensor in own if tensor.data_ptr() in loaded)
        return NodeTask(model, method, replica, examples, torch.device("cpu"), 2, base)
