"""What one round gains by clients' changes as they are, and by less of them, when noise is added.

    FULLFED_SHARED=... python benchmarks/energy.py recipes/natural-instructions.toml \
        --set local.optimizer=adamw local.learning_rate=0.003 --after runs/fedavg --version 6

A sketch's noise has the energy of what is sent, so whatever has the same gain with less energy is
worth more at equal bytes. The table has, for some ways to leave out of a change what may be noise
already, its energy (with scales, in their units), and what the mean of the clients' changes gains
on the test set: at a whole step, at the best one, and at the best one with noise of so many exact
coordinates on each client's own directions. Gains are shares of what the plain mean gains at a
whole step.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fullfed.data.batches import collate, training_batches
from fullfed.evaluation.evaluate import evenly_spaced
from fullfed.randomness import Purpose, Stream
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import Assembly, assemble
from fullfed.runs.curvature import with_scales
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay
from fullfed.sketch import Scales, perturb_
from fullfed.training.first_order import train
from fullfed.training.loss import answer_loss_value

_CLIENTS = 10  # at most
_STEPS = (0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.4)
_PAIRS = 1  # of opposite noise

Change = Mapping[str, Tensor]


class Round:
    """A cohort's visits to one version of a model, and losses near it.

    Args:
        assembly: its model is at the version.
        samples: of the test set.
    """

    def __init__(self, assembly: Assembly, samples: int) -> None:
        self._assembly, self._model = assembly, assembly.model
        self.parameters = dict(self._model.named_parameters())
        self.before = {name: p.detach().clone() for name, p in self.parameters.items()}
        some = evenly_spaced(assembly.data.test, samples)
        self._batches = [collate(some[n : n + 8]) for n in range(0, len(some), 8)]
        self.start = self._loss()

    def visits(self) -> list[tuple[Change, Change]]:
        """Each client's change; and 2 / (T + 1) times the sum of its changes after each of T steps,
        which is the same where it goes straight on."""
        clients = len(self._assembly.data.clients)
        cohort = min(clients, _CLIENTS)
        return [self._visit(n * clients // cohort) for n in range(cohort)]

    def _visit(self, client: int) -> tuple[Change, Change]:
        setting = self._assembly.method.setting
        local, sums = setting.local, {n: torch.zeros_like(p) for n, p in self.before.items()}
        examples = self._assembly.data.clients[client].examples
        steps = local.batches(len(examples))

        def add(_: Tensor | float | None) -> None:
            for name, p in self.parameters.items():
                sums[name] += (p.detach() - self.before[name]) * 2 / (steps + 1)

        stream = Stream(setting.seed, Purpose.BATCHES, 0, client)
        batches = training_batches(examples, local.batch_size, steps, stream)
        train(self._model, self.parameters, batches, local, setting.memory, on_step=add)
        last = {n: p.detach() - self.before[n] for n, p in self.parameters.items()}
        self._go_back()
        return last, sums

    def gain(self, change: Change, step: float) -> float:
        """What a step along a change takes off the loss."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.add_(change[name], alpha=step)
        loss = self._loss()
        self._go_back()
        return self.start - loss

    def noisy(self, change: Change, sigma: float, scales: Scales | None) -> list[Change]:
        """The change with some pairs of opposite noise."""
        found: list[Change] = []
        for number in range(2 * _PAIRS):
            noise = [value.clone() for value in change.values()]
            stream = Stream(0, Purpose.PROBE, number // 2)
            perturb_(noise, stream, sigma * (-1) ** number, scales=scales)
            found.append(dict(zip(change, noise, strict=True)))
        return found

    def _go_back(self) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.before[name])

    def _loss(self) -> float:
        tokens = [batch.tokens for batch in self._batches]
        losses = [answer_loss_value(self._model, batch) for batch in self._batches]
        return sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)


def of_rank(rank: int) -> Callable[[Change], Change]:
    """Each matrix by its largest singular values alone."""

    def kept(change: Change) -> Change:
        return {name: _truncated(value, rank) for name, value in change.items()}

    return kept


def _truncated(value: Tensor, rank: int) -> Tensor:
    if value.ndim != 2 or min(value.shape) <= rank:
        return value
    u, s, v = torch.linalg.svd(value, full_matrices=False)
    kept: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return kept


def mean(changes: Sequence[Change]) -> Change:
    return {n: sum((c[n] for c in changes), torch.zeros(())) / len(changes) for n in changes[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe")
    parser.add_argument("--after", type=Path, help="the folder of a run to begin within")
    parser.add_argument("--version", type=int, help="of the run's model")
    parser.add_argument("--samples", type=int, default=80, help="of the test set")
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 1])
    parser.add_argument("--coordinates", type=int, nargs="+", default=[9000, 1500, 250])
    arguments = parser.parse_args()
    assembly = assemble(load_recipe(arguments.recipe, arguments.set))
    scaled = with_scales(assembly.method, assembly.model).codec.scales
    if arguments.after is not None:
        found, _ = replay(RunFolder(arguments.after), arguments.version)
        assembly.model.load_state_dict(found.state_dict())
    here = Round(assembly, arguments.samples)
    scales = None if scaled is None else scaled.of(here.parameters)
    visits = here.visits()
    plain = here.gain(mean([last for last, _ in visits]), 1.0)
    heads = [
        "",
        "energy",
        "a whole step",
        "no noise",
        *(f"{k:,} coordinates" for k in arguments.coordinates),
    ]
    print(f"a plain round takes {plain:.4f} off the loss of {here.start:.4f}\n")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    for name, changes in _variants(visits, arguments.ranks):
        own = mean(changes)
        zeros = [torch.zeros_like(p) for p in here.before.values()]
        energies = [_energy(list(change.values()), zeros, scales) for change in changes]
        energy = sum(energies) / len(energies)
        cells = [f"{here.gain(own, 1.0) / plain:.2f}"]
        cells.append(_best(lambda step, c=own: here.gain(c, step) / plain))  # type: ignore[misc]
        for count in arguments.coordinates:
            noisy = here.noisy(own, math.sqrt(energy / (count * len(changes))), scales)
            cells.append(
                _best(lambda s, n=noisy: sum(here.gain(c, s) for c in n) / len(n) / plain)  # type: ignore[misc]
            )
        print(f"| {name} | {energy:.3g} | " + " | ".join(cells) + " |", flush=True)


def _variants(
    visits: Sequence[tuple[Change, Change]], ranks: Sequence[int]
) -> list[tuple[str, list[Change]]]:
    """Changes by their names; the mean over the steps is as long as the last where every step is
    like any other."""
    last, means = [one for one, _ in visits], [one for _, one in visits]
    found = [("after the last step", last), ("mean over the steps", means)]
    for rank in ranks:
        found.append((f"last, of rank {rank}", [of_rank(rank)(change) for change in last]))
        found.append((f"mean, of rank {rank}", [of_rank(rank)(change) for change in means]))
    return found


def _energy(change: Sequence[Tensor], zeros: Sequence[Tensor], scales: Scales | None) -> float:
    if scales is not None:
        return scales.energy(change, zeros)
    return sum(float(value.square().sum()) for value in change)


def _best(gain: Callable[[float], float]) -> str:
    """The largest gain of some steps, and the step."""
    found, step = max((gain(step), step) for step in _STEPS)
    return f"{found:.2f} at {step:g}"


if __name__ == "__main__":
    main()
