"""A run with a held-out check: who does harm is left out, named, and let in when vouched for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from fullfed.config import Recipe
from fullfed.data.client_dataset import ClientDataset
from fullfed.errors import UserError
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.assembly import assemble
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.runs.rollback import roll_back
from fullfed.training.trainer import VisitContext
from runs.small import recipe, write_model
from runs.test_resume import records

ROUNDS = 4
LIAR = 2
CLIENTS = 4
FOUR = {"federation": {"rounds": ROUNDS, "clients_per_round": CLIENTS}}
DATA = {"hold_out": None, "test_samples": 4, "partition": "iid", "clients": CLIENTS}


def climb(
    model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
) -> dict[str, float]:
    """Four steps of gradient descent; the liar's go up, and twice as far."""
    lies = context.client == LIAR
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2 if lies else 0.1, maximize=lies)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**dataset.collate(dataset[: len(dataset)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"loss": sum(losses) / len(losses)}


class Stop(Callback):
    """Ctrl-C after so many rounds."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def on_round_end(self, record: dict[str, Any]) -> None:
        if record["round"] + 1 == self._rounds:
            raise KeyboardInterrupt


def write_parts(folder: Path) -> None:
    """parts/: a file for each client, of much the same records; held-out.jsonl: the server's."""
    records = [
        json.dumps({"instruction": f"Say {color}.", "output": f"{color} {color}"}) + "\n"
        for color in ("red", "blue", "green", "black", "white", "brown", "pink")
    ]
    (folder / "parts").mkdir()
    for client in range(CLIENTS):
        (folder / f"parts/{client}.jsonl").write_text("".join(records[client:] + records[:client]))
    (folder / "held-out.jsonl").write_text("".join(records[1:6]))


def checked(folder: Path, **check: Any) -> Recipe:
    """All four clients in each round; the test set is what the server checks on, too."""
    held_out = str(folder / "held-out.jsonl")
    return recipe(
        folder,
        data={
            **{"train": str(folder / "parts"), "test": held_out, "hold_out": None},
            "partition": "file",
        },
        federation={"rounds": ROUNDS, "clients_per_round": CLIENTS},
        method={"name": "ferret", "coordinates": 600, "seeds": "shared", "server_step": 0.5},
        check={"data": held_out, **check},
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_model(folder / "model")
    write_parts(folder)
    return folder


@pytest.fixture(scope="module")
def whole(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("checked") / "run")
    run.start(checked(parts, patience=2), folder.path, trainer=climb)
    return folder


def test_who_does_harm_is_left_out_and_after_two_visits_for_good(whole: RunFolder) -> None:
    found = [record["check"] for record in whole.metrics()]
    assert [one["left_out"] for one in found] == [[LIAR], [LIAR], [], []]
    assert [one["excluded"] for one in found] == [[], [], [LIAR], [LIAR]]
    assert [[*map(int, one["gains"])] for one in found] == [[0, 1, 2, 3]] * 2 + [[0, 1, 3]] * 2
    assert all(one["gains"][str(LIAR)] < 0 for one in found[:2])
    others = [gain for one in found for client, gain in one["gains"].items() if client != str(LIAR)]
    assert sum(others) > 0
    for record in whole.metrics():
        [refusal] = record["refused"]
        assert refusal["client"] == LIAR
        assert LIAR not in record["aggregated"]
    assert "held-out loss is" in whole.metrics()[0]["refused"][0]["reason"]
    assert "check.trusted" in whole.metrics()[3]["refused"][0]["reason"]
    assert verify(whole) > ROUNDS // 2


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_as_it_would_have(
    parts: Path, tmp_path: Path, whole: RunFolder, rounds: int
) -> None:
    out = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.start(checked(parts, patience=2), out.path, [Stop(rounds)], climb)
    run.resume(out.path, trainer=climb)
    assert out.log_file.read_bytes() == whole.log_file.read_bytes()
    assert records(out.path) == records(whole.path)


def test_a_run_that_was_taken_back_finds_the_same(
    parts: Path, tmp_path: Path, whole: RunFolder
) -> None:
    out = RunFolder(tmp_path / "run")
    run.start(checked(parts, patience=2), out.path, trainer=climb)
    roll_back(out, 1)
    run.resume(out.path, trainer=climb)
    assert out.log_file.read_bytes() == whole.log_file.read_bytes()


def test_the_operator_lets_a_client_in_again(parts: Path, tmp_path: Path) -> None:
    """By a word in the recipe, while the run lasts."""
    out = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.start(checked(parts, patience=2), out.path, [Stop(3)], climb)
    trusting = checked(parts, patience=2, trusted=["2"])
    out.write_recipe(load_recipe(out.recipe()).model_copy(update={"check": trusting.check}))
    run.resume(out.path, trainer=climb)
    *_, before, after = out.metrics()
    assert LIAR not in before["aggregated"]
    assert LIAR in after["aggregated"]
    assert after["check"]["excluded"] == after["check"]["left_out"] == []
    assert after["check"]["gains"][str(LIAR)] < 0, "it is measured all the same"


def test_without_a_check_nothing_is_measured(finished: Path) -> None:
    assert [record["check"] for record in RunFolder(finished).metrics()] == [None] * ROUNDS


def test_the_samples_are_nobodys_else(ingredients: Path) -> None:
    data = assemble(recipe(ingredients, data=DATA, check={"samples": 8}, **FOUR)).data
    assert len(data.check) == 8
    assert len(data.test) == 4
    of_clients = [e.ids.tobytes() for client in data.clients for e in client.examples]
    held_out = [e.ids.tobytes() for e in (*data.check, *data.test)]
    assert len({*of_clients, *held_out}) == len(of_clients) + len(held_out) == 40
    named = {"data": str(ingredients / "train.jsonl"), "samples": 5}
    data = assemble(recipe(ingredients, data=DATA, check=named, **FOUR)).data
    assert len(data.check) == 5
    assert sum(len(client.examples) for client in data.clients) == 36


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"check": {"samples": 8, "trusted": ["pink"]}},
            "check.trusted: there is no client 'pink'",
        ),
        ({"check": {"samples": 100}}, "check.samples: 100 examples to hold out of 36"),
        ({"check": {"samples": 0}}, "check.samples"),
        ({"check": {"patience": 0}}, "check.patience"),
        ({"check": {"data": "nowhere.jsonl"}}, "nowhere.jsonl"),
        (
            {"check": {"samples": 8}, "federation": {"rounds": 1, "clients_per_round": 2}},
            "and 2 of them are too few; have at least 3 clients",
        ),
    ],
)
def test_what_cannot_be_checked_is_said_in_a_sentence(
    ingredients: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        assemble(recipe(ingredients, data=DATA, **{**FOUR, **changes}))
