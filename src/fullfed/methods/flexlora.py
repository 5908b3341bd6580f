"""FlexLoRA: clients train LoRA adapters of different ranks (Bai et al., "Federated fine-tuning of
large language models under heterogeneous tasks and client resources", arXiv 2402.11505).

    sum_i p_i B_i A_i = U S V',    B_{r+1} = first R columns of U S,    A_{r+1} = first R rows of V'

The server averages the products of the clients' factors, and keeps of them the best approximation
that has the largest client's rank R. Its leading r columns and rows are the best approximation of
rank r, so one update is everybody's: a client of rank r_i trains the first r_i of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from pydantic import StrictInt
from torch import Tensor, nn
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.federation.method import NOTHING
from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.codec import Change, Codec, Encoded, Shapes, Weighted, check_tensors
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.scopes import A, Adapters, B, LoraOptions, adapted, initial_a
from fullfed.methods.setting import Setting
from fullfed.randomness import Purpose, Stream, permutation
from fullfed.training.first_order import Improvement
from fullfed.training.watch import OnStep, unwatched

Factors = tuple[Tensor, Tensor]  # B, of the shape (out, r), and A, (r, in)


@dataclass(frozen=True)
class FlexLoRAOptions:
    """
    Attributes:
        ranks: the clients' ranks, dealt to them in an order of the seed, again from the first when
            all are dealt: each counts for as many clients as every other.
        alpha: the product of the factors is scaled by alpha / the largest rank.
        targets: the linear layers that get an adapter, by the last parts of their names.
    """

    ranks: tuple[StrictInt, ...] = (4, 8, 16, 32)
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError("ranks is a list of ranks, each at least 1")
        LoraOptions(max(self.ranks), self.alpha, self.targets)  # complains of the others

    @property
    def lora(self) -> LoraOptions:
        """The adapter that replicas hold."""
        return LoraOptions(max(self.ranks), self.alpha, self.targets)


def dealt(seed: int, clients: int, ranks: Sequence[int]) -> tuple[int, ...]:
    """Each client's rank."""
    own = [0] * clients
    for place, client in enumerate(permutation(Stream(seed, Purpose.RANKS), clients).tolist()):
        own[client] = ranks[place % len(ranks)]
    return tuple(own)


def leading(name: str, factor: Tensor, rank: int) -> Tensor:
    """The first rows of an A or columns of a B; a view."""
    return factor[:rank] if name.endswith(A) else factor[:, :rank]


def best_factors(parts: Iterable[tuple[float, Factors]], drawn: Tensor) -> Factors:
    """Of a sum of products w B A the best approximation of a rank (Eckart and Young 1936).

    The sum itself is never made: it is [B_1 .. B_n] times [w_1 A_1; ..; w_n A_n], and of both, by
    QR decompositions, only the small triangles are multiplied and decomposed.

    Args:
        drawn: (rank, in); its last rows take the places of A's that the sum has not. B is 0 there.

    Returns:
        B = U S and A = V', float32.
    """
    weighted = list(parts)
    b = torch.cat([own.double() for _, (own, _) in weighted], dim=1)
    a = torch.cat([weight * own.double() for weight, (_, own) in weighted])
    left, left_triangle = torch.linalg.qr(b)
    right, right_triangle = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
    rank, found = len(drawn), min(len(drawn), len(s))
    best_b = torch.zeros(len(b), rank, dtype=torch.float32, device=b.device)
    best_b[:, :found] = ((left @ u) * s)[:, :found]
    best_a = drawn.to(b.device).clone()
    best_a[:found] = (v @ right.T)[:found]
    return best_b, best_a


@dataclass(frozen=True)
class OwnRank(FirstOrder):
    """First-order optimisation of the leading part of both factors; the rest is zero meanwhile.

    Attributes:
        ranks: of each client.
    """

    ranks: tuple[int, ...]

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
        rank = rank_of(self.ranks, plan)
        own = {
            name: nn.Parameter(leading(name, p.detach(), rank).clone())
            for name, p in parameters.items()
        }
        with in_place(model, own):
            done = super().improve(model, own, batches, plan, state, exact, on_step)
        with torch.no_grad():
            for name, p in parameters.items():
                p.zero_()
                leading(name, p, rank).copy_(own[name])
        return replace(done, exact={})  # float32 as they are


