"""One instruction, its answer, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One sample of an instruction dataset, whatever file it was read from.

    Attributes:
        instruction: what to do.
        input: what to do it to; "" where the instruction says it all.
        output: the answer that is trained on.
        references: every accepted answer, at least the output.
        task: the name of the task, "" where the source has none.
        category: the kind of task, "" where the source has none.
    """

    instruction: str
    input: str
    output: str
    references: tuple[str, ...]
    task: str = ""
    category: str = ""
