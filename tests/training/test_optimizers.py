"""Every optimizer a recipe can name is torch's own, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import Batch, collate
from fullfed.errors import UserError
from fullfed.federation.states import StatesOnDisk
from fullfed.training.first_order import Improvement, train
from fullfed.training.layers import layer_names
from fullfed.training.loss import answer_loss
from fullfed.training.optimizers import CLASSES, check_optimizer
from methods.tiny import chosen, same, samples, weights
from training.architectures import make

PLAIN, LEAN = MemoryTable(), MemoryTable(optimizer_in_backward=True)
RATE = 0.01
CHANGED: dict[str, dict[str, Any]] = {
    "adam": {"betas": [0.8, 0.99], "amsgrad": True},
    "adamw": {"betas": [0.8, 0.99], "eps": 1e-6},
    "adamax": {"betas": [0.8, 0.99]},
    "nadam": {"momentum_decay": 0.01, "decoupled_weight_decay": True},
    "radam": {"betas": [0.5, 0.6]},
    "rmsprop": {"alpha": 0.9, "centered": True},
    "rprop": {"etas": [0.4, 1.3], "step_sizes": [1e-7, 1.0]},
    "adadelta": {"rho": 0.8},
    "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
    "adafactor": {"d": 1.5, "beta2_decay": -0.7},
    "asgd": {"lambd": 0.01, "t0": 2.0},
    "sgd": {"nesterov": True},
    "muon": {"ns_steps": 3, "nesterov": False},
}


def batches(first: int = 0, last: int = 6) -> list[Batch]:
    return [collate(samples(3, seed)) for seed in range(first, last)]


def local(name: str, changed: bool = False, **more: Any) -> LocalTable:
    """A table as it stands in a recipe; with ``changed``, with arguments of its own."""
    known: dict[str, Any] = {"optimizer": name, "learning_rate": RATE, "clip": None}
    if changed:
        known["arguments"] = CHANGED[name]
        known["weight_decay"] = 0.0 if name == "rprop" else 0.1
        known["momentum"] = 0.9 if name in ("sgd", "rmsprop", "muon") else None
    return LocalTable(**(known | more))


Made = list[torch.optim.Optimizer]


def torchs(table: LocalTable, names: Iterable[str], model: PreTrainedModel, fused: bool) -> Made:
    """Torch's optimizers for some parameters of a model, called with what the table says."""
    kind = next(k for n, k in vars(torch.optim).items() if n.lower() == table.optimizer)
    own = {n: model.get_parameter(n) for n in names}
    said = {n: tuple(v) if isinstance(v, list) else v for n, v in table.arguments.items()}
    if table.optimizer != "rprop":
        said["weight_decay"] = table.weight_decay
    if table.momentum is not None:
        said["momentum"] = table.momentum
    how = {"fused": True} if fused else {}
    fusable = ("sgd", "adam", "adamw", "adagrad")
    if table.optimizer != "muon":
        how = how if table.optimizer in fusable else {}
        return [kind(list(own.values()), lr=RATE, **said, **how)]
    hidden = {n for layer in layer_names(model) for n in layer}
    matrices = [p for n, p in own.items() if n in hidden and p.ndim == 2]
    rest = [p for n, p in own.items() if not (n in hidden and p.ndim == 2)]
    made: Made = []
    if matrices:
        made.append(
            torch.optim.Muon(matrices, lr=RATE, **{**said, "adjust_lr_fn": "match_rms_adamw"})
        )
    if rest:
        made.append(torch.optim.AdamW(rest, lr=RATE, weight_decay=table.weight_decay, **how))
    return made


