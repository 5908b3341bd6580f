"""A moved model's loss is that of a model moved in place; slopes are those reckoned by hand."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from fullfed.data.batches import Batch, collate
from fullfed.sketch import Purpose, Stream, perturb_
from fullfed.sketch.entries import NORMALS, SIGNS
from fullfed.training import zeroth_order
from fullfed.training.first_order import TrainingError
from fullfed.training.loss import answer_loss_value
from fullfed.training.zeroth_order import (
    Neighbourhood,
    RandomDirection,
    length,
)
from methods.tiny import VOCABULARY, same, samples, tiny_model, weights

Z = RandomDirection(Stream(3, Purpose.DIRECTION, owner=8), "rademacher")
NORMAL = RandomDirection(Z.stream, "gaussian")
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 16}


def llama(tied: bool) -> PreTrainedModel:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(
        LlamaConfig(**SMALL, **sizes, **heads, tie_word_embeddings=tied, initializer_range=0.4)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=8, n_layer=2, n_head=2))


def opt() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 2, "word_embed_proj_dim": 6}
    return OPTForCausalLM(OPTConfig(**SMALL, **sizes, num_attention_heads=2))


def neox() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, **sizes, num_attention_heads=2))


MODELS = {
    "llama": lambda: llama(tied=False),
    "llama, tied": lambda: llama(tied=True),
    "gpt2, tied": gpt2,
    "opt, tied": opt,
    "neox": neox,
}


@pytest.fixture
def batch() -> Batch:
    return collate(samples(3, seed=1))


@pytest.mark.parametrize("direction", [Z, NORMAL], ids=["signs", "normals"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_loss_is_that_of_weights_moved_in_place(
    make: Any, dtype: torch.dtype, direction: RandomDirection, batch: Batch
) -> None:
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    before = weights(model)
    nearby = Neighbourhood(model, dict(model.named_parameters()))
    for scale in (0.05, -0.05):
        plain = copy.deepcopy(model)
        perturb_(list(plain.parameters()), direction.stream, scale, direction.distribution)
        assert nearby.at(batch, direction, scale) == answer_loss_value(plain, batch)
        assert nearby.at(batch, direction, scale) != answer_loss_value(model, batch)
    assert same(weights(model), before)


def test_only_the_parameters_named_are_moved_and_they_number_the_elements(batch: Batch) -> None:
    model = tiny_model()
    some = {n: p for n, p in reversed(list(model.named_parameters())) if "mlp" in n or "norm" in n}
    plain = copy.deepcopy(model)
    perturb_([plain.get_parameter(name) for name in some], Z.stream, 0.1)
    assert Neighbourhood(model, some).at(batch, Z, 0.1) == answer_loss_value(plain, batch)


def test_the_model_is_left_as_it_was_whatever_happens(batch: Batch) -> None:
    model = tiny_model()
    before, parameters = weights(model), dict(model.named_parameters())

    def stumble(model: PreTrainedModel, batch: Batch) -> Tensor:
        model(batch.input_ids)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Neighbourhood(model, parameters, stumble).at(batch, Z, 0.1)
    assert same(weights(model), before)
    assert all(model.get_parameter(name) is p for name, p in parameters.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("tied", [False, True])
def test_a_layer_is_moved_at_once_and_its_copies_last_no_longer(
    batch: Batch, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is tied is moved once, and lasts to the end."""
    model = llama(tied).eval()
    nearby = Neighbourhood(model, dict(model.named_parameters()))
    starts: list[int] = []
    copies: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(rows: list[Tensor], *args: Any, start: int) -> None:
        nonlocal most
        starts.append(start)
        copies.extend(weakref.ref(row) for row in rows)
        most = max(most, sum(row.numel() for held in copies if (row := held()) is not None))

    monkeypatch.setattr(zeroth_order, "perturb_", watched)
    nearby.at(batch, Z, 0.1)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    table = model.lm_head.weight.numel()
    assert len(set(starts)) == len(starts) == (5 if tied else 6)  # with three layers and norm
    assert most == (table + layer if tied else max(table, layer))
    assert all(held() is None for held in copies)


