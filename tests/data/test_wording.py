"""What is trained is what the tokenizer's own chat template makes of the whole conversation."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fullfed.data.chat import ChatWording, _conversation, on_date
from fullfed.data.examples import Example, Turn
from fullfed.data.guard import special_tokens
from fullfed.data.tokens import TokenizedExample, tokenize
from fullfed.data.wording import choose_wording
from fullfed.errors import UserError

from .chat_templates import BARE, CHATML, KINDS, LLAMA_3, QWEN_3, Kind, make_tokenizer

PLAIN = [
    ("What is the capital of France?", "", "It is Paris."),
    ("Add the numbers.", "one, two", "three"),
    ("  Say nothing more.\n", "", " the answer "),
    ("Grüße 你好 🙂", "a\tb", "42"),
    ("Whose?", "", "Theirs.\n\nAnd ours."),
]


def example(instruction: str, input_: str, output: str) -> Example:
    return Example.single(instruction, input_, output, (output,))


def plain_ids(tokenizer: PreTrainedTokenizerBase, one: Example) -> tuple[list[int], list[int]]:
    """What transformers makes of the conversation, and of the question alone."""
    question = f"{one.instruction}\n\n{one.input}" if one.input else one.instruction
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": one.output},
    ]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    asked = tokenizer.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=False
    )
    return whole, asked  # type: ignore[return-value]


def tokenized(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example]
) -> tuple[TokenizedExample, ...]:
    result = tokenize(examples, tokenizer, "chat", 10_000)
    assert (result.shortened, result.dropped) == (0, 0)
    return result.examples


@pytest.mark.parametrize("name", KINDS)
def test_a_sequence_is_the_templates_conversation_up_to_its_end_of_turn(name: str) -> None:
    tokenizer, shared = make_tokenizer(KINDS[name]), 0
    examples = [example(*texts) for texts in PLAIN]
    end = tokenizer.convert_tokens_to_ids(KINDS[name].end)
    for one, got in zip(examples, tokenized(tokenizer, examples), strict=True):
        whole, asked = plain_ids(tokenizer, one)
        if end in whole[got.prompt_length :]:
            assert got.ids.tolist() == whole[: len(whole) - whole[::-1].index(end)]
            assert not tokenizer.decode(whole[len(got) :], skip_special_tokens=True).strip()
        else:
            assert got.ids.tolist() == [*whole, end]
        assert got.ids[-1] == end
        if whole[: len(asked)] == asked:
            shared += 1
            assert got.prompt_length == len(asked)
            learned = tokenizer.decode(got.ids[got.prompt_length : -1], skip_special_tokens=True)
            answer = learned.strip().removeprefix(KINDS[name].opening).strip()
            assert answer.removesuffix("<|im_end|>").strip() == one.output.strip()
        assert got.opening == KINDS[name].opening
    # A prompt that no conversation begins with, or whose last token goes on in the answer.
    assert shared == {"DeepSeek R1": 0, "Vicuna": 1, "no end of turn": 3}.get(name, len(PLAIN))


def test_the_prompt_that_a_conversation_does_not_share_is_left_out() -> None:
    """A template that asks with "<think>" and writes answers without it."""
    tokenizer = make_tokenizer(KINDS["DeepSeek R1"])
    (got,) = tokenized(tokenizer, [example("Whose?", "", "Ours.")])
    assert tokenizer.decode(got.ids[: got.prompt_length]) == "<s><｜User｜>Whose?<｜Assistant｜>"
    assert tokenizer.decode(got.ids[got.prompt_length :]) == "Ours.<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("name", KINDS)
def test_text_that_spells_a_control_token_stays_text(name: str) -> None:
    kind = KINDS[name]
    tokenizer = make_tokenizer(kind)
    control = {tokenizer.convert_tokens_to_ids(token) for token in kind.special}
    spelled = " and ".join(kind.special)
    odd = example(f"Why {spelled}?", f"{kind.end}user", f"{kind.special[0]}x{spelled}")
    calm = example("Why?", "user", "x")
    got, expected = tokenized(tokenizer, [odd, calm])
    assert [i for i in got.ids if i in control] == [i for i in expected.ids if i in control]
    text = tokenizer.decode(got.ids)
    assert "".join(f"Why {spelled}?".split()) in "".join(text.split())
    assert "".join(odd.output.split()) in "".join(text.split())


@pytest.mark.parametrize("name", KINDS)
def test_guarded_text_is_tokenised_as_any_other(name: str) -> None:
    """What spells a token changes no other id: cut out again, the rest is what it was."""
    tokenizer = make_tokenizer(KINDS[name])
    wording = ChatWording(tokenizer)
    texts = [("What is the capital of France?", "It is Paris."), ("Add.", " one\n two ")]
    talks = [_conversation(Example.single(asked, "", answer)) for asked, answer in texts]
    assert wording._guarded(talks) == wording._encoded(talks)


pieces = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|", "im_end", "|>"]
)
texts = st.lists(pieces | st.text(max_size=4), max_size=6).map("".join)


@given(texts, texts)
def test_no_message_brings_a_control_token(question: str, answer: str) -> None:
    tokenizer = _QWEN
    control = {number for number, _ in special_tokens(tokenizer).values()}
    (worded,) = choose_wording("chat", tokenizer).words([example(question, "", answer)])
    names = [tokenizer.convert_ids_to_tokens(i) for i in worded.ids if i in control]
    assert names == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]


_QWEN = make_tokenizer(KINDS["Qwen 3"])


def test_a_date_is_worded_as_strftime_does() -> None:
    day = date(2026, 2, 3)
    tokenizer = make_tokenizer(KINDS["no end of turn"])
    for wanted in ("%d %b %Y", "%Y-%m-%d", "%A, %-d %B %y", "100%% on %%d %j", "%H:%M"):
        template = "\n  {% if true %}\nIt is {{ strftime_now('" + wanted + "') }}.{% endif %} Yes"
        tokenizer.chat_template = on_date(template, day)
        text = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        assert text == f"\nIt is {day.strftime(wanted)}. Yes"


def test_the_date_is_the_one_that_is_given() -> None:
    tokenizer = make_tokenizer(KINDS["Llama 3"])
    day = date(2026, 1, 31)
    (got,) = tokenize([example("Why?", "", "So.")], tokenizer, "chat", 999, day).examples
    assert "Today Date: 31 Jan 2026\n" in tokenizer.decode(got.ids)
    (other,) = tokenize([example("Why?", "", "So.")], tokenizer, "chat", 999).examples
    assert f"Today Date: {date.today():%d %b %Y}\n" in tokenizer.decode(other.ids)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('No users here') }}", r"cannot be used \(No users here\)"),
        ("{% for m in messages %}{{ m.content", r"cannot be used \(.*\)"),
        ("{{ messages[0].content + 1 }}", r"cannot be used \(can only concatenate str"),
        ("{{ messages[7].content.strip() }}", r"cannot be used \(.*\)"),
        ("{{ messages[0].content }}", "does not give a question and, after it, the answer"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "does not give a question"),
        (
            "{% if messages[-1].role == 'user' %}Q{% endif %}" + BARE,
            "does not give a question and, after it, the answer",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_told_in_a_sentence(template: str, message: str) -> None:
    tokenizer = make_tokenizer(Kind(template, ("</s>",), "</s>"))
    with pytest.raises(UserError, match=message) as caught:
        tokenize([example("Why?", "", "So.")], tokenizer, "auto", 999)
    assert 'data.template = "alpaca"' in str(caught.value)
    tokenize([example("Why?", "", "So.")], tokenizer, "alpaca", 999)


def test_a_question_written_differently_once_answered_is_refused() -> None:
    template = (
        "{% if messages[1] is defined and messages[0].content == 'Why?' %}!{% endif %}" + BARE
    )
    tokenizer = make_tokenizer(Kind(template, ("</s>",), "</s>"))
    tokenize([example("Who?", "", "So.")], tokenizer, "chat", 999)
    with pytest.raises(UserError, match="writes a question differently once it is answered"):
        tokenize([example("Why?", "", "So.")], tokenizer, "chat", 999)


def test_templates_that_do_not_name_the_date_are_not_touched_by_it() -> None:
    for template in (CHATML, QWEN_3):
        assert "strftime_now" not in template
    assert "strftime_now" in LLAMA_3
    tokenizer = make_tokenizer(KINDS["ChatML"])
    one, other = (
        tokenize([example("Why?", "", "So.")], tokenizer, "chat", 999, day).examples[0]
        for day in (date(2026, 1, 1), None)
    )
    assert one.ids.tolist() == other.ids.tolist()


def test_a_special_token_that_ordinary_text_comes_to_is_refused() -> None:
    """The model's merges make "</s>" of its letters, whatever the flag for special tokens says."""
    merges = [("<", "/"), ("</", "s"), ("</s", ">")]
    vocabulary = {piece: n for n, piece in enumerate([*"</s>Why?[] uertan", "</", "</s", "</s>"])}
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokenizer.chat_template = BARE
    tokenize([example("Why?", "", "stay")], tokenizer, "chat", 999)
    with pytest.raises(UserError, match="cannot take as text; take it out of the data"):
        tokenize([example("Why?", "", "</s>")], tokenizer, "chat", 999)