def by_torch(table: LocalTable, groups: Callable[[list[str]], list[list[str]]], fused: bool) -> Any:
    """The model after torch's own loop; ``groups`` says what shares an optimizer."""
    model = make("llama")
    names = [n for n, _ in model.named_parameters()]
    optimizers = [o for group in groups(names) for o in torchs(table, group, model, fused)]
    for batch in batches():
        model.zero_grad()
        answer_loss(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    return weights(model)


def trained(
    model: PreTrainedModel,
    table: LocalTable,
    memory: MemoryTable = PLAIN,
    given: list[Batch] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Improvement:
    return train(
        model, dict(model.named_parameters()), given or batches(), table, memory, state=state
    )


def test_there_are_as_many_as_torch_has_for_dense_gradients() -> None:
    found = {
        name.lower()
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert set(CLASSES) == found - {"optimizer", "lbfgs", "sparseadam"} == set(CHANGED)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("changed", [False, True])
def test_training_is_torchs_own_to_the_last_bit(name: str, changed: bool) -> None:
    table, model = local(name, changed), make("llama")
    assert all(loss > 0 for loss in trained(model, table).losses)
    assert same(weights(model), by_torch(table, lambda names: [names], fused=False))
    assert not same(weights(model), weights(make("llama")))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("changed", [False, True])
def test_one_by_one_in_the_backward_pass_is_torchs_own_to_the_last_bit(
    name: str, changed: bool
) -> None:
    table, model = local(name, changed), make("llama")
    trained(model, table, LEAN)
    assert same(weights(model), by_torch(table, lambda names: [[n] for n in names], fused=True))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("memory", [PLAIN, LEAN], ids=["after", "in backward"])
@pytest.mark.parametrize("cut", [1, 3])
def test_visits_that_keep_their_state_are_one_long_run(
    name: str, memory: MemoryTable, cut: int, tmp_path: Path
) -> None:
    """Also where the state was in a file in the meantime."""
    table, whole, parts = local(name, changed=True), make("llama"), make("llama")
    trained(whole, table, memory)
    first = trained(parts, table, memory, batches(0, cut))
    states = StatesOnDisk(tmp_path, "a run")
    states.save(0, "all", 0, first.state)
    again = trained(parts, table, memory, batches(cut), states.load(0, "all", 1))
    assert same(weights(parts), weights(whole))
    assert again.state.keys() == first.state.keys()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("memory", [PLAIN, LEAN], ids=["after", "in backward"])
def test_the_state_that_a_visit_reads_stays_as_it_is(name: str, memory: MemoryTable) -> None:
    """A visit that is repeated begins where it began before."""
    table = local(name, changed=True)
    state = {p: v.clone() for p, v in trained(make("llama"), table, memory).state.items()}
    kept = {place: value.clone() for place, value in state.items()}
    first, second = make("llama"), make("llama")
    trained(first, table, memory, batches(0, 2), state)
    assert same(state, kept)
    trained(second, table, memory, batches(0, 2), state)
    assert same(weights(first), weights(second))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("memory", [PLAIN, LEAN], ids=["after", "in backward"])
def test_a_model_of_16_bits_is_trained_in_32(name: str, memory: MemoryTable) -> None:
    model = make("llama").bfloat16()
    done = trained(model, local(name), memory)
    for place, parameter in model.named_parameters():
        assert done.exact[place].dtype == torch.float32
        assert torch.equal(done.exact[place].bfloat16(), parameter)
        assert parameter.grad is None


@pytest.mark.parametrize("block", [0, 1, 2])
def test_muon_trains_a_block_alone_as_it_trains_matrices_and_vectors(block: int) -> None:
    model, alone = make("gpt2"), make("gpt2")
    names = layer_names(model)[block]
    table = local("muon")
    train(model, {n: model.get_parameter(n) for n in names}, batches(), table, PLAIN)
    matrices = [p for n in names if (p := alone.get_parameter(n)).ndim == 2]
    vectors = [p for n in names if (p := alone.get_parameter(n)).ndim == 1]
    muon = torch.optim.Muon(matrices, RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(vectors, RATE, weight_decay=0.0)
    for batch in batches():
        alone.zero_grad()
        answer_loss(alone, batch).backward()
        muon.step()
        adamw.step()
    assert same(weights(model), weights(alone))


def test_muons_own_scale_can_be_asked_for() -> None:
    ours, theirs = make("llama"), make("llama")
    trained(ours, local("muon", arguments={"adjust_lr_fn": "original"}))
    trained(theirs, local("muon"))
    assert not same(weights(ours), weights(theirs))


@pytest.mark.parametrize("name", ["AdamW", "adamw", "ADAMW"])
def test_capitals_do_not_matter(name: str) -> None:
    ours, theirs = make("llama"), make("llama")
    trained(ours, local(name))
    trained(theirs, local("adamw"))
    assert same(weights(ours), weights(theirs))


# What is refused

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": "adamv"}, "local.optimizer: there is no optimizer 'adamv'; choose among "),
    ({"optimizer": "lbfgs"}, "local.optimizer: there is no optimizer 'lbfgs'"),
    ({"optimizer": "SparseAdam"}, "local.optimizer: there is no optimizer 'SparseAdam'"),
    ({"optimizer": "Optimizer"}, "local.optimizer: there is no optimizer 'Optimizer'"),
    (
        {"optimizer": "adamw", "momentum": 0.9},
        "local.momentum: AdamW takes none; leave it out.",
    ),
    (
        {"optimizer": "rprop", "weight_decay": 0.1},
        "local.weight_decay: Rprop takes none; leave it out.",
    ),
    (
        {"optimizer": "adamw", "arguments": {"beta": 0.9}},
        "local.arguments.beta: AdamW takes no such argument; choose among betas, eps, amsgrad.",
    ),
    (
        {"optimizer": "sgd", "arguments": {"lr": 0.1}},
        "local.arguments.lr: say it by the key local.learning_rate.",
    ),
    (
        {"optimizer": "sgd", "arguments": {"momentum": 0.1}},
        "local.arguments.momentum: say it by the key local.momentum.",
    ),
    ({"optimizer": "adam", "arguments": {"fused": True}}, "local.arguments.fused: Adam takes no"),
    ({"optimizer": "adam", "arguments": {"params": []}}, "local.arguments.params: Adam takes no"),
    ({"optimizer": "sgd", "arguments": {"nesterov": True}}, "local.arguments: SGD refuses them ("),
    ({"optimizer": "adam", "arguments": {"betas": [0.9, 2]}}, "local.arguments: Adam refuses"),
    ({"optimizer": "adam", "arguments": {"betas": [0.9]}}, "local.arguments: Adam refuses them ("),
    ({"optimizer": "adam", "arguments": {"betas": {"b": 1}}}, "local.arguments: Adam refuses"),
    ({"optimizer": "adam", "arguments": {"eps": "small"}}, "local.arguments: Adam refuses them ("),
    ({"optimizer": "rprop", "arguments": {"step_sizes": [1]}}, "local.arguments: Rprop refuses"),
    ({"optimizer": "asgd", "arguments": {"t0": "soon"}}, "local.arguments: ASGD refuses them ("),
    (
        {"optimizer": "sgd", "momentum": 0.9, "arguments": {"dampening": "much"}},
        "local.arguments: SGD refuses them (",
    ),
    (
        {"optimizer": "muon", "arguments": {"ns_coefficients": [1.0, 2.0]}},
        "local.arguments: Muon refuses them (",
    ),
    ({"optimizer": "muon", "arguments": {"adjust_lr_fn": "no"}}, "local.arguments: Muon refuses"),
]


@pytest.mark.parametrize(("table", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_an_optimizer_cannot_be_is_refused_by_its_key(
    table: dict[str, Any], reason: str
) -> None:
    """Before anything is loaded."""
    for ask in (
        lambda: check_optimizer(LocalTable(**table)),
        lambda: chosen("fedavg", local=table),
    ):
        with pytest.raises(UserError) as caught:
            ask()
        assert str(caught.value).startswith(reason)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("changed", [False, True])
def test_what_it_can_be_is_not_refused(name: str, changed: bool) -> None:
    check_optimizer(local(name, changed))
    check_optimizer(local(name, changed, weight_decay=0.0))
