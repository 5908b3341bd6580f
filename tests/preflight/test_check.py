"""`fullfed check`: mistakes show before weights are loaded, and what it tells is so."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

import fullfed
from fullfed.cli import app
from fullfed.data.examples import Example, Turn
from fullfed.data.tokens import tokenize
from fullfed.preflight.samples import passages
from fullfed.preflight.text import histogram, report
from fullfed.quickstart import MODEL_PATH
from runs.small import tables, write_ingredients

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ingredients(tmp_path_factory.mktemp("ingredients"))


@pytest.fixture(scope="module")
def weightless(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without the model's weights."""
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("weightless") / "ingredients"))
    (copy / "model" / WEIGHTS).unlink()
    return copy


MISTAKES = {
    "local.learning_rat=1": "there is no key 'local.learning_rat'",
    "local.optimizer=adamv": "adamv",
    "method.coordinates=0": "method: coordinates is at least 1",
    "method.coordinates=1000000": "coordinates",
    "method.name=fedavgg": "there is no method 'fedavgg'",
    "data.train=nothing.jsonl": "nothing.jsonl does not exist",
    "data.columns.prompt=question": "question",
    "data.hold_out=purple": "The category 'purple' cannot be held out",
    "data.max_length=1000": "data.max_length: 1000 is more than the 128 tokens",
    "data.max_length=2": "has no example whose answer fits into 2 tokens",
    "data.template=chat": "chat template",
    "federation.clients_per_round=9": "9 clients a round, but the data make only 4 clients",
    "evaluation.metrics=['exact_match'] evaluation.max_new_tokens=128": "ask for fewer new tokens",
    "memory.frozen=int8": "memory.frozen",
    "check.trusted=['brown'] check.samples=4": "there is no client 'brown'",
    "trainer.name=dpo method.name=fedavg": "preferences",
    "aggregation.name=trimmed-mean": "number by number",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_show_without_weights(mistake: str, weightless: Path) -> None:
    with pytest.raises(fullfed.UserError, match=re.escape(MISTAKES[mistake])):
        fullfed.check(tables(weightless), overrides=mistake.split(" "))


def test_weights_are_needed_for_the_time_alone(weightless: Path, folder: Path) -> None:
    found = fullfed.check(tables(weightless), step=False)
    assert found.timing is None
    assert found.costs == fullfed.estimate(tables(folder))
    with pytest.raises(fullfed.UserError, match="cannot be loaded"):
        fullfed.check(tables(weightless))


def test_it_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = sorted(folder.rglob("*"))
    told = tables(folder) | {"method": {"name": "fedavg"}}
    told["codec"] = {"name": "dense", "precision": "int8", "error_feedback": True}  # keeps a state
    fullfed.check(told)
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.rglob("*")) == before


