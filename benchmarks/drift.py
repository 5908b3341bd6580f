"""Whether clients drift apart, and whether holding them together helps.

    python benchmarks/drift.py recipes/dolly.toml --seeds 0 1 2 --mu 0.1 \
        --set data.alpha=0.1 data.clients=20 federation.clients_per_round=5 'method={}' \
        method.name=fedavg

Carries the recipe's method out as it is, with FedProx's term for each mu, and with SCAFFOLD's
control variates (Karimireddy et al., arXiv 1910.06378, option II): each step of a client is shifted
by what the mean client's step is expected to be, less its own. Clients keep their own variate
exactly. The mean's follows the changes of the replica, so it costs no traffic: with FedAvg it is
SCAFFOLD's, with Ferret SCAFFOLD in coordinates. The table has the last loss, the energy of a
client's change, and the cosine of what its gradients alone came to with the same at its last visit
and with the mean's variate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan
from fullfed.federation.method import NOTHING
from fullfed.methods.fedprox import Proximal
from fullfed.methods.local_work import FirstOrder, LocalWork
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import carry_out
from fullfed.training.first_order import Improvement
from fullfed.training.loss import Loss
from fullfed.training.watch import OnStep, unwatched


@dataclass
class Variates:
    """What a visit's gradients come to, expected of each client and of the mean of all.

    Attributes:
        clients: N.
        cohort: n.
        own: of clients seen in earlier rounds, (d,).
        mean: (d,); zero at first.
        energies, with_own, with_mean: of all visits, for the table.
    """

    clients: int
    cohort: int
    own: dict[int, Tensor] = field(default_factory=dict)
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    energies: list[float] = field(default_factory=list)
    with_own: list[float] = field(default_factory=list)
    with_mean: list[float] = field(default_factory=list)
    _round: int = -1
    _weights: Tensor = field(default_factory=lambda: torch.zeros(()))
    _seen: dict[int, Tensor] = field(default_factory=dict)

    def arrive(self, weights: Tensor, round: int) -> None:
        """A visit of this round begins; the first of a round tells what the last one changed."""
        if round == self._round:
            return
        if round:
            change = weights - self._weights
            self.mean = self.mean + self.cohort / self.clients * (change - self.mean)
        self.own.update(self._seen)
        self._round, self._weights, self._seen = round, weights, {}

    def leave(self, client: int, change: Tensor, shift: Tensor | None) -> None:
        """A visit has changed the weights so, of which ``shift`` was not the gradients'."""
        own = change if shift is None else change - shift
        self.energies.append(float(change @ change))
        if client in self.own:
            self.with_own.append(_cosine(own, self.own[client]))
            self.with_mean.append(_cosine(own, self.mean))
        self._seen[client] = own

    def shift(self, client: int) -> Tensor:
        return self.mean - self.own.get(client, torch.zeros_like(self.mean))


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@dataclass(frozen=True)
class Watched(LocalWork):
    """A local optimizer whose visits ``variates`` follows, and shifts where ``control`` says so.

    Attributes:
        local: how clients train.
        steps: of a visit.
    """

    local: FirstOrder
    variates: Variates
    steps: int
    control: bool

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        trained = list(parameters.values())
        before = parameters_to_vector(trained).detach()
        self.variates.arrive(before, plan.round)
        shift = self.variates.shift(plan.client) if self.control and plan.round else None
        local = self.local
        if shift is not None:
            pieces = self._pieces(shift / self.steps, trained)
            local = Shifted(self.local.setting, shift=pieces)
        done = local.improve(model, parameters, batches, plan, state, exact, on_step)
        if isinstance(local, Shifted):
            local.move(trained)
        change = parameters_to_vector(trained).detach() - before
        self.variates.leave(plan.client, change, shift)
        return done

    def _pieces(self, row: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        pieces = torch.split(row, [p.numel() for p in like])
        return tuple(piece.view_as(p) for piece, p in zip(pieces, like, strict=True))


@dataclass(frozen=True)
class Shifted(FirstOrder):
    """Adds ``shift`` after every step but the last, which is the caller's."""

    shift: tuple[Tensor, ...] = ()

    def loss(self, parameters: Sequence[Tensor]) -> Loss:
        plain, begun = super().loss(parameters), False

        def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
            nonlocal begun
            if begun:
                self.move(parameters)
            begun = True
            return plain(model, batch)

        return loss

    def move(self, parameters: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for p, piece in zip(parameters, self.shift, strict=True):
                p.add_(piece)


def run(arguments: argparse.Namespace, seed: int, kind: str) -> tuple[float, Variates]:
    """The last loss, and what was seen of clients' changes."""
    recipe = load_recipe(arguments.recipe, [*arguments.set, f"federation.seed={seed}"])
    assembly = assemble(recipe)
    method = assembly.method
    if not isinstance(method.local, FirstOrder) or method.setting.local.steps is None:
        raise SystemExit("clients must take a given number of first-order steps")
    local = method.local
    if kind.startswith("FedProx"):
        local = Proximal(method.setting, mu=float(kind.split()[-1]))
    variates = Variates(method.setting.clients, method.setting.cohort_size)
    watched = Watched(local, variates, method.setting.local.steps, kind == "SCAFFOLD")
    assembly = replace(assembly, method=replace(method, local=watched))
    with tempfile.TemporaryDirectory() as folder:
        RunFolder(Path(folder) / "run").create(assembly.recipe)
        summary = carry_out(RunFolder(Path(folder) / "run"), assembly)
    return float(summary["loss"]["final"]), variates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--mu", nargs="*", default=[], help="of FedProx, each a row")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the recipe")
    arguments = parser.parse_args()
    print("| clients | loss, seed by seed | energy | cosine with own last | with the mean's |")
    print("|---|---|---|---|---|", flush=True)
    for kind in ("as they are", *(f"FedProx {mu}" for mu in arguments.mu), "SCAFFOLD"):
        losses, energies, own, mean = [], [], [], []
        for seed in arguments.seeds:
            print(f"{kind}, seed {seed} ...", file=sys.stderr, flush=True)
            loss, seen = run(arguments, seed, kind)
            losses.append(f"{loss:.3f}")
            energies += seen.energies
            own += seen.with_own
            mean += seen.with_mean
        means = [f"{statistics.mean(values):.3f}" for values in (energies, own, mean)]
        print(f"| {kind} | {', '.join(losses)} | {' | '.join(means)} |", flush=True)


if __name__ == "__main__":
    main()
