"""FedCyBGD: clients take turns, and each trains one block of layers (Wang et al., "Save It All:
Enabling full parameter tuning for federated large language models via cycle block gradient
descent", arXiv 2406.11187).

    for cycle e, visit v:  block b = order(e, v)
        client:    w_b' = w_b after Adam on block b alone, everything else frozen
        everyone:  w_b <- w_b'

Each client sees the blocks of all before it, and nothing is averaged. Clients can also be visited
``federation.clients_per_round`` at once, on different blocks or, with ``clients_per_block``, in
groups on the same one. With the sketch for a codec it is Cyclic Ferret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fullfed.errors import UserError
from fullfed.methods.composition import Composition
from fullfed.methods.own_training import gradient_work
from fullfed.methods.schedules import Cycle, Order, Surrogate, divide
from fullfed.methods.scopes import Everything
from fullfed.methods.server_step import CurvatureStep, check_server_step, server_step
from fullfed.methods.setting import Setting
from fullfed.methods.submodel import BlockSubmodels


@dataclass(frozen=True)
class FedCyBGDOptions:
    """
    Attributes:
        order: which block a visit trains (schedules.Cycle).
        blocks: runs of layers that the model is divided into; None for every layer alone.
        outer: whether embeddings, final norm and head are one more block; the paper never
            trains them.
        clients_per_block (clients): who train the same block at once, and are averaged.
        surrogate (share): rho, of the other blocks, that a client gets, in 8 or 4 bits; 1 for the
            whole model, which clients keep up to date by the log (submodel.py).
        server_step: how much of a block's change is applied; "auto" is all of it, or with a
            sketch what the measured curvature allows.
    """

    order: Order = "ascending"
    blocks: int | None = None
    outer: bool = False
    clients_per_block: int = 1
    surrogate: float = 1.0
    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.blocks is not None and self.blocks < 1:
            raise ValueError("blocks is at least 1")
        if self.clients_per_block < 1:
            raise ValueError("clients_per_block is at least 1")
        if not 0 < self.surrogate <= 1:
            raise ValueError("surrogate is a share, above 0 and at most 1")
        check_server_step(self.server_step)


def build(setting: Setting, options: FedCyBGDOptions) -> Composition:
    """FedCyBGD for a federation.

    Raises:
        UserError: the model has no layers to be found, or fewer than there shall be blocks; or
            what several blocks at once do not allow.
    """
    blocks, together = divide(setting, options.blocks, options.outer), options.clients_per_block
    step = server_step(options.server_step, setting.seed, setting.codec, together)
    if setting.cohort_size > together:
        _check_several(setting, together, isinstance(step, CurvatureStep))
    layers = len(blocks) - options.outer
    weak = options.surrogate < 1
    surrogate = Surrogate(setting.seed, layers, options.surrogate) if weak else None
    submodels = BlockSubmodels(blocks, 4 if setting.memory.frozen == "int4" else 8)
    return Composition(
        setting=setting,
        scope=Everything(),
        local=gradient_work(setting),
        codec=setting.codec,
        step=step,
        schedule=Cycle(
            setting.seed,
            setting.clients,
            len(blocks),
            options.order,
            setting.cohort_size,
            together,
            surrogate,
        ),
        blocks=blocks,
        submodels=submodels if weak else None,
    )


def _check_several(setting: Setting, together: int, measures: bool) -> None:
    """Several blocks a round must not share the head, and have no common server step."""
    faults = {
        "would train several blocks, and the model's head in each of them": bool(setting.head),
        "would train several blocks, and the automatic server step is measured on one; set "
        "method.server_step to a number, or": measures,
    }
    for fault, found in faults.items():
        if found:
            joint = "" if fault.endswith("or") else ";"
            raise UserError(
                f"federation.clients_per_round: {setting.cohort_size} clients a round {fault}"
                f"{joint} set it to {together}, which is method.clients_per_block."
            )
