"""Federations small enough to be reckoned by hand: a few random samples on a random Llama."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fullfed.config import FederationTable, LocalTable, MemoryTable, Recipe
from fullfed.data.tokens import TokenizedExample
from fullfed.engines.simulation import Simulation
from fullfed.federation.client import Worker
from fullfed.federation.messages import Update, encode
from fullfed.federation.replica import Replica
from fullfed.federation.server import RoundResult, run_round
from fullfed.methods import fedavg, ferret
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.catalogue import CODECS
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from fullfed.runs.assembly import Choices, choose

VOCABULARY = 11


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """About 400 random parameters: one layer of width 4."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",  # the only one whose second derivative torch knows
    )
    return LlamaForCausalLM(config).eval()  # type: ignore[no-any-return]


def samples(count: int, seed: int = 0) -> list[TokenizedExample]:
    """Random prompts and answers of different lengths."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(4, 12, count)
    return [
        TokenizedExample.pair(
            generator.integers(0, VOCABULARY, length).astype(np.int32),
            int(generator.integers(1, length - 1)),
        )
        for length in lengths
    ]


def sgd(learning_rate: float = 0.3, **changes: Any) -> LocalTable:
    """One step of SGD on one batch of four, without clipping."""
    known = {"optimizer": "sgd", "clip": None, "steps": None if "epochs" in changes else 1}
    return LocalTable(learning_rate=learning_rate, **(known | changes))


def adamw(learning_rate: float = 0.01, **changes: Any) -> LocalTable:
    """The same of AdamW."""
    return sgd(learning_rate, optimizer="adamw", **changes)


def setting(model: PreTrainedModel, **changes: Any) -> Setting:
    """Everybody takes part, with one step of SGD on one batch of four.

    ``seed``, ``cohort_size`` and ``weights`` are those of the federation and of the mean;
    ``work`` changes the local table; ``codec`` may be a table of options with a name. All else is
    the setting's own.
    """
    clients = changes.pop("clients", 1)
    seed, cohort = changes.pop("seed", 5), changes.pop("cohort_size", clients)
    local, work = changes.pop("local", sgd()), changes.pop("work", {})
    if "epochs" in work:
        work = {**work, "steps": None}
    codec = changes.pop("codec", {"name": "dense"})
    if isinstance(codec, dict):
        entry = CODECS[codec["name"]]
        options = {name: value for name, value in codec.items() if name != "name"}
        codec = entry.build(seed, entry.options(**options))
    known: dict[str, Any] = {
        "federation": FederationTable(rounds=1, clients_per_round=cohort, seed=seed),
        "local": local.model_copy(update=work),
        "memory": MemoryTable(),
        "clients": clients,
        "codec": codec,
        "aggregation": WeightedMean(changes.pop("weights", "samples")),
        "shapes": {name: p.shape for name, p in model.named_parameters()},
    }
    return Setting(**(known | changes))


def chosen(method: str, **tables: Any) -> Choices:
    """What a recipe's tables choose; the method's own options are ``options``."""
    return choose(
        Recipe(
            model={"path": "builtin"},
            data={"train": "builtin"},
            federation={"rounds": 1, "clients_per_round": 1},
            method={"name": method, **tables.pop("options", {})},
            **tables,
        )
    )


def method_options(name: str, **options: Any) -> Any:
    """A method's options as a recipe gives them."""
    return chosen(name, options=options).method


def codec_options(name: str, **options: Any) -> Any:
    """A codec's options as a recipe gives them."""
    return chosen("fedavg", codec={"name": name, **options}).codec


def make_fedavg(setting: Setting, **options: Any) -> Composition:
    return fedavg.build(setting, fedavg.FedAvgOptions(**options))


def make_ferret(setting: Setting, **options: Any) -> Composition:
    return ferret.build(setting, ferret.FerretOptions(**options))


class Federation:
    """A model, a method and its clients' data; ``round`` carries out one round of messages."""

    def __init__(
        self, model: PreTrainedModel, method: Composition, data: list[list[TokenizedExample]]
    ) -> None:
        self.model = model
        self.worker = Worker(Replica(model, method), method, dict(enumerate(data)))
        self.method = method
        self._samples = {client: len(examples) for client, examples in enumerate(data)}

    def round(self) -> RoundResult:
        number = self.worker.replica.version
        engine = Simulation(self.worker)
        result = run_round(
            self.method,
            engine,
            number,
            self.last,
            self.model,
            samples=self._samples,
            exact=self.worker.replica.exact,
        )
        self.worker.deliver(encode(result.update))
        return result

    @property
    def last(self) -> Update | None:
        return self.worker.last


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def flat(state: dict[str, Tensor]) -> Tensor:
    """All elements in one row, in float64."""
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in state.values()])


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and torch.equal(_bits(a[name]), _bits(b[name])) for name in a
    )
