"""How many prefix layers FedPepTAO's rule of the Hessian says to share: docs/methods/fedpeptao.md.

    OMP_NUM_THREADS=1 python benchmarks/prefix_layers.py
    OMP_NUM_THREADS=1 python benchmarks/prefix_layers.py --exactly --clients 1

The released code takes the Hessian of one batch's loss with respect to all prefixes, estimates the
density of its eigenvalues (stochastic Lanczos quadrature: 50 steps from one vector of signs, each
eigenvalue found a normal distribution of the variance 1e-5 max(1, range)), and looks at the share
of the density above t = 0, s, 2s, ...

    s = 0.1; halved, and t begins again, whenever a share is below half of the first
    the answer is the share after three changes below 0.005

With --exactly the same rule on all eigenvalues too (float64, a row of the Hessian at a time), which
takes minutes a batch. FULLFED_SHARED names the folder of real data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

import fullfed
from field import ALPHAS, DATA, Run
from fullfed.data.batches import Batch, training_batches
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.runs.assembly import Assembly, assemble
from fullfed.training.layers import training_only
from fullfed.training.loss import answer_loss

STEPS = 50
Product = Callable[[Tensor], Tensor]


def hessian(assembly: Assembly, batch: Batch) -> tuple[Product, int]:
    """v -> H v of a batch's loss with respect to all prefixes, float64, and the size of v.

    The model must stay as it is while products are asked for.
    """
    prefixes = list(assembly.method.scope.trained(assembly.model).values())
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        loss = answer_loss(assembly.model, batch)
        first = torch.autograd.grad(loss, prefixes, create_graph=True)
    gradient = torch.cat([part.flatten() for part in first])

    def product(v: Tensor) -> Tensor:
        parts = torch.autograd.grad(gradient, prefixes, v.to(gradient), retain_graph=True)
        return torch.cat([part.flatten() for part in parts]).double()

    return product, len(gradient)


def lanczos(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues as a vector sees them, and their weights, which sum to 1."""
    basis, diagonal, beside = [start / start.norm()], list[Tensor](), list[Tensor]()
    while True:
        image = product(basis[-1])
        diagonal.append(image @ basis[-1])
        for _ in range(2):  # once leaves what rounding makes of it
            for vector in basis:
                image = image - (image @ vector) * vector
        if len(basis) == steps:
            break
        beside.append(image.norm())
        basis.append(image / beside[-1])
    off = torch.stack(beside)
    matrix = torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors[0] ** 2


def exact(product: Product, size: int) -> tuple[Tensor, Tensor]:
    """The same of the whole Hessian."""
    rows = [product(one_hot(torch.tensor(n), size).double()) for n in range(size)]
    matrix = torch.stack(rows)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2), torch.full((size,), 1 / size)


def share_above(t: float, values: Tensor, weights: Tensor) -> float:
    """Of the density."""
    spread = (1e-5 * max(1.0, float(values.max() - values.min()))) ** 0.5
    return float(torch.sum(weights * torch.special.ndtr((values - t) / spread)))


def answer(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """The rule's share, and the step of t that it came to."""
    step = 0.1
    while True:
        shares = [share_above(0.0, values, weights)]
        while shares[-1] >= shares[0] / 2:
            changes = [abs(a - b) for a, b in pairwise(shares[-4:])]
            if len(changes) == 3 and max(changes) < 0.005:
                return shares[-1], step
            shares.append(share_above(len(shares) * step, values, weights))
        step /= 2


def first_batch(assembly: Assembly, client: int) -> Batch:
    examples = assembly.data.clients[client].examples
    return next(iter(training_batches(examples, 4, 1, Stream(0, Purpose.BATCHES, 0, client))))


def signs(size: int, client: int) -> Tensor:
    """A vector of 1 and -1, float64."""
    drawn = uniforms(Stream(0, Purpose.PROBE, 0, client), size)
    return torch.from_numpy(drawn < 0.5).double() * 2 - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exactly", action="store_true")
    parser.add_argument("--clients", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | client | eigenvalues | above 0 | within 0.01 of 0 | answer | step |")
    for data in DATA:
        run = Run("fedpeptao", "stories260k", data, ALPHAS[0], 0)
        assembly = assemble(fullfed.load_recipe(run.recipe()))
        prefixes = list(assembly.method.scope.trained(assembly.model).values())
        with training_only(assembly.model, prefixes):
            for client in range(options.clients):
                product, size = hessian(assembly, first_batch(assembly, client))
                found = lanczos(product, signs(size, client), STEPS)
                print(line(data, f"{client}", *found), flush=True)
                if options.exactly:
                    print(line(data, f"{client}, exactly", *exact(product, size)), flush=True)


def line(data: str, name: str, values: Tensor, weights: Tensor) -> str:
    share, step = answer(values, weights)
    near = float(weights[values.abs() < 0.01].sum())
    return (
        f"| {data} | {name} | {values.min():.3f} to {values.max():.3f} "
        f"| {share_above(0.0, values, weights):.2f} | {near:.2f} | {share:.2f} | {step:.1e} |"
    )


if __name__ == "__main__":
    main()
