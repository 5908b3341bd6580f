"""Short runs of one recipe at different learning rates; only their losses are kept."""

from __future__ import annotations

import math
from collections.abc import Callable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.compare.plan import with_learning_rate
from fullfed.compare.search import Trial
from fullfed.compare.validation import hold_out
from fullfed.config import Recipe
from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.evaluation.loss import evaluate_loss
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import encode
from fullfed.federation.rounds import run_round
from fullfed.federation.worker import Worker
from fullfed.runs.assembly import build_method, make_replica, method_options
from fullfed.runs.loading import load_data, load_model


class Trials:
    """Trains on the clients' data without the validation part, and measures on that part.

    Args:
        recipe: everything but the learning rate.
        rounds: of each trial.
        on_arrival: called after every visit, for progress.

    Raises:
        UserError: anything in the recipe does not fit.
    """

    def __init__(
        self, recipe: Recipe, rounds: int, on_arrival: Callable[[Arrival], None] = lambda _: None
    ) -> None:
        self._recipe = recipe
        self._rounds = rounds
        self._on_arrival = on_arrival
        model, tokenizer = self._load()
        data = load_data(recipe, model, tokenizer)
        examples = [client.examples for client in data.clients]
        kept, self._validation = hold_out(examples, recipe.federation.seed)
        self._clients = dict(enumerate(kept))

    def run(self, learning_rate: float) -> Trial:
        """One trial; one that fails says why."""
        try:
            loss = self._loss(with_learning_rate(self._recipe, learning_rate))
        except UserError as error:
            return Trial(learning_rate, None, str(error))
        if not math.isfinite(loss):
            return Trial(learning_rate, None, "the validation loss is not finite.")
        return Trial(learning_rate, loss)

    def _loss(self, recipe: Recipe) -> float:
        model, _ = self._load()  # anew: a method may add parameters to it
        options = method_options(recipe.method)
        method = build_method(recipe, options, model, len(self._clients))
        worker = Worker(make_replica(recipe, model, method), method, self._clients)
        engine = Simulation(worker, recipe.simulation.failures, recipe.federation.seed)
        for number in range(self._rounds):
            result = run_round(method, engine, number, worker.last, self._on_arrival)
            worker.deliver(encode(result.update))
        return evaluate_loss(model, self._validation, recipe.evaluation.batch_size)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        table = self._recipe.model
        return load_model(table.path, table.dtype, table.device)
