"""A client's samples as trainers from elsewhere take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fullfed.data.batches import IGNORED
from fullfed.data.examples import Example, Turn
from fullfed.data.tokens import TokenizedExample, Untokenized
from fullfed.data.wording import AlpacaWording

Features = dict[str, Tensor]
_FILLERS = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}


class ClientDataset(Sequence[Features]):
    """A client's samples, tokenised; a map-style dataset of torch's.

    ``dataset[i]`` is a table of int64 tensors of shape (length,): ``input_ids``,
    ``attention_mask``, and ``labels``, which are -100 where nothing is learned.

    Examples:
        >>> def look(model, dataset, context):
        ...     batch = dataset.collate(dataset[:4])
        ...     print(batch["labels"].shape == batch["input_ids"].shape, dataset.records[0].keys())
        ...     return {"loss": 0.0}
        >>> one = ["federation.rounds=1", "federation.clients_per_round=1"]
        >>> run = fullfed.run("first.toml", local=look, overrides=one)
        True dict_keys(['prompt', 'completion'])

    Attributes:
        records: the samples before they are tokenised, in the forms that TRL names: ``prompt``,
            ``chosen`` and ``rejected``; ``prompt`` and ``completion``; ``messages``; or ``text``.
            All are of one form: of messages where the run words them by a chat template, else of
            texts. A long text, which is several samples, is there once.
        tokenizer: the model's; its chat template is the one that the run uses, if any.
    """

    def __init__(self, tokenized: Sequence[TokenizedExample], source: Untokenized) -> None:
        self._tokenized, self._source = tokenized, source
        self.tokenizer = source.tokenizer

    def __len__(self) -> int:
        return len(self._tokenized)

    @overload
    def __getitem__(self, index: int) -> Features: ...

    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...

    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self._tokenized[index]
        ids = torch.from_numpy(example.ids).long()
        labels = ids.where(torch.from_numpy(example.learned), IGNORED)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    @property
    def records(self) -> list[dict[str, Any]]:
        return records_of(self._source)

    @staticmethod
    def collate(samples: Sequence[Features]) -> Features:
        """Samples padded on the right to a common length: int64, shape (samples, length).

        For a ``torch.utils.data.DataLoader``.
        """
        return {
            name: pad_sequence([one[name] for one in samples], True, filler)
            for name, filler in _FILLERS.items()
        }


def records_of(source: Untokenized) -> list[dict[str, Any]]:
    """Examples in the forms that TRL names, all in one of them: of messages where the tokenizer has
    a chat template, else of texts, worded as Alpaca's."""
    examples = list({id(example): example for example in source.examples}.values())
    last_alone = all(_learns_last_alone(example) for example in examples)
    if source.tokenizer.chat_template:
        return [_of_messages(example, last_alone) for example in examples]
    end = str(source.tokenizer.eos_token)
    return [_of_texts(example, end) for example in examples]


def _learns_last_alone(example: Example) -> bool:
    return [message.learned for message in example.messages].count(True) == 1


def _of_messages(example: Example, last_alone: bool) -> dict[str, Any]:
    if example.is_text:
        return _text(example)
    tools = {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
    answer = example.last_learned
    prompt, said = example.messages[:answer], _templated(example.messages[answer : answer + 1])
    if example.rejected:
        chosen = _templated(example.messages[answer:])
        pair = {"chosen": chosen, "rejected": _templated(example.rejected)}
        return {"prompt": _templated(prompt), **pair, **tools}
    if last_alone:
        return {"prompt": _templated(prompt), "completion": said, **tools}
    return {"messages": _templated(example.messages), **tools}


def _of_texts(example: Example, end: str) -> dict[str, Any]:
    if example.is_text:
        return _text(example)
    prompt = AlpacaWording.prompt(example, end)
    if example.rejected:
        rejected = "".join(message.content for message in example.rejected)
        return {"prompt": prompt, "chosen": example.output, "rejected": rejected}
    return {"prompt": prompt, "completion": example.output}


def _text(example: Example) -> dict[str, Any]:
    if example.rejected:
        prompt = "".join(turn.content for turn in example.messages if not turn.learned)
        pair = {"chosen": example.output, "rejected": example.rejected[-1].content}
        return {"prompt": prompt, **pair}
    return {"text": example.output}


def _templated(messages: Sequence[Turn]) -> list[dict[str, Any]]:
    return [message.templated() for message in messages]
