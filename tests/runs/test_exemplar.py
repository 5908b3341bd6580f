"""A chat about requests with an input: one is shown first, and both parts are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fullfed.cli import app
from fullfed.data.examples import Example, Turn
from fullfed.data.wording import AlpacaWording, read_request
from fullfed.evaluation.evaluate import Prediction
from fullfed.recipe_file import load_recipe
from fullfed.runs import exemplar, run
from fullfed.runs.conversation import conversations
from fullfed.runs.exemplar import Exemplar, exemplar_of
from fullfed.runs.folder import RunFolder

NEW = 4  # tokens of an answer


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on requests with inputs, which keeps its answers."""
    out = tmp_path_factory.mktemp("asked") / "run"
    recipe = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin", "partition": "task"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "local": {"steps": 1, "learning_rate": 0.1},
        "method": {"name": "fedavg"},
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": NEW, "generation_samples": 3},
    }
    run.start(load_recipe(recipe), out)
    return out


def test_a_request_is_read_as_it_was_worded() -> None:
    input_ = "one\n\n### Input:\ntwo"
    prompt = AlpacaWording.prompt(Example.single("Do it.", input_, "x"))
    assert read_request(f"<s>{prompt}") == ("Do it.", input_)
    assert read_request(AlpacaWording.prompt(Example.single("Do it.", "", "x"))) is None
    assert read_request("<|im_start|>user\nDo it.\n\none<|im_end|>\n") is None
    turns = [("user", "Who?"), ("assistant", "I."), ("user", "Do it."), ("assistant", "x")]
    talk = Example(tuple(Turn(role, text, role == "assistant") for role, text in turns))
    assert read_request(AlpacaWording.prompt(talk)) is None


def test_one_that_was_learned_is_shown(monkeypatch: pytest.MonkeyPatch, asked: Path) -> None:
    answers = {"a": ("no", "no"), "b": ("B", "no"), "c": ("no", "c."), "d": ("no", "D")}
    kept: dict[int, list[Prediction]] = {0: [], 7: []}
    for number, (name, of_versions) in enumerate(answers.items()):
        prompt = AlpacaWording.prompt(Example.single(f"Say {name}.", name, name))
        for version, answer in zip(kept, of_versions, strict=True):
            kept[version].append(Prediction(number, prompt, (name,), answer))
    monkeypatch.setattr(exemplar, "read_predictions", lambda _: kept)
    found = exemplar_of(RunFolder(asked))
    others = ("Say a.", "Say b.", "Say d.")
    assert found == Exemplar("Say c.", "c", {"before": "no", "after": "c."}, others)
    monkeypatch.setattr(exemplar, "read_predictions", lambda _: {})
    assert exemplar_of(RunFolder(asked)) is None


def test_in_a_terminal_one_is_shown_and_both_are_asked_for(
    asked: Path, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = exemplar_of(RunFolder(asked))
    assert shown is not None
    typed += ["", "ann, bob", "Draw a path.", "ann, bob"]
    app(["chat", str(asked), "--max-new-tokens", str(NEW)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:6] == [
        f"instruction: {shown.instruction}",
        f"input: {shown.input}",
        f"before: {shown.answers['before']}",
        f"after: {shown.answers['after']}",
    ]
    instruction = shown.instruction
    for line, next_one in (("", instruction), ("Draw a path.", "Draw a path.")):
        at = lines.index(f"instruction [{instruction}]: {line}")
        instruction = next_one
        talks = conversations(str(asked))
        assert lines[at + 1 : at + 4] == [
            "input: ann, bob",
            *(
                f"{name}: {talks[name].ask(instruction, NEW, lambda _: None, 'ann, bob')}"
                for name in ("before", "after")
            ),
        ]


def test_a_tab_divides_a_line_of_a_pipe(asked: Path) -> None:
    kept = [json.loads(line) for line in (asked / "predictions.jsonl").read_text().splitlines()]
    requests = [read_request(one["prompt"]) for one in kept if one["version"] == 0]
    text = "".join(f"{request[0]}\t{request[1]}\n" for request in requests if request)
    arguments = ["chat", str(asked), "--max-new-tokens", str(NEW), "--after-only"]
    result = CliRunner().invoke(app, arguments, input=text)
    answers = [" ".join(one["answer"].split()) for one in kept if one["version"] == 1]
    assert result.stdout.splitlines() == answers
