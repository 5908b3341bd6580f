"""Conversations, against the chat template, transformers' generation and a run's own answers."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from data.chat_templates import KINDS, make_tokenizer
from fullfed.cli import app
from fullfed.data.chat import on_date
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.evaluation.generation import generate, generate_aloud
from fullfed.runs import conversation, run
from fullfed.runs.conversation import Conversation, conversations
from runs.small import recipe

NEW = 6  # tokens of an answer
TODAY = date(2025, 3, 4)


@pytest.fixture(scope="module")
def answered(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps its answers."""
    out = tmp_path_factory.mktemp("answered") / "run"
    measured = {"metrics": ["exact_match"], "max_new_tokens": NEW, "every": 4}
    run.start(recipe(ingredients, evaluation=measured), out)
    return out


def answers(run: Path, version: int) -> list[str]:
    lines = map(json.loads, (run / "predictions.jsonl").read_text().splitlines())
    return [" ".join(line["answer"].split()) for line in lines if line["version"] == version]


def questions(ingredients: Path) -> list[str]:
    """Those of the test set."""
    lines = map(json.loads, (ingredients / "train.jsonl").read_text().splitlines())
    return [line["instruction"] for line in lines if line["category"] == "white"]


def piped(run: Path | str, text: str, *options: str) -> list[str]:
    """The lines that the command answers to those of a pipe."""
    arguments = ["chat", str(run), "--max-new-tokens", str(NEW), *options]
    result = CliRunner().invoke(app, arguments, input=text)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    "kind", ["ChatML", "Llama 3", "Gemma", "Mistral", "Qwen 2", "Qwen 3", "Zephyr", "SmolLM 2"]
)
def test_each_question_is_put_as_the_chat_template_puts_it(
    kind: str, tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(KINDS[kind])
    template = on_date(tokenizer.chat_template, TODAY)
    asked: list[list[int]] = []
    replies = iter(["Paris, I think.", "the numbers one and two", "What?"])

    def reply(_: object, __: object, example: TokenizedExample, *___: object) -> str:
        asked.append(example.ids[: example.prompt_length].tolist())
        return next(replies)

    monkeypatch.setattr(conversation, "generate_aloud", reply)
    tiny_llama.config.max_position_embeddings = 2048
    talk, messages = Conversation(tiny_llama, tokenizer, "auto", TODAY), list[dict[str, str]]()
    for question in ("What is the capital of France?", "And which numbers?", "Why?"):
        messages.append({"role": "user", "content": question})
        answer = talk.ask(question, 8, print)
        whole: Any = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, return_dict=False
        )
        assert asked[-1] == whole
        messages.append({"role": "assistant", "content": answer})


def test_a_system_message_and_text_that_spells_special_tokens(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(KINDS["ChatML"])
    seen: list[TokenizedExample] = []
    monkeypatch.setattr(conversation, "generate_aloud", lambda *a: str(seen.append(a[2])))
    tiny_llama.config.max_position_embeddings = 2048
    turns = [conversation.Turn("system", "Be brief.")]
    Conversation(tiny_llama, tokenizer, turns=turns).ask("Say <|im_end|> now.", 8, print)
    ids = seen[0].ids[: seen[0].prompt_length].tolist()
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay <|im_end|> now.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2, "the third is text"


def test_a_run_answers_as_it_did_when_it_was_measured(answered: Path, ingredients: Path) -> None:
    text = "".join(f"{question}\n" for question in questions(ingredients))
    assert piped(answered, text, "--after-only") == answers(answered, 4)
    both = piped(answered, text)
    assert both[0::2] == [f"before: {answer}".rstrip() for answer in answers(answered, 0)]
    assert both[1::2] == [f"after: {answer}".rstrip() for answer in answers(answered, 4)]


def test_a_model_answers_alone(ingredients: Path, answered: Path) -> None:
    text = "".join(f"{question}\n" for question in questions(ingredients))
    assert piped(ingredients / "model", text) == answers(answered, 0)


def test_what_is_said_aloud_is_the_answer(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Whatever the bytes spell: many of a random model's are halves of characters."""
    for number in range(20):
        ids = [256, 10 * number, 3, 65 + number, 257]
        example = TokenizedExample.pair(np.array(ids, dtype=np.int32), 4)
        pieces: list[str] = []
        answer = generate_aloud(tiny_llama, byte_tokenizer, example, 12, pieces.append)
        assert "".join(pieces) == answer
        assert [answer] == generate(tiny_llama, byte_tokenizer, [example], 12, 1)


def test_in_a_terminal_it_is_one_conversation(
    answered: Path, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = "Say white 1 times.", "Say white 2 times."
    typed += [first, "  ", second]
    app(["chat", str(answered), "--max-new-tokens", str(NEW)], standalone_mode=False)
    talks = conversations(str(answered))
    said = [
        "\n".join(
            [f"> {question}"]
            + [f"{name}: {talks[name].ask(question, NEW, lambda _: None)}" for name in talks]
        )
        for question in (first, second)
    ]
    assert capsys.readouterr().out == f"{said[0]}\n>   \n{said[1]}\n> \n"


def test_a_long_conversation_loses_its_oldest_turns(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(KINDS["ChatML"])
    seen: list[TokenizedExample] = []
    monkeypatch.setattr(conversation, "generate_aloud", lambda *a: str(seen.append(a[2])))
    tiny_llama.config.max_position_embeddings = 96
    talk = Conversation(tiny_llama, tokenizer)
    for number in range(8):
        talk.ask(f"Question number {number}?", 16, print)
    last = tokenizer.decode(seen[-1].ids[: seen[-1].prompt_length].tolist())
    assert "number 7?" in last
    assert "number 0?" not in last
    assert len(seen[-1].ids) <= 96 - 16


def test_answers_too_long_for_the_model_are_refused(tiny_llama: LlamaForCausalLM) -> None:
    talk = Conversation(tiny_llama, make_tokenizer(KINDS["ChatML"]))
    with pytest.raises(UserError, match="no room for so long an answer; ask for fewer"):
        talk.ask("Who?", 64, print)


def test_nothing_that_steers_a_terminal_is_shown(
    ingredients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "generate_aloud", lambda *_: "a\x1b[31mb\x07")
    assert piped(ingredients / "model", "Who?\n") == ["a[31mb"]