def test_a_module_may_return_its_parameters(batch: Batch) -> None:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))

        def forward(self) -> dict[str, Tensor]:
            return {"all but the first": self.w[1:]}

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.children_ = nn.ModuleList([Returning(), Returning()])

        def forward(self) -> Tensor:
            first, second = [child()["all but the first"] for child in self.children_]
            return first.sum() - 2 * second.sum()

    model = Sum()
    plain = copy.deepcopy(model)
    perturb_(list(plain.parameters()), Z.stream, 0.1)
    for _ in range(2):
        assert nearby(model).at(batch, Z, 0.1) == plain()


def test_a_part_within_a_part_has_memory_of_its_own(batch: Batch) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.inner = nn.Parameter(torch.randn(3)), nn.Linear(3, 1)

        def forward(self) -> Tensor:
            return self.inner(self.w.clone()) * self.w.sum()

    model = Outer()
    plain = copy.deepcopy(model)
    perturb_(list(plain.parameters()), Z.stream, 0.1)
    close = nearby(model)
    for _ in range(2):
        assert close.at(batch, Z, 0.1) == plain()


class Meddler(nn.Module):
    """Reads the weight of a child that is not computing."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 1)

    def forward(self) -> Tensor:
        return self.child.weight.sum()


class Line(nn.Module):
    """f(w) = w . a, for vectors w of float32."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.w, self.a = nn.Parameter(torch.zeros(a.numel())), a

    def forward(self) -> Tensor:
        return self.w @ self.a


class Bowl(nn.Module):
    """f(w) = (w - c)' A (w - c) / 2."""

    def __init__(self, a: Tensor, c: Tensor) -> None:
        super().__init__()
        self.w, self.a, self.c = nn.Parameter(torch.zeros(c.numel())), a, c

    def forward(self) -> Tensor:
        return (self.w - self.c) @ self.a @ (self.w - self.c) / 2


def nearby(model: nn.Module) -> Neighbourhood:
    parameters: Any = dict(model.named_parameters())
    anything: Any = model
    return Neighbourhood(anything, parameters, lambda model, batch: model())


def test_a_model_that_reads_weights_elsewhere_is_told_of(batch: Batch) -> None:
    with pytest.raises(TrainingError, match=r"^the model reads weights of a module that is not"):
        nearby(Meddler()).at(batch, Z, 0.1)


def test_a_loss_that_is_not_finite_is_one_sentence(batch: Batch) -> None:
    model = Line(torch.tensor([torch.inf, 1.0]))
    for ask in (lambda n: n.at(batch, Z, 0.1), lambda n: n.here(batch)):
        with pytest.raises(TrainingError, match=r"^the training loss is not finite; lower local"):
            ask(nearby(model))


@pytest.mark.parametrize("direction", [Z, NORMAL], ids=["signs", "normals"])
def test_on_a_quadratic_the_slope_is_the_true_one(direction: RandomDirection, batch: Batch) -> None:
    """Two-sided differences are exact there: z' A (w - c)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(9, 9, generator=generator)
    bowl = Bowl(root @ root.T, torch.randn(9, generator=generator))
    entries = SIGNS if direction is Z else NORMALS
    z = torch.from_numpy(entries.values(direction.stream, 0, 1)[0, :9]).double()
    true = float(z @ bowl.a.double() @ -bowl.c.double())
    centre = float(bowl.c.double() @ bowl.a.double() @ bowl.c.double()) / 2
    away = float(z @ bowl.a.double() @ z) / 2
    loss, slope = nearby(bowl).derivative(batch, direction, 0.25)
    assert slope == pytest.approx(true, rel=1e-5)
    assert loss == pytest.approx(centre + 0.25**2 * away, rel=1e-5)
    assert slope == torch.tensor(slope, dtype=torch.float32).item()


@pytest.mark.parametrize("elements", [1, 127, 128, 1000, (1 << 18) + 130])
def test_length(elements: int) -> None:
    rows = -(-elements // 128)
    z = torch.from_numpy(NORMALS.values(Z.stream, 0, rows)).flatten()[:elements].double()
    assert length(Z.stream, elements, torch.device("cpu")) == pytest.approx(float(z.norm()), 1e-12)