METHODS: dict[str, dict[str, Any]] = {
    "ferret": {"coordinates": 300},
    "fedavg": {},
    "fedkseed": {},
    "fedzo": {},
    "fedcybgd": {},
    "embracing-fl": {},
    "blockllm": {},
    "fedit": {"rank": 2},
    "flora": {"rank": 2},
    "fed-sb": {"rank": 2},
    "flexlora": {"ranks": [1, 2]},
    "fedbpt": {"prompt_tokens": 3, "dimension": 8, "population": 3},
    "fedpeptao": {"prefix_tokens": 2},
    "slora": {"rank": 2},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_checked(name: str, folder: Path) -> None:
    told = tables(folder) | {"method": {"name": name, **METHODS[name]}}
    told["local"] = {"learning_rate": 1e-3, "steps": 2}
    told["evaluation"] = {"every": 3, "metrics": ["loss", "exact_match"], "max_new_tokens": 4}
    found = fullfed.check(told)
    assert found.samples.by_client == dict.fromkeys(("black", "blue", "green", "red"), 8)
    assert (found.samples.test, found.work.visits, found.work.steps) == (8, 8, 16)
    assert found.evaluations == 3, "the base model, after three rounds, and after the fourth"
    assert found.memory.visit > found.memory.graph > 0
    timing = found.timing
    assert timing is not None
    assert 0 < timing.step_seconds < timing.visit_seconds < timing.run_seconds
    assert timing.evaluation_seconds > 0


@pytest.mark.parametrize("frozen", ["exact", "int4"])
def test_clients_without_a_replica_need_a_part_of_the_model(frozen: str, folder: Path) -> None:
    told = tables(folder) | {"memory": {"frozen": frozen}}
    whole, weak = (
        fullfed.check(told | {"method": {"name": "fedcybgd", **surrogate}}, step=False)
        for surrogate in ({}, {"surrogate": 0.5})
    )
    assert 0 < weak.memory.graph < weak.memory.visit < whole.memory.visit
    weights = whole.costs.parameters * 4
    assert whole.memory.server == 0
    assert weights < weak.memory.server < 2 * weights, "its replica, and the client's message"
    assert " for the server beside it" in report(weak, colour=False).plain


def test_worker_processes_are_counted(folder: Path) -> None:
    told = tables(folder)
    one = fullfed.check(told, step=False).memory
    three = fullfed.check(told | {"simulation": {"workers": 3}}, step=False)
    assert one.together == one.peak
    both = one.replica + three.memory.replica + three.memory.process
    assert three.memory.together == 3 * three.memory.peak + both
    assert "the run's process and 3 worker processes at once: " in str(report(three, colour=False))


def test_objects_can_be_checked(folder: Path, tmp_path: Path) -> None:
    """As the run that they would be given to."""
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    own = {n: [{"instruction": f"Say {n}.", "output": n}] * 6 for n in ("north", "south")}
    told = {name: table for name, table in tables(folder).items() if name != "model"}
    told["data"] = {"test_samples": 2}
    given: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "clients": own}
    found = fullfed.check(told, **given)
    run = fullfed.run(told, tmp_path / "run", **given)
    assert found.samples.by_client.keys() == {"north", "south"}
    assert sum(found.samples.by_client.values()) + found.samples.test == 12
    assert found.costs.parameters == run["parameters"]
    assert found.costs.run_bytes_up == pytest.approx(run.bytes_up, rel=0.1)
    assert found.timing is not None
    with pytest.raises(fullfed.UserError, match=r"^data/clients/north\.jsonl"):
        fullfed.check(told, **given | {"clients": {"north": [{"nothing": "known"}]}})


def test_a_trainer_that_tells_of_no_steps_is_timed_for_a_whole_visit(folder: Path) -> None:
    asked = []

    def train(model: Any, dataset: Any, context: Any) -> dict[str, float]:
        asked.append(context.local.steps)
        time.sleep(0.02 * context.local.steps)
        return {"loss": 1.0}

    told = tables(folder) | {"method": {"name": "fedavg"}}
    found = fullfed.check(told, local=train, overrides=["local.steps=8"])
    assert {*asked} == {3, 8}
    assert found.timing is not None
    assert 0.16 < found.timing.visit_seconds < 1.6
    assert found.timing.step_seconds == pytest.approx(found.timing.visit_seconds / 8)


def test_a_trainer_with_batches_of_its_own_is_timed_by_steps(folder: Path) -> None:
    def train(model: Any, dataset: Any, context: Any) -> dict[str, float]:
        for _ in range(context.local.steps):
            time.sleep(0.02)
            context.log(1.0)
        return {"loss": 1.0}

    told = tables(folder) | {"method": {"name": "fedavg"}}
    timing = fullfed.check(told, local=train, overrides=["local.steps=50"]).timing
    assert timing is not None
    assert 0.02 < timing.step_seconds < 0.2
    assert timing.visit_seconds > 50 * timing.step_seconds


