"""An encoder whose classification head begins at random trains it in every visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from fullfed.data.batches import Batch, training_batches
from fullfed.errors import UserError
from fullfed.methods.composition import Composition
from fullfed.methods.fedcybgd import FedCyBGDOptions, build
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.schedules import divide
from fullfed.methods.setting import Setting
from fullfed.sketch import Purpose, Stream
from fullfed.training.layers import layer_names
from fullfed.training.loss import Loss
from methods.test_fedcybgd import CLIENTS, data
from methods.tiny import Federation, adamw, same, setting, weights
from training.architectures import ENCODERS, make

ADAM = adamw(0.01)


def class_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Which half of the vocabulary a sample begins in."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return cross_entropy(logits, (batch.input_ids[:, 0] > 5).long())


@dataclass(frozen=True)
class Classifying(FirstOrder):
    def loss(self, parameters: Sequence[Tensor]) -> Loss:
        return class_loss


def of_encoder(
    model: PreTrainedModel, clients_per_round: int = 1, precision: str = "float32"
) -> Setting:
    names = [name for name, _ in model.named_parameters()]
    return setting(
        model,
        clients=CLIENTS,
        cohort_size=clients_per_round,
        local=ADAM,
        work={"batch_size": 2, "steps": 2},
        codec={"name": "dense", "precision": precision, "error_feedback": True},
        layers=layer_names(model),
        head=tuple(name for name in names if name.startswith("classifier.")),
    )


def method_of(model: PreTrainedModel, precision: str = "float32", **options: Any) -> Composition:
    made = of_encoder(model, precision=precision)
    local = Classifying(made)
    return replace(build(made, FedCyBGDOptions(**options)), local=local)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("outer", [False, True])
def test_every_block_holds_the_head_and_the_rest_is_divided(name: str, outer: bool) -> None:
    made = of_encoder(make(name))
    blocks = divide(made, None, outer)
    assert made.head
    assert all(set(made.head) <= block.keys() for block in blocks)
    own = [n for block in blocks for n in block if n not in made.head]
    inner = [n for layer in made.layers for n in layer]
    assert sorted(own) == sorted(set(made.shapes) - set(made.head) if outer else inner)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_cycle_is_block_coordinate_adam_with_the_head_in_every_block(name: str) -> None:
    model, alone = make(name), make(name)
    ours = Federation(model, method_of(model), data())
    parameters, made = dict(alone.named_parameters()), of_encoder(alone)
    for round in range(CLIENTS):
        ours.round()
        trained = [parameters[n] for n in (*made.layers[round % 3], *made.head)]
        adam = torch.optim.AdamW(trained, 0.01, weight_decay=0.0)
        stream = Stream(5, Purpose.BATCHES, round, round)
        for batch in training_batches(data()[round], 2, 2, stream):
            class_loss(alone, batch).backward()
            adam.step()
            alone.zero_grad()
        assert same(weights(model), weights(alone))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_surrogate_has_the_head_exact(name: str) -> None:
    model = make(name)
    method = method_of(model, "bfloat16", surrogate=0.4)
    before = weights(model)
    result = Federation(model, method, data()).round()
    after = weights(model)
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert not result.refused
    assert changed == {*layer_names(model)[0], *of_encoder(model).head}


def test_blocks_that_would_each_send_the_head_are_an_error() -> None:
    with pytest.raises(UserError, match="and the model's head in each of them; set it to 1"):
        build(of_encoder(make("bert"), clients_per_round=2), FedCyBGDOptions())
