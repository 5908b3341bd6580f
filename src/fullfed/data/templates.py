"""How an example is put to a model: the text of its prompt and of its answer."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from fullfed.data.examples import Example
from fullfed.errors import UserError

Template = Literal["alpaca", "chat", "auto"]

_ALPACA_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
"""
_ALPACA = """\
Below is an instruction that describes a task. Write a response that appropriately completes \
the request.

### Instruction:
{instruction}

### Response:
"""


def choose_template(
    template: Template, tokenizer: PreTrainedTokenizerBase
) -> Literal["alpaca", "chat"]:
    """What "auto" means for this tokenizer: its chat template where it has one, else Alpaca.

    Raises:
        UserError: "chat" was asked for and the tokenizer has no chat template, or the
            template's name is unknown.
    """
    if template not in ("alpaca", "chat", "auto"):
        raise UserError(f'Unknown template {template!r}; choose "alpaca", "chat" or "auto".')
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template; "
            'choose the template "alpaca" or "auto".'
        )
    return "chat" if has_chat and template != "alpaca" else "alpaca"


def render(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, str]:
    """The prompt and the answer, as text; special tokens are written out in chat prompts only.

    Alpaca is the wording of Stanford Alpaca, with and without input, and a line break after
    "### Response:". Chat is one user message: the instruction, a blank line and the input.
    """
    if choose_template(template, tokenizer) == "alpaca":
        wording = _ALPACA_WITH_INPUT if example.input else _ALPACA
        prompt = wording.format(instruction=example.instruction, input=example.input)
        return prompt, example.output
    request = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)  # one conversation, not tokenised
    return rendered, example.output
