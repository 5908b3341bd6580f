"""All asked-for measurements of a model at once, and the answers that they are of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import truediv
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import EvaluationTable
from fullfed.data.batches import evaluation_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.evaluation.generation import evaluating, generate
from fullfed.evaluation.metrics import METRICS
from fullfed.headway import Headway, Observer, unobserved
from fullfed.training.loss import answer_loss_sum

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prediction:
    """What a model answered to one sample.

    Attributes:
        sample: its number in the evaluation set, from 0.
        prompt: all that comes before the answer, special tokens spelled out.
        references: the accepted answers.
        answer: the model's.
    """

    sample: int
    prompt: str
    references: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        metrics: by name, in the order asked for: "loss" in nats, the others between 0 and 1.
        predictions: the answers that were compared, in the order of the samples; empty where no
            metric is of answers.
    """

    metrics: dict[str, float]
    predictions: list[Prediction]


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
) -> Evaluation:
    """The metrics of a model, and the answers that they were made of.

    Args:
        examples: at least one. The loss is over all of them; for the metrics of texts as many as
            the recipe says are answered, evenly spaced, so the same ones every time.
        table: the recipe's.
        batch_size: so many of the longest may be computed together.
        observer: is told how far it is.

    Raises:
        UserError: no room for answers in the model's context, or an extra is not installed.
    """
    results: dict[str, float] = {}
    predictions: list[Prediction] = []
    if "loss" in table.metrics:
        results["loss"] = evaluate_loss(model, examples, batch_size, observer)
    scores = {name: score for name in table.metrics if (score := METRICS[name].score)}
    if scores:
        numbers = evenly_spaced(range(len(examples)), table.generation_samples)
        sample = [examples[number] for number in numbers]
        most = table.max_new_tokens
        answers = generate(model, tokenizer, sample, most, batch_size, observer)
        references = [e.references for e in sample]
        results |= {name: score(answers, references) for name, score in scores.items()}
        prompts = (str(tokenizer.decode(e.ids[: e.prompt_length].tolist())) for e in sample)
        predictions = list(map(Prediction, numbers, prompts, references, answers))
    return Evaluation({metric: results[metric] for metric in table.metrics}, predictions)


def recorded(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics as a run's files hold them: null for what is no finite number, and then under
    ``unmeasured`` why."""
    missing = {name: f"it is {v}" for name, v in metrics.items() if not math.isfinite(v)}
    values = {name: None if name in missing else value for name, value in metrics.items()}
    return {**values, "unmeasured": missing} if missing else values


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, spread over all of them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