def test_the_held_out_check_takes_a_pass_for_each_report_and_one_more(folder: Path) -> None:
    told = tables(folder) | {"method": {"name": "fedavg"}, "check": {"samples": 8}}
    told["federation"]["clients_per_round"] = 3
    found = fullfed.check(told)
    assert found.work.held_out_passes == 4 * (3 + 1)
    timing = found.timing
    assert timing is not None
    least = timing.visit_seconds * 12 + timing.evaluation_seconds * 3 + timing.check_seconds * 4
    assert timing.run_seconds >= least > timing.check_seconds * 4 > 0
    assert "the held-out check of a round's reports: " in report(found, colour=False).plain
    unchecked = fullfed.check({n: t for n, t in told.items() if n != "check"})
    assert unchecked.work.held_out_passes == 0
    assert unchecked.timing is not None
    assert unchecked.timing.check_seconds == 0


def test_a_visit_that_fails_is_told(folder: Path) -> None:
    with pytest.raises(fullfed.UserError, match="A visit of 3 steps fails: the training loss is"):
        fullfed.check(tables(folder), overrides=["local.learning_rate=1e30", "local.clip="])


def test_a_trainer_that_is_to_be_given_cannot_be_timed(folder: Path) -> None:
    told = tables(folder) | {"trainer": {"name": "own"}, "method": {"name": "fedavg"}}
    fullfed.check(told, step=False)
    with pytest.raises(fullfed.UserError, match=r"trainer\.name: the clients of this recipe train"):
        fullfed.check(told)


@pytest.fixture
def recipe_file(folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tables(folder)))
    return file


def test_the_command_prints_plain_text_where_there_is_no_terminal(recipe_file: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(recipe_file)])
    assert result.exit_code == 0, result.output
    text = result.output
    assert "\x1b[" not in text
    assert text.startswith("ferret: 4 rounds, 8 visits, 16 steps, 3 evaluations, on cpu\n")
    assert "4 clients have 32 samples, the test set 8\n  black  8\n  blue   8\n" in text
    assert "what is learned between [[ and ]]:" in text
    assert re.search(r"### Response:\[\[ ?black</s>\]\]", text)
    for told in ("a visit sends ", "the run sends ", "memory, by formula: ", "time, by that visit"):
        assert told in text
    short = CliRunner().invoke(app, ["check", str(recipe_file), "--no-step"]).output
    assert "memory, by formula" in short
    assert "time, by" not in short
    with_scales = ["check", str(recipe_file), "--no-step", "--set", "method.scales=curvature"]
    assert "scales are measured on the base" in CliRunner().invoke(app, with_scales).output
    assert "scales" not in short


def test_with_colours_what_is_learned_is_green(folder: Path) -> None:
    text = report(fullfed.check(tables(folder), step=False), colour=True)
    (green,) = [text.plain[span.start : span.end] for span in text.spans if span.style == "green"]
    assert green.strip() == "black</s>"
    assert "[[" not in text.plain


def test_many_clients_are_a_histogram() -> None:
    counts = [10] * 5 + [12] * 10 + [89]
    lines = histogram(counts)
    assert len(lines) == 8, "ten numbers each"
    assert lines[0] == f"  10 to 19 samples  {'#' * 40} 15"
    assert lines[-1] == "  80 to 89 samples  ### 1"
    assert sum(int(line.split()[-1]) for line in lines) == len(counts)
    assert histogram([48] * 3) == [f"  48 samples  {'#' * 40} 3"]


def test_a_conversation_has_a_passage_for_each_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    talk = Example(
        (
            Turn("user", "Say one."),
            Turn("assistant", "one", learned=True),
            Turn("user", "Say two."),
            Turn("assistant", "two", learned=True),
        ),
        ("two",),
    )
    (tokenized,) = tokenize([talk], tokenizer, "chat", 200).examples
    shown = passages(tokenized, tokenizer)
    assert [passage.learned for passage in shown] == [False, True, False, True]
    assert "".join(passage.text for passage in shown) == tokenizer.decode(tokenized.ids)
    assert [p.text.strip() for p in shown if p.learned] == ["one</s>", "two</s>"]
