from __future__ import annotations

import math
from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from fullfed.config import EvaluationTable, Recipe
from fullfed.data.tokens import TokenizedExample
from fullfed.evaluation.evaluate import evaluate, evaluate_loss, evenly_spaced, recorded
from fullfed.evaluation.generation import generate
from fullfed.headway import Headway


def test_metrics_come_by_name_in_the_order_asked_for(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    answers = generate(tiny_llama, byte_tokenizer, random_examples, 8, 4)
    # Every second reference is what the model says.
    examples = [
        replace(one, references=(answer if i % 2 == 0 else "#",))
        for i, (one, answer) in enumerate(zip(random_examples, answers, strict=True))
    ]
    table = EvaluationTable(metrics=("exact_match", "loss", "gsm8k"), max_new_tokens=8)
    results = evaluate(tiny_llama, byte_tokenizer, examples, table, 4).metrics
    assert list(results) == ["exact_match", "loss", "gsm8k"]
    assert results["exact_match"] >= 6 / 11
    assert results["loss"] == evaluate_loss(tiny_llama, examples, 4)


def test_an_observer_sees_every_batch_and_every_token_of_answers(
    tiny_llama: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
    random_examples: list[TokenizedExample],
) -> None:
    examples, seen = random_examples[:5], list[Headway]()
    table = EvaluationTable(metrics=("loss", "exact_match"), max_new_tokens=2)
    results = evaluate(tiny_llama, byte_tokenizer, examples, table, 5, seen.append).metrics
    first, last, *answers = seen
    tokens = sum(map(len, examples))
    assert (first.work, first.done, first.of, first.tokens) == ("evaluate", 0, 5, 0)
    assert (last.work, last.done, last.of, last.tokens) == ("evaluate", 5, 5, tokens)
    assert last.loss is not None
    assert last.loss() == results["loss"]
    assert [(a.work, a.done, a.of, a.tokens) for a in answers] == [
        ("answer", 0, 5, 0),
        ("answer", 0, 5, 5),
        ("answer", 0, 5, 10),
    ]


@pytest.mark.parametrize(
    ("said", "parts", "expected"), [({}, None, 6), ({}, 2, 2), ({"batch_size": 9}, 2, 9)]
)
def test_evaluation_is_as_large_as_a_visit_unless_the_recipe_says_otherwise(
    said: dict[str, int], parts: int | None, expected: int
) -> None:
    recipe = Recipe(
        model={"path": "builtin"},
        data={"train": "builtin"},
        federation={"rounds": 1, "clients_per_round": 1},
        method={"name": "fedavg"},
        local={"batch_size": 6, "micro_batch_size": parts},
        evaluation=said,
    )
    assert recipe.evaluated_together == expected


def test_generation_samples_are_spread_and_fixed(
    random_examples: list[TokenizedExample],
) -> None:
    assert evenly_spaced(random_examples, 3) == [random_examples[i] for i in (0, 3, 7)]
    assert evenly_spaced(random_examples, 50) == random_examples


def test_a_metric_that_is_no_number_is_recorded_as_missing_with_the_reason() -> None:
    found = recorded({"loss": math.nan, "rouge_l": 0.25, "exact_match": math.inf})
    reasons = {"loss": "it is nan", "exact_match": "it is inf"}
    assert found == {"loss": None, "rouge_l": 0.25, "exact_match": None, "unmeasured": reasons}
    assert recorded({"loss": 2.5}) == {"loss": 2.5}
