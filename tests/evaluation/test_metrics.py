"""The table of metrics names what a recipe may name."""

from __future__ import annotations

from typing import get_args

from fullfed.config import EvaluationTable
from fullfed.evaluation.metrics import METRICS


def test_the_table_holds_the_metrics_of_recipes() -> None:
    each, _ = get_args(EvaluationTable.model_fields["metrics"].annotation)
    assert tuple(METRICS) == get_args(each)


def test_less_loss_and_more_of_all_else_is_better() -> None:
    assert [name for name, metric in METRICS.items() if not metric.more_is_better] == ["loss"]
