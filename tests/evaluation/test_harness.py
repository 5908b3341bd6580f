"""Benchmarks of lm-eval on local task files, against the same numbers by transformers alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from typer.testing import CliRunner

import fullfed
from fullfed.cli import app
from fullfed.errors import UserError
from fullfed.quickstart import MODEL_PATH
from fullfed.runs import run
from runs.small import recipe, write_ingredients

QUESTIONS = [
    {"q": "Say pear twice.", "choices": ["pear pear", "the dog", "a"], "gold": 0},
    {"q": "Tell which word is a colour: red, dog.", "choices": ["red", "dog"], "gold": 0},
    {"q": "Exchange the two words: egg farm.", "choices": ["egg farm", "farm egg"], "gold": 1},
    {"q": "Is a horse an animal?", "choices": ["no", "yes"], "gold": 1},
]
CHOOSING = """
task: choosing
dataset_path: json
dataset_kwargs:
  data_files:
    test: %s
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs:
  data_files:
    test: %s
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 5
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(autouse=True)
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL_PATH).eval()


def task_file(folder: Path, text: str, records: list[dict[str, object]]) -> Path:
    data, file = folder / "data.jsonl", folder / "task.yaml"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    file.write_text(text % data)
    return file


def log_likelihood(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return sum(float(logits[at, token]) for at, token in zip(places, answer, strict=True))


def test_a_choice_is_the_likelier_one(model: PreTrainedModel, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    right = 0
    for one in QUESTIONS:
        prompt = tokenizer(one["q"])["input_ids"]
        scores = []
        for choice in one["choices"]:
            whole = tokenizer(f"{one['q']} {choice}")["input_ids"]
            scores.append(log_likelihood(model, prompt, whole[len(prompt) :]))
        right += scores.index(max(scores)) == one["gold"]
    file = task_file(tmp_path, CHOOSING, QUESTIONS)
    measured = fullfed.evaluate("builtin", tasks=[str(file)])
    assert measured == {"choosing acc": right / len(QUESTIONS)}


def test_what_is_written_is_compared_and_the_command_shows_it(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    """Three references of five are what transformers has the model write."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    records: list[dict[str, object]] = []
    for number, word in enumerate(("pear", "dog", "egg", "farm", "red")):
        question = f"Say {word} twice."
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            new = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
        answer = tokenizer.decode(new, skip_special_tokens=True)
        records.append({"q": question, "answer": answer if number < 3 else f"{answer} not"})
    file = task_file(tmp_path, WRITING, records)
    result = CliRunner().invoke(app, ["evaluate", "builtin", "--tasks", f"{file}, "])
    assert result.exit_code == 0, result.output
    assert ["writing", "exact_match", "0.6000"] in [
        line.replace("│", " ").split() for line in result.stdout.splitlines()
    ]


def test_of_a_run_it_is_the_newest_model(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run.start(recipe(write_ingredients(tmp_path), federation={"rounds": 1}), out)
    file = task_file(tmp_path, CHOOSING, QUESTIONS)
    of_run = fullfed.evaluate(out, tasks=[str(file)])
    trained, tokenizer = fullfed.RunResult(out).model()
    assert of_run == fullfed.evaluate(trained, tokenizer=tokenizer, tasks=[str(file)])


def test_what_cannot_be_measured_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(CHOOSING % (tmp_path / "no.jsonl"))
    cases = {
        "no/such.yaml": "no/such.yaml: there is no such file",
        str(bad): "lm-eval cannot measure them",
        "no-such-task": "no-such-task: lm-eval has no task of this name",
        " ,": "no task is named",
    }
    for tasks, message in cases.items():
        result = CliRunner().invoke(app, ["evaluate", "builtin", "--tasks", tasks])
        assert isinstance(result.exception, UserError), tasks
        assert message in str(result.exception)
    with pytest.raises(UserError, match="by a recipe or on tasks; give one of the two"):
        fullfed.evaluate("builtin", "recipe.toml", tasks=[str(bad)])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("fullfed.evaluation.harness.find_spec", lambda _: None)
    with pytest.raises(UserError, match="tasks need lm-eval"):
        fullfed.evaluate("builtin", tasks=[str(bad)])