@contextmanager
def in_place(model: PreTrainedModel, own: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, the model has these parameters instead of its own of the same names."""
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in own}
    whole = {name: module.weight for name, module in modules.items()}
    for name, module in modules.items():
        module.weight = own[name]
    try:
        yield
    finally:
        for name, module in modules.items():
            module.weight = whole[name]


def rank_of(ranks: Sequence[int], plan: Plan) -> int:
    """
    Raises:
        MessageError: there is no such client.
    """
    if plan.client >= len(ranks):
        raise MessageError(f"the plan is for client {plan.client} of {len(ranks)}")
    return ranks[plan.client]


@dataclass(frozen=True)
class Redistributed(Codec):
    """A report holds a client's factors, of its own rank; the update the best approximation of
    the mean of their products, of the largest.

    Attributes:
        seed: the recipe's.
        ranks: of each client.
        scaling: alpha / the largest rank.
    """

    seed: int
    ranks: tuple[int, ...]
    scaling: float

    @property
    def comparable(self) -> bool:
        return False

    @property
    def sends_weights(self) -> bool:
        return True

    @property
    def stacks(self) -> bool:
        return True

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        rank = rank_of(self.ranks, plan)
        after = {name: leading(name, p.detach(), rank) for name, p in change.after.items()}
        return Encoded(tensors={name: p.to(torch.float32, copy=True) for name, p in after.items()})

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return sum(4 * shape.numel() for shape in self._sent(plan, shapes).values())

    def update_bytes(self, plan: Plan, shapes: Shapes, reports: int) -> int:
        return sum(4 * shape.numel() for shape in shapes.values())

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        sent = self._sent(plan, shapes)
        check_tensors(report, {name: (shape, torch.float32) for name, shape in sent.items()})

    def check_update(self, update: Update, shapes: Shapes) -> None:
        check_tensors(update, {name: (shape, torch.float32) for name, shape in shapes.items()})

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        """Of alpha / R * (B A - B_0 A_0), with the factors that the client began with."""
        rank, squares = rank_of(self.ranks, plan), []
        for target in adapted(shapes):
            start = {name: parameters[target + name].detach() for name in (A, B)}
            old_a, old_b = (leading(name, start[name], rank).double() for name in (A, B))
            new_a, new_b = (report.tensors[target + name].to(old_a) for name in (A, B))
            b, a = torch.cat([new_b, -old_b], dim=1), torch.cat([new_a, old_a])
            squares.append(float(((b.T @ b) * (a @ a.T)).sum()))
        return self.scaling * math.sqrt(max(math.fsum(squares), 0.0))

    def stack(self, reports: Weighted, plan: Plan, shapes: Shapes, last: Update | None) -> Encoded:
        """The server alone does this, so its bits are nobody else's to reproduce."""
        tensors: dict[str, Tensor] = {}
        for order, target in enumerate(adapted(shapes)):
            parts = [(w, (r.tensors[target + B], r.tensors[target + A])) for w, r in reports]
            drawn = initial_a(self.seed, plan.round + 1, order, shapes[target + A])
            tensors[target + B], tensors[target + A] = best_factors(parts, drawn)
        return Encoded(tensors=tensors)

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        """Put the update's factors in place. A share of the way to them, which no log has but the
        held-out check tries, is one of products too."""
        step = number(update, "server_step")
        for order, target in enumerate(adapted(shapes)):
            b, a = parameters[target + B], parameters[target + A]
            new = update.tensors[target + B].to(b.device), update.tensors[target + A].to(a.device)
            if step != 1.0:
                drawn = initial_a(self.seed, update.round + 1, order, a.shape)
                new = best_factors([(step, new), (1.0 - step, (b, a))], drawn)
            b.copy_(new[0])
            a.copy_(new[1])

    def _sent(self, plan: Plan, shapes: Shapes) -> dict[str, torch.Size]:
        """What a report holds."""
        rank = rank_of(self.ranks, plan)
        return {
            name: torch.Size((rank, shape[1]) if name.endswith(A) else (shape[0], rank))
            for name, shape in shapes.items()
        }


def scope(seed: int, options: FlexLoRAOptions) -> Adapters:
    return Adapters(seed, options.lora)


def build(setting: Setting, options: FlexLoRAOptions) -> Composition:
    """FlexLoRA for a federation.

    Raises:
        UserError: the aggregation rule is no plain weighted mean.
    """
    rule = setting.aggregation
    if not rule.weights_only or rule.needs_changes:
        raise UserError(
            "aggregation.name: FlexLoRA's reports are factors of different ranks, whose products "
            "have a weighted mean only; take aggregation.name = 'mean'."
        )
    ranks = dealt(setting.seed, setting.clients, options.ranks)
    codec = Redistributed(setting.seed, ranks, options.lora.scaling)
    own = scope(setting.seed, options)
    return averaging(setting, scope=own, local=OwnRank(setting, ranks), codec=codec)
