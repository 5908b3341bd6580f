"""Trainers that users bring, and those of transformers and TRL, train as they do by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from fullfed.config import NamedTable, Recipe
from fullfed.data.client_dataset import ClientDataset
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.runs import run
from fullfed.runs.assembly import Assembly
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.training.trainer import LocalResult, VisitContext
from methods.tiny import same, weights
from runs.small import recipe, write_model

STEPS = 3
PAIRS = [
    {"prompt": f"Say {word} {n} times.", "chosen": " ".join([word] * n), "rejected": "No."}
    for word in ("red", "green", "blue")
    for n in range(1, 5)
]
LOCAL = {"optimizer": "adamw", "learning_rate": 1e-2, "steps": STEPS, "batch_size": 2}


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and train.jsonl, of preferences."""
    folder = tmp_path_factory.mktemp("ingredients")
    write_model(folder / "model")
    (folder / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return folder


def one_client(folder: Path, trainer: str | None = None, **changes: Any) -> Recipe:
    """One round of one client, whose weights become everybody's."""
    made = recipe(
        folder,
        **{
            "data": {"partition": "iid", "clients": 1, "hold_out": None, "test_samples": 2},
            "federation": {"rounds": 1, "clients_per_round": 1, "seed": 3},
            "method": {"name": "fedavg"},
            "local": LOCAL,
            **changes,
        },
    )
    table = trainer and NamedTable(name=trainer)
    return made.model_copy(update={"trainer": table or None})


class Keep(Callback):
    """Keeps the run's objects, and what its visits said."""

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        self.assembly = assembly
        self.arrivals: list[Arrival] = []

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        self.arrivals.append(arrival)


def visit_seed() -> int:
    return int(uniforms(Stream(3, Purpose.TRAINER, 0, 0), 1)[0] * 2**31)


def arguments(kind: Any, folder: Path, **own: Any) -> Any:
    """What a person would write for the table ``LOCAL``."""
    return kind(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        seed=visit_seed(),
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        **own,
    )


def alone(model: PreTrainedModel, rows: Dataset, folder: Path) -> None:
    """transformers.Trainer by hand."""

    def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(one["input_ids"]) for one in features)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            name: torch.tensor(
                [one[name] + [value] * (longest - len(one[name])) for one in features]
            )
            for name, value in fill.items()
        }

    options = arguments(
        TrainingArguments, folder, remove_unused_columns=False, gradient_checkpointing=False
    )
    Trainer(model, options, train_dataset=rows, data_collator=collate).train()


