"""Federations small enough to be reckoned by hand: a few random samples on a random Llama."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.engines.simulation import Simulation
from fullfed.federation.messages import Update, encode
from fullfed.federation.replica import Replica
from fullfed.federation.rounds import RoundResult, run_round
from fullfed.federation.worker import Worker
from fullfed.methods import fedavg, ferret
from fullfed.methods.composition import Composition
from fullfed.methods.setting import LocalWork, Setting
from fullfed.training.first_order import FirstOrder

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
        TokenizedExample(
            generator.integers(0, VOCABULARY, length).astype(np.int32),
            int(generator.integers(1, length - 1)),
        )
        for length in lengths
    ]


def setting(model: PreTrainedModel, **changes: Any) -> Setting:
    """Everybody takes part, with one step of SGD on one batch of four."""
    known: dict[str, Any] = {
        "seed": 5,
        "clients": 1,
        "cohort_size": changes.get("clients", 1),
        "merge_weights": "samples",
        "optimizer": FirstOrder("sgd", 0.3),
        "work": LocalWork(batch_size=4, steps=1),
        "shapes": {name: p.shape for name, p in model.named_parameters()},
    }
    return Setting(**(known | changes))


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

    def round(self) -> RoundResult:
        number = self.worker.replica.version
        result = run_round(self.method, Simulation(self.worker), number, self.worker.last)
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


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return a.keys() == b.keys() and all(
        torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a
    )
