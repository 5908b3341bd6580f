"""How much reconstruction noise public weights could save, taken from a sample of the very task.

    python benchmarks/prior_weights.py runs/fedavg --rounds 0 1 4 11

With weights 1/v before a projection and v after it, noise has the energy sum(e / v**2) / K, e being
that of clients' changes of each parameter, and is spread as v**2. What it costs in loss is, to
second order, least at v**2 = sqrt(e / h), h being the loss's curvature along each parameter. The
table has what noise costs with weights over what it costs without, along a FedAvg run: e and h are
measured on some of its clients, a calibration text as good as the federation's own data, and the
costs on others, by adding such noise; then the other way round. Weights are for each tensor (h by
adding noise to one tensor at a time), for each tensor, for each row and column of a matrix and for
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
from fullfed.federation.messages import Plan, Update, decode
from fullfed.randomness import permutation
from fullfed.runs.assembly import Assembly, assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import load_base
from fullfed.sketch import Purpose, Stream, perturb_
from fullfed.training.loss import answer_loss, answer_loss_value

_CLIENTS = 6  # of each half
_FLOOR = 0.1  # of their means: curvatures and energies that choose weights are at least that
_PAIRS = 2  # of opposite noise, in one tensor
_PAIRS_TOGETHER = 16  # in all
_NUMBERS = 8000  # exact coordinates: the noise added is of a thousandth of the bytes


class Sample:
    """Some clients, and the model of one round."""

    def __init__(
        self, assembly: Assembly, model: PreTrainedModel, round: int, clients: Sequence[int]
    ) -> None:
        self._assembly, self._model, self._round = assembly, model, round
        self._parameters = [p.detach() for p in model.parameters()]
        self._clients = clients
        self._probed = [self._batches(client, 4, 1)[0] for client in clients]
        self._energies = self._measure_energies()
        total = sum(float(e.sum()) for e in self._energies)
        self._sigma = math.sqrt(total / assembly.recipe.federation.clients_per_round / _NUMBERS)

    def squared_weights(self) -> list[list[Tensor]]:
        """The best v**2 of each kind, for these clients; float64, a tensor for each parameter."""
        gradients, tensors = self._squared_gradients(), by_tensor(self._energies)
        return [
            best(self._curvatures(), tensors),
            best(by_tensor(gradients), tensors),
            best(by_row_and_column(gradients), by_row_and_column(self._energies)),
            best(gradients, self._energies),
        ]

    def cost(self, squares: Sequence[Tensor] | None) -> float:
        """What these clients' noise costs them with weights of these v**2; None for none."""
        if squares is None:
            return self._cost_of_noise(self._parameters, _PAIRS_TOGETHER, 0)
        weights = [v.sqrt().float() for v in squares]
        sent = sum(float((e / v).sum()) for e, v in zip(self._energies, squares, strict=True))
        share = sent / sum(float(e.sum()) for e in self._energies)
        scaled = [math.sqrt(share) * v for v in weights]
        return self._cost_of_noise(self._parameters, _PAIRS_TOGETHER, 0, scaled)

    def _cost_of_noise(
        self,
        tensors: Sequence[Tensor],
        pairs: int,
        first: int,
        weights: Sequence[Tensor] | None = None,
    ) -> float:
        """Mean loss with noise in the tensors, less that without."""
        before, total = [t.clone() for t in tensors], 0.0
        for pair in range(pairs):
            stream = Stream(0, Purpose.PROBE, self._round, first + pair)
            for signed in (self._sigma, -self._sigma):
                noise = [torch.zeros_like(tensor) for tensor in tensors]
                perturb_(noise, stream, signed)
                for n, tensor in enumerate(tensors):
                    tensor.add_(noise[n] if weights is None else noise[n] * weights[n])
                total += self._loss()
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)
        return total / (2 * pairs) - self._loss()

    def _curvatures(self) -> list[Tensor]:
        """Each tensor's mean, in its shape."""
        found = []
        for number, tensor in enumerate(self._parameters):
            cost = self._cost_of_noise([tensor], _PAIRS, number * _PAIRS)
            found.append(torch.full_like(tensor, cost / tensor.numel(), dtype=torch.float64))
        return found

    def _measure_energies(self) -> list[Tensor]:
        """Mean squared change of each parameter in a visit, float64."""
        method = self._assembly.method
        work, parameters = method.setting.local, dict(self._model.named_parameters())
        before = [p.clone() for p in self._parameters]
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in before]
        for client in self._clients:
            steps = work.batches(len(self._assembly.data.clients[client].examples))
            batches = self._batches(client, work.batch_size, steps)
            method.local.improve(self._model, parameters, batches, Plan(self._round, client), {})
            for p, start, total in zip(self._parameters, before, sums, strict=True):
                total += (p - start).double().square()
                p.copy_(start)
        return [total / len(self._clients) for total in sums]

    def _squared_gradients(self) -> list[Tensor]:
        """Mean over single samples, float64."""
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in self._parameters]
        batches = [batch for c in self._clients for batch in self._batches(c, 1, 4)]
        parameters = list(self._model.parameters())
        for p in parameters:
            p.requires_grad_(True)
        for batch in batches:
            gradients = torch.autograd.grad(answer_loss(self._model, batch), parameters)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.double().square()
        return [total / len(batches) for total in sums]

    def _batches(self, client: int, size: int, count: int) -> list[Batch]:
        examples = self._assembly.data.clients[client].examples
        stream = Stream(1, Purpose.BATCHES, self._round, client)
        return list(training_batches(examples, size, count, stream))

    def _loss(self) -> float:
        losses = [answer_loss_value(self._model, batch) for batch in self._probed]
        return sum(losses) / len(losses)


def best(curvatures: Sequence[Tensor], energies: Sequence[Tensor]) -> list[Tensor]:
    """v**2 = sqrt(e / h)."""
    pairs = zip(_floored(energies), _floored(curvatures), strict=True)
    return [(e / h).sqrt() for e, h in pairs]


def _floored(values: Sequence[Tensor]) -> list[Tensor]:
    mean = sum(float(v.sum()) for v in values) / sum(v.numel() for v in values)
    return [(v / abs(mean)).clamp(min=_FLOOR) for v in values]


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
    order = permutation(Stream(0, Purpose.BATCHES, round, 0), len(assembly.data.clients))
    halves = [[int(n) for n in order[k : k + _CLIENTS]] for k in (0, _CLIENTS)]
    one, other = (Sample(assembly, model, round, clients) for clients in halves)
    cells = []
    for chosen, held_out in ((one, other), (other, one)):
        plain = held_out.cost(None)
        cells.append([held_out.cost(v) / plain for v in chosen.squared_weights()])
    both = (f"{a:.2f}, {b:.2f}" for a, b in zip(*cells, strict=True))
    return f"| {round} | {' | '.join(both)} |"


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