def sft(model: PreTrainedModel, rows: Dataset, folder: Path) -> None:
    """TRL's SFTTrainer by hand."""
    options = arguments(SFTConfig, folder, max_length=None, gradient_checkpointing=False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    rows = rows.remove_columns("attention_mask")
    SFTTrainer(model, args=options, train_dataset=rows, processing_class=tokenizer).train()


def dpo(model: PreTrainedModel, rows: Dataset, folder: Path) -> None:
    """TRL's DPOTrainer by hand, on the records as they are but for Alpaca's words."""
    options = arguments(DPOConfig, folder, gradient_checkpointing=False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    reference = AutoModelForCausalLM.from_pretrained(folder / "model")
    DPOTrainer(
        model, reference, args=options, train_dataset=rows, processing_class=tokenizer
    ).train()


BY_HAND: Mapping[str, Callable[[PreTrainedModel, Dataset, Path], None]] = {
    "transformers": alone,
    "sft": sft,
    "dpo": dpo,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_visit_is_the_training_done_by_hand(ingredients: Path, tmp_path: Path, name: str) -> None:
    kept = Keep()
    run.start(one_client(ingredients, name), tmp_path / "run", [kept])
    examples = kept.assembly.data.clients[0].examples
    if name == "dpo":
        rows = [
            {
                "prompt": "Below is an instruction that describes a task. Write a response that "
                "appropriately completes the request.\n\n### Instruction:\n"
                f"{source.instruction}\n\n### Response:\n",
                "chosen": source.output,
                "rejected": "No.",
            }
            for source in examples.source.examples  # type: ignore[attr-defined]
        ]
    else:
        rows = [
            {
                "input_ids": one.ids.tolist(),
                "attention_mask": [1] * len(one),
                "labels": np.where(one.learned, one.ids, -100).tolist(),
            }
            for one in examples
        ]
    model = AutoModelForCausalLM.from_pretrained(ingredients / "model")
    before = weights(model)
    BY_HAND[name](model, Dataset.from_list(rows), ingredients)
    assert not same(weights(model), before)
    assert same(weights(kept.assembly.model), weights(model))
    assert verify(RunFolder(tmp_path / "run")) == 3


def train(model: PreTrainedModel, dataset: ClientDataset, context: VisitContext) -> dict[str, Any]:
    """A loop as people write them."""
    model.train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=context.local.learning_rate
    )
    order, total = torch.randperm(len(dataset)).tolist(), 0.0
    for step in range(STEPS):
        batch = dataset.collate([dataset[i] for i in order[2 * step : 2 * step + 2]])
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        context.log(loss.item())
        total += loss.item()
    return {"loss": total / STEPS, "drawn": random.random() + np.random.random()}


def test_a_loop_of_ones_own_is_that_loop_done_by_hand(ingredients: Path, tmp_path: Path) -> None:
    kept = Keep()
    global_state = torch.get_rng_state(), random.getstate()
    run.start(one_client(ingredients), tmp_path / "run", [kept], trainer=train)
    assert torch.equal(torch.get_rng_state(), global_state[0])
    assert random.getstate() == global_state[1]
    source = kept.assembly.data.clients[0].examples
    model = AutoModelForCausalLM.from_pretrained(ingredients / "model")
    with torch.random.fork_rng():
        torch.manual_seed(visit_seed())
        dataset = ClientDataset(source, source.source)  # type: ignore[attr-defined]
        table = one_client(ingredients).local
        context = VisitContext(0, 0, 1, 0, table, None, None, lambda loss: None)  # type: ignore[arg-type]
        by_hand = train(model, dataset, context)
    assert same(weights(kept.assembly.model), weights(model))
    (arrival,) = kept.arrivals
    assert arrival.metrics.keys() == {"drawn"}
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert line["train_loss"] == pytest.approx(by_hand["loss"])
    assert not kept.assembly.model.training


def test_a_run_with_a_trainer_of_ones_own_is_resumed_with_it(
    ingredients: Path, tmp_path: Path
) -> None:
    two = {"federation": {"rounds": 2, "clients_per_round": 1, "seed": 3}}
    run.start(one_client(ingredients, **two), tmp_path / "whole", trainer=train)
    run.start(one_client(ingredients), tmp_path / "part", trainer=train)
    text = (tmp_path / "part/recipe.toml").read_text()
    (tmp_path / "part/recipe.toml").write_text(text.replace("rounds = 1", "rounds = 2"))
    with pytest.raises(UserError, match="train with a function of yours; give it in Python"):
        run.resume(tmp_path / "part")
    run.resume(tmp_path / "part", trainer=train)
    logs = [(tmp_path / name / "updates.log").read_bytes() for name in ("whole", "part")]
    assert logs[0] == logs[1]
    run.start(one_client(ingredients, "transformers"), tmp_path / "named")
    with pytest.raises(UserError, match="began with a trainer of its recipe's"):
        run.resume(tmp_path / "named", trainer=train)


def returning(value: Any, act: Callable[[PreTrainedModel], None] = lambda model: None) -> Any:
    def trainer(model: PreTrainedModel, dataset: ClientDataset, context: VisitContext) -> Any:
        act(model)
        return value

    return trainer


def replaced(model: PreTrainedModel) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (returning(None), "the trainer returned no loss"),
        (returning({"steps": 3}), "the trainer returned no loss"),
        (returning({"loss": float("nan")}), "the training loss is not finite"),
        (returning({"loss": None}), "the trainer returned 'loss' as NoneType; return numbers"),
        (returning({"loss": torch.zeros(3)}), "the trainer returned 'loss' as Tensor"),
        (returning({"loss": 1.0, "note": "hi"}), "the trainer returned 'note' as str"),
        (returning({"loss": 1.0}, replaced), "put another tensor in the place of lm_head.weight"),
        (returning({"loss": 1.0}, lambda model: model.bfloat16()), "made .* torch.bfloat16 of sha"),
        (
            returning({"loss": 1.0}, lambda model: model.resize_token_embeddings(1300)),
            "made .* of shape|put another tensor in the place",
        ),
        ("sft", "local: 'sft' is no function; give one, or name a trainer"),
    ],
)
def test_a_trainer_that_does_not_do_its_part_is_told(
    ingredients: Path, tmp_path: Path, trainer: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run.start(one_client(ingredients), tmp_path / "run", trainer=trainer)


def add(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)


def scale_unseen(model: PreTrainedModel) -> None:
    """As torch does not count it."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.mul_(2.0)


@pytest.mark.parametrize("touch", [add, scale_unseen])
def test_what_a_visit_does_not_train_must_stay(
    ingredients: Path, tmp_path: Path, touch: Callable[[PreTrainedModel], None]
) -> None:
    adapters = {"method": {"name": "fedit", "rank": 1}}
    with pytest.raises(UserError, match="which this visit does not train"):
        run.start(
            one_client(ingredients, **adapters),
            tmp_path / "run",
            trainer=returning({"loss": 1.0}, touch),
        )


def test_steps_on_weights_in_16_bits_are_added_to_the_exact_ones(
    ingredients: Path, tmp_path: Path
) -> None:
    def grow(model: PreTrainedModel) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)

    kept = Keep()
    made = one_client(ingredients, model={"dtype": "bfloat16", "path": str(ingredients / "model")})
    run.start(made, tmp_path / "run", [kept], trainer=returning({"loss": 1.0}, grow))
    plain = AutoModelForCausalLM.from_pretrained(ingredients / "model", dtype=torch.bfloat16)
    for name, parameter in kept.assembly.model.named_parameters():
        # The exact value is within half a step of the one that was rounded, and so is the sum.
        wanted = 1.5 * dict(plain.named_parameters())[name].float()
        assert torch.allclose(parameter.float(), wanted, rtol=2**-8)


def test_the_loss_that_was_trained_decides_the_step(ingredients: Path, tmp_path: Path) -> None:
    """A trainer whose loss is the squared norm of one matrix, which is reckoned by hand."""
    asked: list[float] = []

    def shrink(model: PreTrainedModel, *_: Any) -> LocalResult:
        weight = model.lm_head.weight

        def measure() -> float:
            asked.append(float(weight.detach().square().sum()))
            return asked[-1]

        with torch.no_grad():
            weight.mul_(0.9)
        return LocalResult(1.0, measure=measure)

    model = AutoModelForCausalLM.from_pretrained(ingredients / "model")
    start = float(model.lm_head.weight.detach().square().sum())
    method = {"method": {"name": "ferret", "coordinates": 300}}
    run.start(one_client(ingredients, **method), tmp_path / "run", trainer=shrink)
    after, halfway, before = asked[:3]
    assert before == pytest.approx(start, rel=1e-5)
    assert after == pytest.approx(0.81 * start, rel=1e-5)
    assert halfway == pytest.approx(0.95**2 * start, rel=1e-5)


@pytest.mark.parametrize(
    ("trainer", "changes", "message"),
    [
        ("nobody", {}, "trainer.name: there is no trainer 'nobody'; choose among transformers"),
        ("sft", {"method": {"name": "fedkseed"}}, "clients of fedkseed train in a way of its own"),
        ("sft", {"local": {"optimizer": "lion"}}, "there is no optimizer"),
        ("sft", {"local": {"optimizer": "nadam"}}, "local.optimizer: transformers' trainers have"),
        ("dpo", {"local": {"optimizer": "sgd", "momentum": 0.9}}, "local.momentum: transformers"),
        ("dpo", {"local": {"micro_batch_size": 3, "batch_size": 4}}, "local.micro_batch_size"),
    ],
)
def test_what_a_trainer_cannot_do_is_said_before_a_model_is_loaded(
    tmp_path: Path, trainer: str, changes: dict[str, Any], message: str
) -> None:
    made = one_client(tmp_path, trainer, **changes)
    if "method" in changes:  # only a method that is built knows how its clients train
        write_model(tmp_path / "model")
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    with pytest.raises(UserError, match=message):
        run.start(made, tmp_path / "run")


def test_values_that_a_trainer_moves_are_the_visits(ingredients: Path, tmp_path: Path) -> None:
    """Other memory for a parameter is as good as its own."""

    def move(model: PreTrainedModel) -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data * 1.25

    kept = Keep()
    run.start(one_client(ingredients), tmp_path / "run", [kept], returning({"loss": 1.0}, move))
    plain = dict(AutoModelForCausalLM.from_pretrained(ingredients / "model").named_parameters())
    for name, parameter in kept.assembly.model.named_parameters():
        assert torch.equal(parameter, plain[name] * 1.25)


def test_a_function_and_a_trainer_by_name_are_one_too_many(
    ingredients: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"that is given, or with sft; give one of the two"):
        run.start(one_client(ingredients, "sft"), tmp_path / "run", trainer=train)


def test_preferences_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"line 1: trainer.name: dpo learns from .* 'rejected'"):
        run.start(one_client(tmp_path, "dpo"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
