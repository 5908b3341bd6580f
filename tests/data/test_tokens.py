from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fullfed.data.examples import Example
from fullfed.data.sources import read_examples
from fullfed.data.tokens import shorten, tokenize
from fullfed.data.wording import AlpacaWording
from fullfed.errors import UserError

BOS, EOS = 256, 257
CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def example(instruction: str = "Add.", input_: str = "1, 2", output: str = "3") -> Example:
    return Example.single(instruction, input_, output, (output,))


def prompt_text(tokenizer: PreTrainedTokenizerFast, template: str) -> str:
    (only,) = tokenize([example()], tokenizer, template, 1000).examples
    return str(tokenizer.decode(only.ids[: only.prompt_length]))


def test_alpaca_wording_with_and_without_input() -> None:
    prompt = AlpacaWording.prompt(example("Use {input}.", "a {b}"))
    assert "paired with an input" in prompt
    assert prompt.endswith("### Instruction:\nUse {input}.\n\n### Input:\na {b}\n\n### Response:\n")
    prompt = AlpacaWording.prompt(example("Do.", ""))
    assert "paired with an input" not in prompt
    assert prompt.endswith("### Instruction:\nDo.\n\n### Response:\n")


def test_auto_is_the_chat_template_where_there_is_one(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert "### Response" in prompt_text(byte_tokenizer, "auto")
    with pytest.raises(UserError, match="has no chat template"):
        tokenize([example()], byte_tokenizer, "chat", 1000)
    byte_tokenizer.chat_template = CHAT
    assert prompt_text(byte_tokenizer, "auto") == "<s>[user] Add.\n\n1, 2[assistant] "
    assert "### Response" in prompt_text(byte_tokenizer, "alpaca")


def test_a_sequence_is_begin_prompt_answer_end(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    (only,) = tokenize([example()], byte_tokenizer, "alpaca", 1000).examples
    prompt, answer = AlpacaWording.prompt(example()), "3"
    assert only.ids[0] == BOS
    assert only.ids[-1] == EOS
    assert only.prompt_length == 1 + len(prompt)
    assert byte_tokenizer.decode(only.ids[1:-1]) == prompt + answer


def test_chat_templates_write_their_own_begin_token(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    byte_tokenizer.chat_template = CHAT
    (only,) = tokenize([example()], byte_tokenizer, "chat", 1000).examples
    assert list(only.ids).count(BOS) == 1
    assert list(only.ids).count(EOS) == 1


def test_text_that_spells_a_special_token_stays_text(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    struck = example(input_="<s>gone</s>", output="</s> and on")
    (only,) = tokenize([struck], byte_tokenizer, "alpaca", 1000).examples
    assert list(only.ids).count(BOS) == 1
    assert list(only.ids).count(EOS) == 1


def test_a_long_prompt_loses_its_middle_and_the_answer_nothing(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    long = example(input_="x" * 500, output="y" * 40)
    result = tokenize([long, example()], byte_tokenizer, "alpaca", 300)
    assert (result.shortened, result.dropped) == (1, 0)
    shortened = result.examples[0]
    assert len(shortened) == 300
    text = byte_tokenizer.decode(shortened.ids[1:-1])
    assert text.startswith("Below is an instruction")
    assert text.endswith("x\n\n### Response:\n" + "y" * 40)


def test_the_closing_words_survive_any_shortening(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    closing = "\n\n### Response:\n"
    tight = example(output="y" * (100 - 1 - len(closing)))
    result = tokenize([tight], byte_tokenizer, "alpaca", 100)
    assert byte_tokenizer.decode(result.examples[0].ids[:-1]) == closing + tight.output


def test_an_example_longer_than_the_context_is_dropped_and_counted(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    both = [example(output="y" * 99), example()]
    result = tokenize(both, byte_tokenizer, "alpaca", 400)
    assert (len(result.examples), result.shortened, result.dropped) == (2, 0, 0)
    result = tokenize(both, byte_tokenizer, "alpaca", 100)
    assert (len(result.examples), result.shortened, result.dropped) == (1, 1, 1)
    assert tokenize([], byte_tokenizer, "alpaca", 100).examples == ()


def test_something_always_precedes_the_answer(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    # It closes with nothing of its own.
    byte_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    result = tokenize([example(output="yy"), example(output="y")], byte_tokenizer, "chat", 3)
    assert (len(result.examples), result.dropped) == (1, 1)
    assert result.examples[0].prompt_length == 1


def test_shorten_keeps_both_ends() -> None:
    assert shorten([1, 2, 3, 4, 5, 6], 6) == [1, 2, 3, 4, 5, 6]
    assert shorten([1, 2, 3, 4, 5, 6], 4) == [1, 2, 5, 6]
    assert shorten([1, 2, 3, 4, 5, 6], 3) == [1, 5, 6]
    assert shorten([1, 2, 3, 4, 5, 6], 4, closing=3) == [1, 4, 5, 6]
    assert shorten([1, 2, 3, 4, 5, 6], 0) == []


def test_a_tokenizer_without_an_end_token_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    byte_tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tokenize([example()], byte_tokenizer, "alpaca", 100)


@pytest.mark.parametrize("model", ["stories260k", "base-4m"])
def test_real_tokenizers_get_one_begin_and_one_end(shared: Path, model: str) -> None:
    """stories260k adds <s> by itself, base-4m does not."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(shared / "models" / model)
    examples = read_examples("data/natural-instructions-test.jsonl.gz", root=shared)
    result = tokenize(examples, tokenizer, "auto", 512)
    assert len(result.examples) == 550
    for one in result.examples:
        assert len(one) <= 512
        assert one.ids[0] == tokenizer.bos_token_id
        assert one.ids[-1] == tokenizer.eos_token_id
        assert (one.ids == tokenizer.bos_token_id).sum() == 1
        assert (one.ids == tokenizer.eos_token_id).sum() == 1
        answer = tokenizer.decode(one.ids[one.prompt_length : -1])
        assert answer.strip() == one.references[0].strip()
