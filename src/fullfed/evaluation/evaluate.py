"""All asked-for measurements of a model at once; the loss among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from operator import truediv
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import EvaluationTable
from fullfed.data.batches import evaluation_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.evaluation.generation import evaluating, generate
from fullfed.evaluation.metrics import METRICS
from fullfed.headway import Headway, Observer, unobserved
from fullfed.training.loss import answer_loss_sum


def evaluate_loss(
    model: PreTrainedModel,
    examples: Sequence[TokenizedExample],
    batch_size: int,
    observer: Observer = unobserved,
) -> float:
    """Mean negative log-likelihood in nats over all answer tokens of all examples.

    Every token weighs the same, the end-of-sequence token included; prompts do not count. The
    model's mode is restored.

    Args:
        examples: at least one.
        batch_size: so many of the longest may be computed together; the result depends on it by
            rounding only.
        observer: is told how far it is.
    """
    total, answers, done, tokens = 0.0, 0, 0, 0
    observer(Headway("evaluate", 0, len(examples)))
    with evaluating(model):
        for batch in evaluation_batches(examples, batch_size):
            total += answer_loss_sum(model, batch.to(model.device)).item()
            answers += batch.tokens
            done += len(batch.input_ids)
            tokens += int(batch.attention_mask.sum())
            mean = partial(truediv, total, answers)
            observer(Headway("evaluate", done, len(examples), tokens, mean))
    return total / answers


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenizedExample],
    table: EvaluationTable,
    batch_size: int,
    observer: Observer = unobserved,
) -> dict[str, float]:
    """The metrics of a model, by name, in the order asked for.

    Args:
        examples: at least one. The loss is over all of them; for the metrics of texts as many as
            the recipe says are answered, evenly spaced, so the same ones every time.
        table: the recipe's.
        batch_size: so many of the longest may be computed together.
        observer: is told how far it is.

    Returns:
        "loss" in nats, the others between 0 and 1.

    Raises:
        UserError: no room for answers in the model's context, or an extra is not installed.
    """
    results: dict[str, float] = {}
    if "loss" in table.metrics:
        results["loss"] = evaluate_loss(model, examples, batch_size, observer)
    scores = {name: score for name in table.metrics if (score := METRICS[name].score)}
    if scores:
        sample = evenly_spaced(examples, table.generation_samples)
        most = table.max_new_tokens
        answers = generate(model, tokenizer, sample, most, batch_size, observer)
        references = [e.references for e in sample]
        results |= {name: score(answers, references) for name, score in scores.items()}
    return {metric: results[metric] for metric in table.metrics}


def recorded(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics as a run's files hold them: null for what is no finite number, and then under
    ``unmeasured`` why."""
    missing = {name: f"it is {v}" for name, v in metrics.items() if not math.isfinite(v)}
    values = {name: None if name in missing else value for name, value in metrics.items()}
    return {**values, "unmeasured": missing} if missing else values


def evenly_spaced(examples: Sequence[TokenizedExample], count: int) -> list[TokenizedExample]:
    """At most `count` of the examples, spread over all of them."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]
