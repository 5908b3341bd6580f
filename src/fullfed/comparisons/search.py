"""The search for a method's learning rate: short runs, measured on data held out of the clients'.

Rates lie on a logarithmic grid around a start. First the start and its two neighbours, a factor
of sqrt(10) away (what diverges at the start is not tried above it); then on in the better
direction until the best lies between two worse ones; then the wider gap beside the best is halved
for as long as the budget lasts. Every trial is spent, so methods that are given the same budget
use the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fullfed.comparisons.plan import changed
from fullfed.config import Recipe
from fullfed.data.tokens import PackedExamples, TokenizedExample, subset
from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import encode
from fullfed.federation.server import run_round
from fullfed.methods.codecs.scaling import ModelScales
from fullfed.randomness import Purpose, Stream, permutation
from fullfed.runs.assembly import build_method, choose, make_replica
from fullfed.runs.curvature import with_scales
from fullfed.runs.loading import load_model, read_data, tokenize_data

_STRIDE = 0.5  # decades between neighbours
_SHARE = 10  # one example in so many is held out
_MOST = 500  # enough to tell learning rates apart


@dataclass(frozen=True)
class Trial:
    """One short run.

    Attributes:
        learning_rate: that of the clients.
        loss: on the validation part, nats per answer token; None if there is none.
        reason: why there is none.
    """

    learning_rate: float
    loss: float | None
    reason: str | None = None


def next_rate(start: float, trials: Sequence[Trial]) -> float:
    """The learning rate to try after ``trials``, which this function chose one by one."""
    losses: dict[float, float] = {}
    for trial in trials:
        losses[_next_place(losses)] = _loss(trial)
    # Four digits are more than a search can tell apart, and can be read.
    return float(f"{start * 10 ** _next_place(losses):.4g}")


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the least loss; the lowest rate where none has one."""
    return min(trials, key=lambda trial: (_loss(trial), trial.learning_rate))


def _next_place(losses: Mapping[float, float]) -> float:
    """Where to look next, in decades from the start, given the losses at places seen."""
    if not losses:
        return 0.0
    if _STRIDE not in losses and math.isfinite(losses[0.0]):
        return _STRIDE
    if -_STRIDE not in losses:
        return -_STRIDE
    centre = min(losses, key=lambda place: (losses[place], place))
    below = max((place for place in losses if place < centre), default=None)
    above = min((place for place in losses if place > centre), default=None)
    if above is None:
        return centre + _STRIDE
    if below is None:
        return centre - _STRIDE
    # The wider gap; of two as wide, the one towards the better neighbour.
    upwards = (above - centre, -losses[above]) > (centre - below, -losses[below])
    return (centre + (above if upwards else below)) / 2


def _loss(trial: Trial) -> float:
    return math.inf if trial.loss is None else trial.loss


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
        data = tokenize_data(recipe, read_data(recipe), model, tokenizer)
        examples = [client.examples for client in data.clients]
        kept, self._validation = hold_out(examples, recipe.federation.seed)
        self._clients = dict(enumerate(kept))
        self._scales: ModelScales | None = None  # which a learning rate does not change

    def run(self, learning_rate: float) -> Trial:
        """One trial; one that fails says why."""
        try:
            loss = self._loss(changed(self._recipe, "local", learning_rate=learning_rate))
        except UserError as error:
            return Trial(learning_rate, None, str(error))
        if not math.isfinite(loss):
            return Trial(learning_rate, None, "the validation loss is not finite.")
        return Trial(learning_rate, loss)

    def _loss(self, recipe: Recipe) -> float:
        model, _ = self._load()  # anew: a method may add parameters to it
        options = choose(recipe)
        method = build_method(recipe, options, model, len(self._clients))
        if self._scales is None:
            method = with_scales(method, model)
            self._scales = method.codec.scales
        else:
            method = method.scaled(self._scales)
        worker = Worker(make_replica(recipe, model, method), method, self._clients)
        engine = Simulation(worker, recipe.simulation.failures, recipe.federation.seed)
        samples = {client: len(examples) for client, examples in self._clients.items()}
        for number in range(self._rounds):
            result = run_round(
                method,
                engine,
                number,
                worker.last,
                model,
                self._on_arrival,
                samples=samples,
                exact=worker.replica.exact,
            )
            worker.deliver(encode(result.update))
        return evaluate_loss(model, self._validation, recipe.evaluated_together)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        table = self._recipe.model
        return load_model(table.path, table.dtype, table.device)


def hold_out(
    clients: Sequence[Sequence[TokenizedExample]], seed: int
) -> tuple[list[PackedExamples], list[TokenizedExample]]:
    """(what each client keeps, the validation part of all).

    About a tenth of every client's examples, chosen at random, and at most 500 in all; a client
    keeps at least one.

    Raises:
        UserError: no client has two examples.
    """
    orders = [
        permutation(Stream(seed, Purpose.VALIDATION, owner=number), len(examples)).tolist()
        for number, examples in enumerate(clients)
    ]
    # Evenly spaced over the clients' shuffled examples in one row, so that each client gives its
    # share, rounded up or down.
    row = [(n, i) for n, order in enumerate(orders) if len(order) > 1 for i in order]
    if not row:
        raise UserError(
            "no client has two examples, so that none can be held out to choose a learning rate; "
            "ask for fewer clients."
        )
    count = min(_MOST, -(-len(row) // _SHARE))
    chosen = {row[position * len(row) // count] for position in range(count)}
    kept = [
        subset(examples, [i for i in range(len(examples)) if (number, i) not in chosen])
        for number, examples in enumerate(clients)
    ]
    return kept, [clients[number][i] for number, i in sorted(chosen)]
