from __future__ import annotations

import numpy as np
import pytest

from fullfed.data.tokens import TokenizedExample
from fullfed.randomness import Stream, uniforms


@pytest.fixture
def random_examples() -> list[TokenizedExample]:
    """Eleven of different lengths up to 40, the ids of bytes, ending with </s> = 257."""
    examples = []
    for number in range(11):
        length = 6 + (number * 17) % 35
        drawn = uniforms(Stream(number, 99), length)
        ids = np.array([256, *(drawn * 256).astype(int), 257], dtype=np.int32)
        prompt_length = 1 + length // (2 + number % 3)
        examples.append(TokenizedExample.pair(ids, prompt_length))
    return examples
