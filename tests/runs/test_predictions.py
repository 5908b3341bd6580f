"""The answers that a run keeps, against answers made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.evaluation.metrics import exact_match
from fullfed.runs import predictions, run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.predictions import read_predictions
from fullfed.runs.rollback import roll_back
from runs.small import recipe

MEASURED = {"every": 2, "metrics": ["loss", "exact_match"], "max_new_tokens": 4}


def answering(ingredients: Path, rounds: int = 4) -> Recipe:
    return recipe(ingredients, evaluation=MEASURED, federation={"rounds": rounds})


@pytest.fixture(scope="module")
def answered(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answered") / "run"
    run.start(answering(ingredients), out)
    return out


def copy(run: Path, target: Path) -> Path:
    target.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_each_measured_version_has_its_answers(answered: Path, ingredients: Path) -> None:
    found = read_predictions(RunFolder(answered))
    assert list(found) == [0, 2, 4]
    records = [json.loads(x) for x in (ingredients / "train.jsonl").read_text().splitlines()]
    white = [record for record in records if record["category"] == "white"]
    for of_version in found.values():
        assert [one.sample for one in of_version] == list(range(8))
        assert [one.references for one in of_version] == [(w["output"],) for w in white]
        for one, record in zip(of_version, white, strict=True):
            # The embedded model's tokenizer knows no line breaks.
            assert f"### Instruction: {record['instruction']}###" in one.prompt
            assert one.prompt.endswith("### Response:")


def test_metrics_are_of_these_answers(answered: Path) -> None:
    folder = RunFolder(answered)
    records = {0: folder.base(), **{r["round"] + 1: r for r in folder.metrics()}}
    for version, of_version in read_predictions(folder).items():
        answers, accepted = [o.answer for o in of_version], [o.references for o in of_version]
        assert exact_match(answers, accepted) == records[version]["exact_match"]


def test_the_last_answers_are_what_the_exported_model_writes(
    answered: Path, tmp_path: Path
) -> None:
    export(RunFolder(answered), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for one in read_predictions(RunFolder(answered))[4]:
        asked = tokenizer(one.prompt, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(**asked, max_new_tokens=4, do_sample=False)
        new = written[0, asked["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == one.answer


def test_a_run_without_metrics_of_answers_keeps_none(finished: Path) -> None:
    assert not (finished / "predictions.jsonl").exists()
    assert read_predictions(RunFolder(finished)) == {}


def test_of_many_answers_some_are_kept(
    ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "MOST", 3)
    run.start(answering(ingredients, rounds=1), tmp_path / "run")
    found = read_predictions(RunFolder(tmp_path / "run"))
    assert [one.sample for one in found[1]] == [0, 2, 5]


def test_a_run_taken_back_and_carried_on_has_the_same_answers(
    answered: Path, tmp_path: Path
) -> None:
    out = copy(answered, tmp_path / "copy")
    whole = (answered / "predictions.jsonl").read_bytes()
    roll_back(RunFolder(out), 3)
    assert list(read_predictions(RunFolder(out))) == [0, 2]
    run.resume(out)
    assert (out / "predictions.jsonl").read_bytes() == whole


def test_answers_whose_round_was_cut_short_are_not_the_run_s(
    answered: Path, tmp_path: Path
) -> None:
    """As after a crash between the answers of version 4 and the line of metrics.jsonl."""
    out = copy(answered, tmp_path / "copy")
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (out / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    (out / "summary.json").unlink()
    assert list(read_predictions(RunFolder(out))) == [0, 2]
    run.resume(out)
    assert (out / "predictions.jsonl").read_bytes() == (answered / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"answer": "', b'"answer": "x', 1),
        lambda data: b"",
        lambda data: data.replace(b'"version": 2', b'"version": "2"'),
        lambda data: b"[]\n" + data,
        lambda data: b"\xff\n" + data,
    ],
)
def test_changed_answers_are_refused(
    answered: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    out = copy(answered, tmp_path / "copy")
    file = out / "predictions.jsonl"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"predictions.jsonl: .*; restore a copy of it"):
        read_predictions(RunFolder(out))
