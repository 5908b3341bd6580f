"""Greedy answers: many at a time, or one as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fullfed.data.tokens import TokenizedExample, shorten
from fullfed.errors import UserError
from fullfed.headway import Headway, Observer, unobserved

_LIGHTER = 4  # times as many tokens as in training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every module has its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens the model reads at once, by its configuration; None if that does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenizedExample],
    max_new_tokens: int,
    batch_size: int,
    observer: Observer = unobserved,
) -> list[str]:
    """The model's greedy answer to each example's prompt, in order, as stripped text.

    An answer ends before the token that ends the examples' own answers, the tokenizer's
    end-of-sequence token, or any that the model's own generation settings name; nothing else of
    those settings is used. What a chat template puts before every answer (`opening`) is left out.
    Prompts are padded on the left, so a batch gives what each prompt alone would (ties and
    rounding in half precision aside). A prompt that leaves less than `max_new_tokens` of the
    model's context loses its middle, so that the room for an answer never tells how long the
    reference is.

    Args:
        batch_size: prompts, with room for an answer to each, are as many tokens together as four
            times so many of the longest examples. Training keeps a token's activations for its
            backward pass, writing keeps its keys and values, which are less than a quarter.
        observer: is told of every token of a batch of answers.

    Raises:
        UserError: `max_new_tokens` leaves no room for a prompt.
    """
    context = context_length(model)
    check_room(context, max_new_tokens)
    prompts = [example.ids[: example.prompt_length].tolist() for example in examples]
    if context is not None:
        prompts = [shorten(prompt, context - max_new_tokens) for prompt in prompts]
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    answers = [""] * len(prompts)
    ends, watch = _ends(model, tokenizer, examples), _AnswerWatch(observer, len(prompts))
    with evaluating(model), _greedy(model, ends, max_new_tokens):
        for chosen in _together(lengths, _LIGHTER * batch_size * max(map(len, examples))):
            written = _generate_batch(model, [prompts[i] for i in chosen], watch)
            watch.finished += len(chosen)
            for index, ids in zip(chosen, written, strict=True):
                answers[index] = _text(tokenizer, ids, ends, examples[index].opening)
    return answers


def check_room(context: int | None, max_new_tokens: int) -> None:
    """Raise a UserError if so many new tokens leave no room in the context for a prompt."""
    if context is not None and max_new_tokens >= context:
        raise UserError(
            f"max_new_tokens is {max_new_tokens} and the model's context {context}; "
            "ask for fewer new tokens."
        )


def generate_aloud(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    example: TokenizedExample,
    max_new_tokens: int,
    say: Callable[[str], None],
) -> str:
    """What ``generate`` gives for one example, told piece by piece while it is written.

    Args:
        example: leaves at least `max_new_tokens` of the model's context for the answer.
        say: is given the next piece; all pieces together are the answer.
    """
    prompt = example.ids[: example.prompt_length].tolist()
    ends = _ends(model, tokenizer, [example])

    def text_of(ids: list[int]) -> str:
        return _text(tokenizer, ids, ends, example.opening)

    speech = _Speech(len(prompt), text_of, example.opening, say)
    with evaluating(model), _greedy(model, ends, max_new_tokens):
        (ids,) = _generate_batch(model, [prompt], speech)
    answer = text_of(ids)
    say(answer.removeprefix(speech.said))
    return answer


def _text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: set[int], opening: str
) -> str:
    """The answer that ids spell, up to the first end."""
    answer = list(takewhile(lambda number: number not in ends, ids))
    text = str(tokenizer.decode(answer, skip_special_tokens=True))
    return text.strip().removeprefix(opening).strip()


def _together(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of prompts for one batch after another, longest first.

    Args:
        lengths: of each, in tokens.
        most: tokens of a batch, padding included, but that one prompt may always be a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    while order:
        count = max(most // lengths[order[0]], 1)
        yield order[:count]
        order = order[count:]


def _ends(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenizedExample],
) -> set[int]:
    """The ids that end an answer."""
    own = model.generation_config.eos_token_id
    named = own if isinstance(own, list) else [own]
    trained = {int(example.ids[-1]) for example in examples}
    return {number for number in (*named, tokenizer.eos_token_id) if number is not None} | trained


class _AnswerWatch(StoppingCriteria):
    """Stops nothing: is called for every token of a batch, and tells the observer.

    Attributes:
        finished: answers of earlier batches.
    """

    def __init__(self, observer: Observer, answers: int) -> None:
        self._observer, self._answers = observer, answers
        self.finished = self._tokens = 0
        observer(Headway("answer", 0, answers))

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self._tokens += len(input_ids)
        self._observer(Headway("answer", self.finished, self._answers, self._tokens))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Speech(StoppingCriteria):
    """Stops nothing: is called for every token of one answer, and says what is new.

    Args:
        start: how many ids come before the answer.
        text: of ids, as the answer so far.
        opening: of an answer, which is no part of it.

    Attributes:
        said: so far.
    """

    def __init__(
        self, start: int, text: Callable[[list[int]], str], opening: str, say: Callable[[str], None]
    ) -> None:
        self._start, self._text, self._opening, self._say = start, text, opening, say
        self.said = ""

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        # The last token may be half a character, which decodes to a replacement character.
        text = self._text(input_ids[0, self._start :].tolist()).rstrip("\ufffd")
        if text.startswith(self.said) and not self._opening.startswith(text):
            self._say(text.removeprefix(self.said))
            self.said = text
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _generate_batch(
    model: PreTrainedModel, prompts: Sequence[list[int]], watch: StoppingCriteria
) -> list[list[int]]:
    """What comes after each prompt: ids, an end among them if the model came to one."""
    length = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    attention_mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(  # type: ignore[operator]
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    written: list[list[int]] = output[:, length:].tolist()
    return written


@contextmanager
def _greedy(model: PreTrainedModel, ends: set[int], max_new_tokens: int) -> Iterator[None]:
    """Plain greedy decoding instead of the model's own settings, which are put back afterwards.

    Replacing the whole object is the one way to be rid of a repetition penalty and its like:
    `generate` fills in from it whatever its caller leaves open.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),  # what follows an end
    )
    try:
        yield
    finally:
        model.generation_config = own
