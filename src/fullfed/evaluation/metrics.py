"""The metrics that a recipe can ask for, by the names they have everywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One of them.

    Attributes:
        name: in recipes and records.
        heading: for people.
        unit: of its values.
        more_is_better: whether a higher value is the better one.
    """

    name: str
    heading: str
    unit: str
    more_is_better: bool


_ALL = (
    Metric("loss", "loss", "nats per token", more_is_better=False),
    Metric("rouge_l", "ROUGE-L", "0 to 1", more_is_better=True),
    Metric("exact_match", "exact match", "0 to 1", more_is_better=True),
    Metric("gsm8k", "GSM8K", "0 to 1", more_is_better=True),
)

METRICS = {metric.name: metric for metric in _ALL}
