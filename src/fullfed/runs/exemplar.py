"""A sample that a run was measured on, to show how its model is asked."""

from __future__ import annotations

from dataclasses import dataclass

from fullfed.data.wording import read_request
from fullfed.evaluation.evaluate import Prediction
from fullfed.evaluation.metrics import exact_match
from fullfed.runs.folder import RunFolder
from fullfed.runs.predictions import read_predictions


@dataclass(frozen=True)
class Exemplar:
    """A request with an input, and what a run's models answered to it.

    Attributes:
        instruction, input: the request.
        answers: the base model's, "before", and that of the newest model whose answers were kept,
            "after".
        others: the other instructions of the samples, each once.
    """

    instruction: str
    input: str
    answers: dict[str, str]
    others: tuple[str, ...]


def exemplar_of(folder: RunFolder) -> Exemplar | None:
    """One that the run has learned to answer, if there is any.

    None where requests have no input of their own, or answers were not kept.

    Raises:
        UserError: the answers are not those that the run wrote.
    """
    kept = read_predictions(folder)
    if not kept:
        return None
    pairs = [
        (request, before, after)
        for before, after in zip(kept[0], kept[max(kept)], strict=True)
        if (request := read_request(before.prompt)) is not None
    ]
    if not pairs:
        return None
    learned = [pair for pair in pairs if _is_right(pair[2]) and not _is_right(pair[1])]
    (instruction, input_), before, after = (learned or pairs)[0]
    others = dict.fromkeys(request[0] for request, _, _ in pairs)
    del others[instruction]
    answers = {"before": before.answer, "after": after.answer}
    return Exemplar(instruction, input_, answers, tuple(others))


def _is_right(one: Prediction) -> bool:
    return exact_match([one.answer], [one.references]) == 1.0
