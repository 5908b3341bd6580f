from __future__ import annotations

import sys
from decimal import Decimal

import pytest

from fullfed.errors import UserError
from fullfed.evaluation.metrics import (
    exact_match,
    final_number,
    gsm8k_exact_match,
    rouge_l,
)


def test_rouge_l_is_the_mean_of_the_best_over_references() -> None:
    # The longest common subsequence of the second pair is 2 words: P = 2/3, R = 2/4, F = 4/7.
    predictions = ["The cat.", "a cat sat", "", "no"]
    references = [["dog", "the CAT"], ["the cat sat down"], ["x"], ["yes"]]
    assert rouge_l(predictions, references) == pytest.approx((1 + 4 / 7) / 4)


def test_rouge_l_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r'pip install "fullfed\[eval\]"'):
        rouge_l(["a"], [["a"]])


def test_exact_match_overlooks_case_punctuation_and_spacing() -> None:
    predictions = [" Yes. ", "no", "one two", ""]
    references = [["yes"], ["yes", "No!"], ["one  three"], ["x"]]
    assert exact_match(predictions, references) == 0.5


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = <<3+4=7>>7 left.\n#### 7", 7),
        ("#### $1,234.50", Decimal("1234.5")),
        ("The answer is 12.", 12),
        ("It is -5 degrees", -5),
        ("first 1, then 2,000", 2000),
        ("#### 18 dollars, not 20", 18),
        ("4 apples #### none", None),
        ("no number", None),
    ],
)
def test_the_final_number_is_found(text: str, number: Decimal | int | None) -> None:
    assert final_number(text) == number


def test_gsm8k_compares_final_numbers() -> None:
    predictions = ["so 18.00", "#### 18", "eighteen", "18 or 19"]
    assert gsm8k_exact_match(predictions, [["9 + 9\n#### 18"]] * 4) == 0.5
