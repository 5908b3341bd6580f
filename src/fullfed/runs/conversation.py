"""A conversation with a model, worded as what it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.data.examples import Example, Turn
from fullfed.data.tokens import tokenize
from fullfed.errors import UserError
from fullfed.evaluation.generation import context_length, generate_aloud
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_model
from fullfed.runs.replay import ordinary

_CONTEXT = 4096  # tokens of a model that does not say how many it reads at once
_PLACE = "a"  # stands where the answer will be; samples are worded with their answers


@dataclass
class Conversation:
    """Questions and a model's greedy answers, each given all that was said before.

    Attributes:
        model: in evaluation mode. tokenizer: its.
        template, today: as for ``tokenize``.
        turns: what was said so far; a system message may be the first.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str = "auto"
    today: date | None = None
    turns: list[Turn] = field(default_factory=list)

    def ask(
        self, question: str, max_new_tokens: int, say: Callable[[str], None], context: str = ""
    ) -> str:
        """The answer to the question, which is told piece by piece as well.

        A conversation that no longer fits loses its oldest turns.

        Args:
            context: what the question is about, where the data have it apart.

        Raises:
            UserError: the template cannot word it, or there is no room for an answer.
        """
        asked = [*self.turns, Turn("user", question, context=context)]
        example = Example((*asked, Turn("assistant", _PLACE, learned=True)))
        most = (context_length(self.model) or _CONTEXT) - max_new_tokens
        worded = tokenize([example], self.tokenizer, self.template, most, self.today, "last")
        if not worded.examples:
            raise UserError(
                f"--max-new-tokens {max_new_tokens}: the model's context has no room for so long "
                "an answer; ask for fewer."
            )
        answer = generate_aloud(self.model, self.tokenizer, worded.examples[0], max_new_tokens, say)
        self.turns = [*asked, Turn("assistant", answer)]
        return answer


def conversations(
    model_or_run: str, system: str | None = None, after_only: bool = False
) -> dict[str, Conversation]:
    """Those to be had, by name: "before" and "after" with a run, "" alone with a model.

    A run's are worded as its samples were, and on the date that its templates were told.

    Args:
        model_or_run: a run's folder, a model's folder, a hub name, or "builtin".
        system: the system message of each.
        after_only: leave a run's base model out.

    Raises:
        UserError: there is no such model or run, or the run cannot be replayed or has no round yet.
    """
    told = [] if system is None else [Turn("system", system)]
    folder = RunFolder(Path(model_or_run))
    if not folder.recipe_file.exists():
        return {"": Conversation(*load_model(model_or_run), turns=told)}
    recipe = folder.recipe()
    table, data = recipe.model, recipe.data
    after = Conversation(*ordinary(folder), data.template, data.date, told)
    if after_only:
        return {"after": after}
    base = load_model(table.path, table.dtype, table.device)
    return {"before": Conversation(*base, data.template, data.date, told), "after": after}
