"""Data that do not fit the model are refused before the run's folder is there; dates are frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from fullfed.comparisons.folder import ComparisonFolder
from fullfed.comparisons.plan import contestants
from fullfed.engines.node_messages import decode_settings, encode_settings
from fullfed.errors import UserError
from fullfed.runs import assembly, run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.progress import describe
from fullfed.runs.replay import measure

from .small import recipe, tables, write_data, write_ingredients


def refused(folder: Path, out: Path, **changes: Mapping[str, Any]) -> str:
    """Why a run is refused, of which nothing is to be left."""
    with pytest.raises(UserError) as caught:
        run.start(recipe(folder, **changes), out)
    assert not out.exists()
    return str(caught.value)


def rewrite(folder: Path, **fields: Any) -> None:
    """Change every record of the training data."""
    path = folder / "train.jsonl"
    records = [json.loads(line) | fields for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_more_tokens_than_the_context_are_refused(tmp_path: Path, kind: str) -> None:
    folder = write_ingredients(tmp_path)
    if kind == "gpt2":  # which calls its context n_positions
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=8, n_layer=2, n_head=2, n_positions=128
        )
        GPT2LMHeadModel(config).save_pretrained(folder / "model")
    why = refused(folder, tmp_path / "run", data={"max_length": 129})
    assert why.startswith("data.max_length: 129 is more than the 128 tokens that the model reads")
    assembly.assemble(recipe(folder, data={"max_length": 128}))


def test_tokens_beyond_the_embeddings_are_refused(tmp_path: Path) -> None:
    folder = write_ingredients(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder / "model")
    assembly.assemble(recipe(folder))  # what no text has does no harm
    rewrite(folder, output="zebra")
    rows = len(tokenizer) - 1
    why = refused(folder, tmp_path / "run")
    assert f"the data have token {rows} of the tokenizer's, and the model has embeddings for" in why
    data = {"test": str(folder / "train.jsonl")}
    with pytest.raises(UserError, match=f"the data have token {rows} "):
        assembly.assemble_server(recipe(folder, data=data), 2)


def test_empty_answers_are_counted_and_data_of_nothing_else_refused(tmp_path: Path) -> None:
    folder = write_ingredients(tmp_path)
    lines = (folder / "train.jsonl").read_text().splitlines()
    for number in (0, 3):
        lines[number] = json.dumps(json.loads(lines[number]) | {"output": " \n"})
    (folder / "train.jsonl").write_text("\n".join(lines))
    assert describe(assembly.assemble(recipe(folder))).endswith(
        "evaluation samples, 2 answers empty"
    )
    rewrite(folder, output="")
    assert "The training data: every answer is empty" in refused(folder, tmp_path / "run")
    write_data(tmp_path / "full.jsonl")
    (folder / "train.jsonl").rename(tmp_path / "empty.jsonl")
    data = {"train": str(tmp_path / "full.jsonl"), "test": str(tmp_path / "empty.jsonl")}
    changed = recipe(folder, data=data)
    changed = changed.model_copy(
        update={"data": changed.data.model_copy(update={"hold_out": None})}
    )
    with pytest.raises(UserError, match="The test set: every answer is empty"):
        assembly.assemble(changed)


DATED = (
    "{% for m in messages %}{{ m.role }} on {{ strftime_now('%d %B %Y') }}: {{ m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant on "
    "{{ strftime_now('%d %B %Y') }}: {% endif %}"
)


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    """Ingredients whose chat template writes the date."""
    folder = write_ingredients(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder / "model")
    return folder


def on(day: date, monkeypatch: pytest.MonkeyPatch) -> None:
    class Today(date):
        @classmethod
        def today(cls) -> date:  # type: ignore[override]
            return day

    monkeypatch.setattr(assembly, "date", Today)


class StopError(Exception):
    pass


class Stop(run.Callback):
    def on_round_end(self, record: dict[str, Any]) -> None:
        if record["round"] == 1:
            raise StopError


def test_a_run_that_goes_on_another_day_is_the_run_it_was(
    dated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, out = recipe(dated, data={"template": "chat"}), tmp_path / "run"
    on(date(2026, 3, 1), monkeypatch)
    with pytest.raises(StopError):
        run.start(chat, out, [Stop()])
    assert 'date = "2026-03-01"' in (out / "recipe.toml").read_text()
    on(date(2026, 3, 2), monkeypatch)
    summary = run.resume(out)
    same = recipe(dated, data={"template": "chat", "date": "2026-03-01"})
    assert run.start(same, tmp_path / "same")["model_hash"] == summary["model_hash"]
    assert run.start(chat, tmp_path / "other")["model_hash"] != summary["model_hash"]


def test_nodes_are_told_the_date(dated: Path) -> None:
    told = assembly.settled(recipe(dated), date(2026, 3, 1))
    settings = decode_settings(encode_settings(told, 3, "0" * 64), "builtin", "cpu", "x.jsonl")
    assert settings.recipe.data.date == date(2026, 3, 1)


def test_a_comparison_that_goes_on_another_day_is_the_same(
    dated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ComparisonFolder(tmp_path / "comparison")
    folder.path.mkdir()
    for day in (date(2026, 3, 1), date(2026, 3, 2)):
        on(day, monkeypatch)
        folder.accept(contestants(tables(dated), ["fedavg"], "the test"), 3, 2)
        assert folder.recipe("fedavg").data.date == date(2026, 3, 1)


WORDS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
)


def test_a_template_of_a_file_is_the_runs_and_the_exported_models(
    ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ours.jinja").write_text(WORDS)
    run.start(recipe(ingredients, data={"template": "ours.jinja"}), tmp_path / "run")
    Path("ours.jinja").unlink()
    run.resume(tmp_path / "run")
    export(RunFolder(tmp_path / "run"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False)
    assert said == "<s><user>Hi.</s>"
    measured = measure(str(tmp_path / "run"), RunFolder(tmp_path / "run").recipe())
    assert measured["loss"] == RunFolder(tmp_path / "run").summary()["loss"]["final"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "ours.jinja cannot be read"), ("no words", "this is no chat template in Jinja")],
)
def test_a_file_that_is_no_template_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("ours.jinja").write_text(content)
    with pytest.raises(UserError, match=message):
        run.start(recipe(tmp_path, data={"template": "ours.jinja"}), tmp_path / "run")
