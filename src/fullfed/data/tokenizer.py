"""What is asked of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from fullfed.errors import UserError


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's end-of-sequence token.

    Raises:
        UserError: it has none.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path} has no end-of-sequence token; "
            "set eos_token in its tokenizer_config.json."
        )
    return int(end)


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool
) -> list[list[int]]:
    """Ids of each text with nothing added; `special`: whether "</s>" and the like are tokens."""
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=not special,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return encoded


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How long the common beginning is."""
    length = min(len(one), len(other))
    return next((n for n in range(length) if one[n] != other[n]), length)
