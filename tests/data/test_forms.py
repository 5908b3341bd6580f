"""Every form that data come in gives the ids and the mask that plain transformers gives."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fullfed.config_data import ColumnsTable
from fullfed.data.sources import read_examples
from fullfed.data.tokens import tokenize
from fullfed.errors import UserError

from .chat_templates import TOOLS, Kind, make_tokenizer

TOKENIZER = make_tokenizer(Kind(TOOLS, ("<|im_end|>", "<|im_start|>"), "<|im_end|>"))
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is the capital?"}
BOT = {"role": "assistant", "content": "It is Paris."}
AGAIN = {"role": "user", "content": "And now?"}
LAST = {"role": "assistant", "content": "Rome, I say."}
TALK = [SYSTEM, USER, BOT, AGAIN, LAST]

PASSAGE = [
    {"role": "user", "content": "Who?\n\nShe came."},
    {"role": "assistant", "content": "She."},
]
CALLS = [{"type": "function", "function": {"name": "capital", "arguments": {"of": "France"}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": CALLS}
RESULT = {"role": "tool", "content": "Paris"}
TOOL = {"type": "function", "function": {"name": "capital", "parameters": {"of": "string"}}}


def said(*messages: dict[str, Any]) -> list[dict[str, str]]:
    """Messages as ShareGPT has them."""
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in messages]


@dataclass(frozen=True)
class Form:
    """A record, and what it has to come to.

    Attributes:
        messages: as plain chat templates take them, up to the last that is learned.
        learned: the numbers of those that are.
        columns, ignore: what a recipe says of the form.
    """

    record: dict[str, Any]
    messages: list[dict[str, Any]]
    learned: tuple[int, ...]
    tools: list[dict[str, Any]] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()


FORMS = {
    "messages": Form({"messages": TALK}, TALK, (2, 4)),
    "messages with a question that nobody answers": Form(
        {"messages": [*TALK, AGAIN]}, TALK, (2, 4)
    ),
    "messages beside their first prompt": Form(
        {"prompt": USER["content"], "prompt_id": "7", "messages": TALK},
        TALK, (2, 4), ignore=("prompt_id",),
    ),
    "messages with weights": Form(
        {"messages": [SYSTEM, USER, {**BOT, "weight": 0}, AGAIN, {**LAST, "weight": 1}]},
        TALK, (4,),
    ),
    "messages in parts": Form(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]},
                      BOT]},
        [USER, BOT], (1,),
    ),
    "messages with null fields": Form(
        {"messages": [{**USER, "tool_calls": None, "name": None}, {**BOT, "tool_calls": []}]},
        [USER, BOT], (1,),
    ),
    "messages with tools": Form(
        {"messages": [SYSTEM, USER, CALL, RESULT, BOT], "tools": [TOOL]},
        [SYSTEM, USER, CALL, RESULT, BOT], (2, 4), tools=[TOOL],
    ),
    "messages with tools as JSON": Form(
        {"messages": [USER, CALL, RESULT, BOT], "tools": json.dumps([TOOL])},
        [USER, CALL, RESULT, BOT], (1, 3), tools=[TOOL],
    ),
    "ShareGPT": Form({"id": "x", "conversations": said(*TALK)}, TALK, (2, 4)),
    "ShareGPT with a system prompt apart": Form(
        {"system": "Be brief.", "conversations": said(*TALK[1:])}, TALK, (2, 4)
    ),
    "ShareGPT with a greeting first": Form(
        {"conversations": said(BOT, AGAIN, LAST)}, [BOT, AGAIN, LAST], (2,)
    ),
    "ShareGPT with a function call": Form(
        {"conversations": [
            *said(USER),
            {"from": "function_call", "value": json.dumps(CALLS[0]["function"])},
            *said(RESULT, BOT),
        ]},
        [USER, CALL, RESULT, BOT], (1, 3),
    ),
    "prompt and completion": Form(
        {"prompt": USER["content"], "completion": BOT["content"]}, [USER, BOT], (1,)
    ),
    "prompt and completion of messages": Form(
        {"prompt": TALK[:4], "completion": [LAST]}, TALK, (4,)
    ),
    "prompt of messages, completion of text": Form(
        {"prompt": TALK[:4], "completion": LAST["content"]}, TALK, (4,)
    ),
    "prompt and response": Form(
        {"prompt": USER["content"], "response": BOT["content"]}, [USER, BOT], (1,)
    ),
    "query and response": Form(
        {"query": USER["content"], "response": BOT["content"]}, [USER, BOT], (1,)
    ),
    "question and response": Form(
        {"question": USER["content"], "response": BOT["content"], "system": "Be brief."},
        [SYSTEM, USER, BOT], (2,),
    ),
    "input and output": Form(
        {"input": USER["content"], "output": BOT["content"]}, [USER, BOT], (1,)
    ),
    "Alpaca": Form(
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        [{"role": "user", "content": "Add.\n\n1, 2"}, {"role": "assistant", "content": "3"}], (1,),
    ),
    "Alpaca with system and history": Form(
        {"instruction": "And now?", "input": "", "output": LAST["content"],
         "system": "Be brief.", "history": [[USER["content"], BOT["content"]]]},
        TALK, (2, 4),
    ),
    "Dolly": Form(
        {"instruction": "Who?", "context": "She came.", "response": "She.", "category": "qa"},
        PASSAGE,
        (1,),
    ),
    "GSM8K": Form({"question": USER["content"], "answer": BOT["content"]}, [USER, BOT], (1,)),
    "columns": Form(
        {"q": "Who?", "passage": "She came.", "a": "She.", "no": 7},
        PASSAGE,
        (1,),
        columns={"prompt": "q", "context": "passage", "completion": "a"}, ignore=("no",),
    ),
    "messages with a function call as OpenAI had it": Form(
        {"messages": [USER, {"role": "assistant", "content": None,
                             "function_call": CALLS[0]["function"]}, RESULT, BOT]},
        [USER, CALL, RESULT, BOT], (1, 3),
    ),
    "a column of messages": Form(
        {"dialogue": TALK}, TALK, (2, 4), columns={"messages": "dialogue"}
    ),
    "a preference of texts": Form(
        {"prompt": USER["content"], "chosen": BOT["content"], "rejected": "No."}, [USER, BOT], (1,)
    ),
    "a preference of Alpaca's": Form(
        {"instruction": "Who?", "input": "She came.", "chosen": "She.", "rejected": "No."},
        PASSAGE, (1,),
    ),
    "a preference with a question and a system prompt": Form(
        {"system": "Be brief.", "question": USER["content"], "chosen": BOT["content"],
         "rejected": "No."},
        [SYSTEM, USER, BOT], (2,),
    ),
    "a preference of messages": Form(
        {"prompt": TALK[:4], "chosen": [LAST], "rejected": [BOT]}, TALK, (4,)
    ),
    "a preference of whole conversations": Form(
        {"prompt": USER["content"], "chosen": [USER, BOT], "rejected": [USER, LAST],
         "messages": [USER, BOT]},
        [USER, BOT], (1,),
    ),
    "a preference of ShareGPT's": Form(
        {"conversations": said(*TALK[:4]), "chosen": said(LAST)[0], "rejected": said(BOT)[0]},
        TALK, (4,),
    ),
}  # fmt: skip


def plain(tokenizer: PreTrainedTokenizerBase, form: Form) -> tuple[list[int], list[bool]]:
    """Ids and mask by ``apply_chat_template`` alone, whose conversations begin with their parts."""

    def ids(count: int, asking: bool = False) -> list[int]:
        made = tokenizer.apply_chat_template(
            form.messages[:count],
            tools=form.tools,
            add_generation_prompt=asking,
            return_dict=False,
        )
        return list(made)

    whole = ids(len(form.messages))[:-1]  # the line break after the last answer teaches nothing
    mask = [False] * len(whole)
    for number in form.learned:
        start, end = len(ids(number, asking=True)), len(ids(number + 1)) - 1
        mask[start:end] = [True] * (end - start)
    return whole, mask


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_what_the_chat_template_makes_of_it(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(form.record) + "\n")
    examples = read_examples(str(path), columns=ColumnsTable(**form.columns), ignore=form.ignore)
    (got,) = tokenize(examples, TOKENIZER, "auto", 10_000).examples
    ids, mask = plain(TOKENIZER, form)
    assert got.ids.tolist() == ids
    assert got.learned.tolist() == mask
    assert got.references == (form.messages[-1]["content"],)


def test_the_last_answer_alone_can_be_learned(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n")
    examples = read_examples(str(path))
    (got,) = tokenize(examples, TOKENIZER, "auto", 10_000, answers="last").examples
    ids, mask = plain(TOKENIZER, Form({}, TALK, (4,)))
    assert (got.ids.tolist(), got.learned.tolist()) == (ids, mask)


def test_a_rejected_answer_is_kept_beside_the_chosen_one(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    names = [name for name in FORMS if name.startswith("a preference")]
    for name in names:
        path.write_text(json.dumps(FORMS[name].record) + "\n")
        (example,) = read_examples(str(path))
        (rejected,) = example.rejected
        assert (rejected.role, rejected.learned) == ("assistant", False)
        assert rejected.content in ("No.", BOT["content"], LAST["content"])
        assert rejected.content != example.output
    assert len(names) == 6


def test_a_text_is_learned_from_its_second_token(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    text = "The capital of France is Paris, and <|im_end|> is text."
    path.write_text(json.dumps({"text": text}) + "\n")
    examples = read_examples(str(path))
    (got,) = tokenize(examples, TOKENIZER, "auto", 10_000).examples
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert got.ids.tolist() == [*ids, TOKENIZER.eos_token_id]
    assert got.learned.tolist() == [False] + [True] * len(ids)
    pieces = tokenize(examples, TOKENIZER, "auto", 7).examples
    assert [number for piece in pieces for number in piece.ids] == got.ids.tolist()
    assert all(len(piece) <= 7 and piece.learned[1:].all() for piece in pieces)


def test_a_preference_of_texts_answers_what_they_share(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    asked = "\n\nHuman: What is the capital?\n\nAssistant: "
    record = {"chosen": f"{asked}It is Paris.", "rejected": f"{asked}It is not Rome."}
    path.write_text(json.dumps(record) + "\n")
    (example,) = read_examples(str(path))
    assert [(turn.content, turn.learned) for turn in example.messages] == [
        (f"{asked}It is ", False),
        ("Paris.", True),
    ]
    assert [turn.content for turn in example.rejected] == ["not Rome."]
    (got,) = tokenize([example], TOKENIZER, "auto", 10_000).examples
    learned = got.ids[got.learned].tolist()
    assert TOKENIZER.decode(learned) == "Paris.<|im_end|>"
    assert TOKENIZER.decode(got.ids) == f"{asked}It is Paris.<|im_end|>"


def test_an_unnamed_column_is_refused_and_not_read(tmp_path: Path) -> None:
    for record in (
        {"": "7", "prompt": "hi", "completion": "yo"},
        {"": "7", "question": "hi", "answer": "yo"},
        {"": "7", "text": "yo"},
        {"": "7", "prompt": "hi", "chosen": "yo", "rejected": "no"},
        {"": "7", "messages": [USER, BOT]},
    ):
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps(record) + "\n")
        with pytest.raises(UserError, match='line 1: "" would not be read'):
            read_examples(str(path))
        (example,) = read_examples(str(path), ignore=[""])
        assert "7" not in "".join(turn.text for turn in example.messages)


@pytest.mark.parametrize("template", ["{{ m.content }}", "{{ m.role }}: {{ m.content }}"])
def test_a_template_that_leaves_out_tools_is_refused(tmp_path: Path, template: str) -> None:
    path = tmp_path / "data.jsonl"
    called = {"type": "function", "function": {"name": "look_up", "arguments": {}}}
    talk = [USER, {"role": "assistant", "content": "", "tool_calls": [called]}, RESULT, BOT]
    path.write_text(json.dumps({"messages": talk}) + "\n")
    words = (
        "{% for m in messages %}" + template + "{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    with pytest.raises(UserError, match="it leaves out the tool 'look_up'"):
        tokenize(read_examples(str(path)), TOKENIZER, words, 10_000)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"chosen": [USER, BOT], "rejected": [AGAIN, LAST]},
            "'chosen' and 'rejected' are not two answers to the same",
        ),
        (
            {"prompt": "Other.", "chosen": [USER, BOT], "rejected": [USER, LAST]},
            "the prompt is not what both answers begin with",
        ),
        ({"chosen": "Paris.", "rejected": "Rome."}, "share no beginning that both answer"),
        ({"messages": [USER]}, "line 1: no message of an assistant's is there to learn"),
        ({"messages": []}, "line 1: field 'messages' is no list of messages"),
        ({"messages": "Hi."}, "line 1: field 'messages' is no list of messages"),
        ({"messages": [USER, "Hi."]}, "message 2 of 'messages': expected a table with role"),
        ({"messages": [{"role": "bard", "content": ""}]}, "the role 'bard' is not known"),
        ({"messages": [{"content": "Hi."}]}, "the role None is not known"),
        ({"messages": [{"role": "user", "content": 7}]}, "its content is int, not text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "a part of its content is no text",
        ),
        ({"messages": [{**USER, "mood": "glad"}, BOT]}, "message 1 of 'messages': 'mood' would"),
        ({"messages": [USER, {**BOT, "weight": 3}]}, "the weight 3 is neither 0 nor 1"),
        ({"messages": [USER, BOT], "tools": "["}, "line 1: the tools are no JSON"),
        ({"messages": [USER, BOT], "tools": ["x"]}, "the tools are no list of tables"),
        ({"messages": [USER, BOT], "lang": "en"}, '"lang" would not be read'),
        ({"messages": TALK, "system": "Be long."}, "two system messages, one in 'system'"),
        (
            {"conversations": [*said(USER), {"from": "function_call", "value": "f(x)"}]},
            "message 2 of 'conversations': it is no function call",
        ),
        (
            {"instruction": "a", "output": "b", "history": [["x"]]},
            "field 'history' is no list of pairs",
        ),
        ({"instruction": "a", "output": "b", "history": "x"}, "field 'history' is no list"),
        ({"prompt": "a", "chosen": "b", "rejected": 7}, "field 'rejected' is int, not text"),
    ],
)
def test_a_record_of_another_form_is_named(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(Exception, match=message) as caught:
        read_examples(str(path))
    assert caught.type.__name__ == "UserError"
    assert str(caught.value).startswith(str(path))