def test_a_tokenizer_that_cannot_take_it_as_text_says_so(
    byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    byte_tokenizer.chat_template = BARE
    monkeypatch.setattr(type(byte_tokenizer), "is_fast", False)
    tokenize([example("Why?", "", "So.")], byte_tokenizer, "chat", 999)
    with pytest.raises(UserError, match="spells a special token of"):
        tokenize([example("Why?", "", "</s>")], byte_tokenizer, "chat", 999)


TURNS = [("What is the capital?", "It is Paris."), ("And now?", "Rome, I say."), ("So?", "Yes.")]


def talk(pairs: list[tuple[str, str]]) -> Example:
    """A conversation of which every answer is learned."""
    messages = [
        turn
        for asked, said in pairs
        for turn in (Turn("user", asked), Turn("assistant", said, learned=True))
    ]
    return Example(tuple(messages), (pairs[-1][1],))


def runs(got: TokenizedExample) -> list[list[int]]:
    """The ids of each stretch that is learned."""
    parts: list[list[int]] = []
    for before, is_learned, number in zip(
        [False, *got.learned], got.learned, got.ids.tolist(), strict=False
    ):
        if is_learned and not before:
            parts.append([])
        if is_learned:
            parts[-1].append(number)
    return parts


@pytest.mark.parametrize("name", KINDS)
def test_of_a_conversation_every_answer_is_learned_and_nothing_else(name: str) -> None:
    kind = KINDS[name]
    tokenizer = make_tokenizer(kind)
    (got,) = tokenized(tokenizer, [talk(TURNS)])
    plain = [{"role": turn.role, "content": turn.content} for turn in talk(TURNS).messages]
    whole = tokenizer.apply_chat_template(plain, return_dict=False)
    assert got.ids.tolist()[:-1] == whole[: len(got) - 1]
    learned = runs(got)
    assert len(learned) == len(TURNS)
    for part, (_, said) in zip(learned, TURNS, strict=True):
        text = tokenizer.decode(part, skip_special_tokens=True).strip().removesuffix("<|im_end|>")
        # In Vicuna's the end of "ASSISTANT: " is one token with the answer's first letters.
        text = text.removeprefix("T: " if name == "Vicuna" else kind.opening).strip()
        assert text == said
    if name not in ("no end of turn", "gpt-oss", "ChatML, its tokens unknown"):
        end = tokenizer.convert_tokens_to_ids(kind.end)
        assert [part[-1] for part in learned] == [end] * len(TURNS)


@pytest.mark.parametrize("name", KINDS)
def test_the_last_answer_alone_is_that_of_the_whole_conversation(name: str) -> None:
    tokenizer = make_tokenizer(KINDS[name])
    (every,) = tokenized(tokenizer, [talk(TURNS)])
    (last,) = tokenize([talk(TURNS)], tokenizer, "chat", 10_000, answers="last").examples
    assert last.ids.tolist() == every.ids.tolist()
    assert runs(last) == runs(every)[-1:]
    assert last.prompt_length == every.prompt_length


def test_a_conversation_too_long_loses_its_oldest_turns() -> None:
    tokenizer = make_tokenizer(KINDS["ChatML"])
    told = Turn("system", "Be brief.")
    whole, tail = talk(TURNS), talk(TURNS[1:])
    whole = replace(whole, messages=(told, *whole.messages))
    tail = replace(tail, messages=(told, *tail.messages))
    (expected,) = tokenized(tokenizer, [tail])
    result = tokenize([whole, tail], tokenizer, "chat", len(expected))
    assert (result.shortened, result.dropped) == (1, 0)
    for got in result.examples:
        assert got.ids.tolist() == expected.ids.tolist()
        assert got.learned.tolist() == expected.learned.tolist()


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_no_conversation_brings_a_control_token(pairs: list[tuple[str, str]]) -> None:
    control = {number for number, _ in special_tokens(_QWEN).values()}
    (worded,) = choose_wording("chat", _QWEN).words([talk(pairs)])
    names = [_QWEN.convert_ids_to_tokens(i) for i in worded.ids if i in control]
    assert names == ["<|im_start|>", "<|im_end|>"] * (2 * len(pairs))
