"""All asked-for measurements of a model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.evaluation.generation import generate
from fullfed.evaluation.loss import evaluate_loss
from fullfed.evaluation.text_metrics import exact_match, gsm8k_exact_match, rouge_l

TextMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]

TEXT_METRICS: Mapping[str, TextMetric] = {
    "rouge_l": rouge_l,
    "exact_match": exact_match,
    "gsm8k": gsm8k_exact_match,
}
METRICS = ("loss", *TEXT_METRICS)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenizedExample],
    metrics: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    generation_samples: int | None,
) -> dict[str, float]:
    """The metrics of a model, by name, in the order asked for.

    Args:
        model: any causal language model.
        tokenizer: the model's.
        examples: at least one.
        metrics: some of METRICS; "loss" in nats, the others between 0 and 1.
        max_new_tokens: the most tokens of a generated answer.
        batch_size: examples computed together.
        generation_samples: how many of the examples are answered for the metrics of texts,
            evenly spaced (the same ones every time); None for all. The loss is always over all.

    Raises:
        UserError: an unknown metric.
    """
    check_metrics(metrics)
    results: dict[str, float] = {}
    if "loss" in metrics:
        results["loss"] = evaluate_loss(model, examples, batch_size)
    if any(metric in TEXT_METRICS for metric in metrics):
        sample = evenly_spaced(examples, generation_samples)
        answers = generate(model, tokenizer, sample, max_new_tokens, batch_size)
        references = [e.references for e in sample]
        for metric in metrics:
            if metric in TEXT_METRICS:
                results[metric] = TEXT_METRICS[metric](answers, references)
    return {metric: results[metric] for metric in metrics}


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises UserError where one of the metrics is unknown."""
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"Unknown metric {metric!r}; choose among {', '.join(METRICS)}.")


def evenly_spaced(
    examples: Sequence[TokenizedExample], count: int | None
) -> Sequence[TokenizedExample]:
    """At most `count` of the examples, spread over all of them."""
    if count is None or count >= len(examples):
        return examples
    return [examples[i * len(examples) // count] for i in range(count)]
