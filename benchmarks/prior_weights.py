"""How much reconstruction noise the best public weights could save, were everything known.

    python benchmarks/prior_weights.py runs/fedavg --rounds 0 1 4 11

With weights 1/v before a projection and v after it, noise costs, to second order, in proportion to
sum(h v**2) * sum(e / v**2), h being the loss's curvature along each parameter and e the energy of
clients' changes of it. The least is sum(sqrt(h e))**2, at v**2 = sqrt(e / h); uniform weights pay
sum(h) * sum(e). The table has the ratio of the two along a FedAvg run, h and e measured on the very
clients that it is then reckoned for, which no calibration text can beat: with a weight for each
tensor (h by adding noise to one tensor at a time), for each row and column of a matrix, and for
each parameter (h from squared gradients of single samples).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch, training_batches
from fullfed.federation.log import read_log
from fullfed.federation.messages import Update, decode
from fullfed.runs.assembly import Assembly, assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import load_base
from fullfed.sketch import Purpose, Stream, perturb_
from fullfed.sketch.generator import permutation
from fullfed.training.loss import answer_loss, answer_loss_value

_CLIENTS = 12  # whose changes and gradients are measured
_PROBED = 4  # of them, on whose first batch the loss is
_PAIRS = 2  # of opposite noise for each tensor
_NUMBERS = 8000  # exact coordinates: the noise added is of a thousandth of the bytes


class Measurement:
    """The model of one round, and the clients it is measured on."""

    def __init__(self, assembly: Assembly, model: PreTrainedModel, round: int) -> None:
        self._assembly, self._model, self._round = assembly, model, round
        self._parameters = list(model.parameters())
        order = permutation(Stream(0, Purpose.BATCHES, round, 0), len(assembly.data.clients))
        self._clients = [int(n) for n in order[:_CLIENTS]]

    def energies(self) -> list[Tensor]:
        """Mean squared change of each parameter in a visit, float64."""
        optimizer, work = (
            self._assembly.method.setting.optimizer,
            self._assembly.method.setting.work,
        )
        before = [p.detach().clone() for p in self._parameters]
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in before]
        for client in self._clients:
            steps = work.batches(len(self._assembly.data.clients[client].examples))
            optimizer.improve(
                self._model, self._parameters, self._batches(client, work.batch_size, steps)
            )
            with torch.no_grad():
                for p, start, total in zip(self._parameters, before, sums, strict=True):
                    total += (p - start).double().square()
                    p.copy_(start)
        return [total / len(self._clients) for total in sums]

    def curvatures(self, energy: float) -> list[Tensor]:
        """Each tensor's mean curvature, in its shape.

        Args:
            energy: of a client's change, of which the noise has its share.
        """
        probed = [self._batches(c, 4, 1)[0] for c in self._clients[:_PROBED]]
        sigma = math.sqrt(energy / self._assembly.recipe.federation.clients_per_round / _NUMBERS)
        base, found = self._loss(probed), []
        for number, p in enumerate(self._parameters):
            before, cost = p.detach().clone(), 0.0
            for pair in range(_PAIRS):
                for signed in (sigma, -sigma):
                    stream = Stream(0, Purpose.PROBE, self._round, number * _PAIRS + pair)
                    perturb_([p.detach()], stream, signed)
                    cost += self._loss(probed) - base
                    p.detach().copy_(before)
            mean = max(cost, 0.0) / (_PAIRS * sigma**2 * p.numel())
            found.append(torch.full_like(p, mean, dtype=torch.float64))
        return found

    def squared_gradients(self) -> list[Tensor]:
        """Mean over single samples, float64."""
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in self._parameters]
        batches = [batch for c in self._clients for batch in self._batches(c, 1, 4)]
        for p in self._parameters:
            p.requires_grad_(True)
        for batch in batches:
            gradients = torch.autograd.grad(answer_loss(self._model, batch), self._parameters)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.double().square()
        return [total / len(batches) for total in sums]

    def _batches(self, client: int, size: int, count: int) -> list[Batch]:
        examples = self._assembly.data.clients[client].examples
        stream = Stream(1, Purpose.BATCHES, self._round, client)
        return list(training_batches(examples, size, count, stream))

    def _loss(self, batches: Sequence[Batch]) -> float:
        return sum(answer_loss_value(self._model, batch) for batch in batches) / len(batches)


def least(curvatures: Sequence[Tensor], energies: Sequence[Tensor]) -> float:
    """What noise costs with the best weights, as a share of what it costs with none."""
    best = sum(float((h * e).sqrt().sum()) for h, e in zip(curvatures, energies, strict=True))
    uniform = sum(float(h.sum()) for h in curvatures) * sum(float(e.sum()) for e in energies)
    return best**2 / uniform


def by_tensor(values: Sequence[Tensor]) -> list[Tensor]:
    return [torch.full_like(v, float(v.mean())) for v in values]


def by_row_and_column(values: Sequence[Tensor]) -> list[Tensor]:
    return [
        v
        if v.dim() < 2
        else v.sum(1, keepdim=True) * v.sum(0, keepdim=True) / v.sum().clamp(1e-300)
        for v in values
    ]


def row(assembly: Assembly, model: PreTrainedModel, round: int) -> str:
    """One line of the table."""
    measured = Measurement(assembly, model, round)
    energies = measured.energies()
    curved = measured.curvatures(sum(float(e.sum()) for e in energies))
    squares = measured.squared_gradients()
    ratios = (
        least(curved, by_tensor(energies)),
        least(by_tensor(squares), by_tensor(energies)),
        least(by_row_and_column(squares), by_row_and_column(energies)),
        least(squares, energies),
    )
    return f"| {round} | {' | '.join(f'{ratio:.3f}' for ratio in ratios)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, nargs="*", default=[0])
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run)
    assembly = assemble(folder.recipe())
    replica, model, _ = load_base(folder)
    updates = [decode(payload, Update) for payload in read_log(folder.log_file)]
    print("| round | tensors | tensors, squared gradients | rows and columns | parameters |")
    print("|---|---|---|---|---|", flush=True)
    for round in sorted(arguments.rounds):
        while replica.version < round:
            replica.apply(updates[replica.version])
        print(row(assembly, model, round), flush=True)


if __name__ == "__main__":
    main()
