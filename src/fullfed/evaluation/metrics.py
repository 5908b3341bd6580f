"""The metrics a recipe can ask for: their names, and how answers are compared with references."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from fullfed.errors import UserError

Score = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


@dataclass(frozen=True)
class Metric:
    """One of them.

    Attributes:
        name: in recipes and records.
        heading: for people.
        unit: of its values.
        more_is_better: whether a higher value is the better one.
        score: of generated answers, each against its accepted ones; None where the metric is not
            of answers.
    """

    name: str
    heading: str
    unit: str
    more_is_better: bool
    score: Score | None = None


_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over samples of the best ROUGE-L F1 over the references.

    The implementation is Google's `rouge-score` without stemming (the one natural-instructions
    itself is scored with): the longest common subsequence of lower-case words made of a-z and
    0-9; anything else separates words, so text in other scripts scores 0.

    The papers on federated tuning use PyPI `rouge` 1.0.1 instead, whose numbers differ: words are
    what spaces separate (case and punctuation count: "Yes." is not "Yes"), texts are cut into
    sentences at full stops and the subsequences of sentences united, and repeated words count
    once. Papers also score against the first reference only. Neither is always the higher: 0.294
    here and 0.285 there for the second reference of 556 natural-instructions samples against the
    first, 0.085 and 0.130 for GSM8K solutions against those of other problems. Compare runs by
    one of the two, never across.

    Args:
        predictions: one text a sample; an empty one scores 0.
        references: at least one text a sample.

    Raises:
        UserError: the extra `eval` is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError('ROUGE-L needs rouge-score; pip install "fullfed[eval]".') from error
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    scores: list[float] = [
        scorer.score_multi(list(accepted), prediction)["rougeL"].fmeasure
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return sum(scores) / len(scores)


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of predictions equal to a reference but for case, punctuation and spacing."""
    hits = [
        _normalised(prediction) in map(_normalised, accepted)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)


def gsm8k_exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of predictions whose final number is the reference's.

    The final number is the one after "####", else the last in the text; thousands separators,
    "$" and trailing zeros do not matter. A prediction without a number is wrong.
    """
    hits = [
        (number := final_number(prediction)) is not None and number in map(final_number, accepted)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)


def final_number(text: str) -> Decimal | None:
    """The number after "####", else the last one of the text, else None."""
    _, marked, answer = text.rpartition("####")
    found = _NUMBER.findall(answer)
    if not found:
        return None
    number = found[0] if marked else found[-1]
    return Decimal(number.replace(",", "").replace("$", ""))


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", "loss", "nats per token", more_is_better=False),
        Metric("rouge_l", "ROUGE-L", "0 to 1", True, rouge_l),
        Metric("exact_match", "exact match", "0 to 1", True, exact_match),
        Metric("gsm8k", "GSM8K", "0 to 1", True, gsm8k_exact_match),
    )
}
