"""Many tokenised examples without an object for each: a federation has many clients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import overload

import numpy as np

from fullfed.data.tokens import TokenizedExample


class PackedExamples(Sequence[TokenizedExample]):
    """Examples for training, one after another in one array; what is not ids is left out.

    They take 2 bytes a token (4 where the vocabulary has more than 65,536) and 8 an example.

    Args:
        examples: what to pack.
    """

    def __init__(self, examples: Sequence[TokenizedExample]) -> None:
        ids = np.concatenate([example.ids for example in examples] or [np.empty(0, np.int32)])
        small = len(ids) == 0 or int(ids.max()) < 2**16
        self._ids = ids.astype(np.uint16) if small else ids
        ends = accumulate((len(example) for example in examples), initial=0)
        self._ends = np.fromiter(ends, dtype=np.uint32)
        prompts = (example.prompt_length for example in examples)
        self._prompts = np.fromiter(prompts, dtype=np.uint32)

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...

    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        ids = self._ids[self._ends[number] : self._ends[number + 1]]
        return TokenizedExample(ids.astype(np.int32), int(self._prompts[number]))
