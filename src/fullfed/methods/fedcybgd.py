"""FedCyBGD: Wang et al., "Save It All: Enabling full parameter tuning for federated large
language models via cycle block gradient descent" (arXiv 2406.11187).

    for cycle e, visit v:  block b = order(e, v)
        client:    w_b' = w_b after Adam on block b alone, everything else frozen
        everyone:  w_b <- w_b'

Clients are visited one after another, each sees the blocks of all before it, and nothing is
averaged. ``federation.clients_per_round`` clients are visited at once, on different blocks or,
with ``clients_per_block``, in groups on the same one. The second method here sends K coordinates
of the block's change instead (ferret.py): the memory of one block and kilobytes of traffic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fullfed.errors import UserError
from fullfed.methods.bases import Signs
from fullfed.methods.block_dense import BlockDense, Precision
from fullfed.methods.block_sketch import BlockSketch
from fullfed.methods.blocks import Shapes, divide
from fullfed.methods.coding import coding
from fullfed.methods.composition import Composition
from fullfed.methods.curvature import CurvatureStep
from fullfed.methods.local import ByGradients
from fullfed.methods.schedules import Cycle, Order
from fullfed.methods.scopes import Everything
from fullfed.methods.setting import Setting
from fullfed.methods.sketched import Sketched
from fullfed.methods.steps import ConstantStep
from fullfed.methods.surrogate import Surrogate
from fullfed.sketch import BITS


@dataclass(frozen=True)
class CycleOptions:
    """
    Attributes:
        order: which block a visit trains (schedules.Cycle).
        blocks: runs of layers that the model is divided into; None for every layer alone.
        outer: whether embeddings, final norm and head are one more block; the paper never
            trains them.
        clients_per_block: clients who train the same block at once, and are averaged.
        adam_state: whether the optimizer begins anew at every visit, or goes on from where the
            client's last visit to the block ended.
    """

    order: Order = "ascending"
    blocks: int | None = None
    outer: bool = False
    clients_per_block: int = 1
    adam_state: Literal["reset", "kept"] = "reset"

    def __post_init__(self) -> None:
        if self.blocks is not None and self.blocks < 1:
            raise ValueError("blocks is at least 1")
        if self.clients_per_block < 1:
            raise ValueError("clients_per_block is at least 1")


@dataclass(frozen=True)
class FedCyBGDOptions(CycleOptions):
    """
    Attributes:
        precision: of what is sent, both ways: the trained weights in "float32", else their change.
        error_feedback: whether clients keep what rounding took from their change and add it when
            they train the block again.
        surrogate: rho, the share of the other blocks that a client gets, in 8 bits; 1 for the
            whole model, which clients keep up to date by the log (surrogate.py).
    """

    precision: Precision = "bfloat16"
    error_feedback: bool = True
    surrogate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.surrogate <= 1:
            raise ValueError("surrogate is a share, above 0 and at most 1")


@dataclass(frozen=True)
class CyclicFerretOptions(CycleOptions):
    """
    Attributes:
        coordinates: K, the numbers a client sends of its block's change.
        bits: of each, 1 to 4 or 32, which is float32.
        server_step: how much of the reconstruction is applied, or "auto".
    """

    coordinates: int = 1024
    bits: int = 32
    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coordinates < 1:
            raise ValueError("coordinates is at least 1")
        if self.bits not in (*BITS, 32):
            raise ValueError(f"bits is 1 to {BITS[-1]}, or 32")
        if self.server_step != "auto" and not 0 < self.server_step < math.inf:
            raise ValueError("server_step is a positive number or 'auto'")


def build(setting: Setting, options: FedCyBGDOptions) -> Composition:
    """FedCyBGD for a federation.

    Raises:
        UserError: the model has no layers to be found, or fewer than there shall be blocks; or
            several blocks at once would each hold the head.
    """
    blocks = divide(setting, options.blocks, options.outer)
    if setting.head and setting.cohort_size > options.clients_per_block:
        raise UserError(
            f"federation.clients_per_round: {setting.cohort_size} clients a round would train "
            "several blocks, and the model's head in each of them; set it to "
            f"{options.clients_per_block}, which is method.clients_per_block."
        )
    layers = len(blocks) - options.outer
    surrogate = (
        Surrogate(setting.seed, layers, options.surrogate) if options.surrogate < 1 else None
    )
    feedback = options.error_feedback and options.precision != "float32"
    return Composition(
        setting=setting,
        scope=Everything(),
        local=_local(setting, options),
        codec=BlockDense(blocks, options.precision, feedback),
        step=ConstantStep(1.0),
        schedule=replace(_cycle(setting, options, blocks), surrogate=surrogate),
        parts=blocks,
        remembers=feedback or options.adam_state == "kept",
    )


def build_cyclic_ferret(setting: Setting, options: CyclicFerretOptions) -> Composition:
    """One block x sketch for a federation.

    Raises:
        UserError: as ``build``; or there are more coordinates than parameters in a block, or
            several blocks at once.
    """
    blocks = divide(setting, options.blocks, options.outer)
    together, count = options.clients_per_block, options.coordinates
    least = min(sum(shape.numel() for shape in block.values()) for block in blocks)
    if count > least:
        raise UserError(
            f"method.coordinates: {count} coordinates for a block of {least} parameters; ask for "
            "at most one per parameter."
        )
    if setting.cohort_size > together:
        raise UserError(
            f"federation.clients_per_round: {setting.cohort_size} clients a round would train "
            f"several blocks, and coordinates are of one; set it to {together}, which is "
            "method.clients_per_block."
        )
    # A single client's directions are shared by all there are; and nothing else is to be measured.
    shared, code = together == 1, coding(setting.seed, options.bits)
    sketch = Sketched(Signs(setting.seed, count), "shared" if shared else "client", code)
    return Composition(
        setting=setting,
        scope=Everything(),
        local=_local(setting, options),
        codec=BlockSketch(blocks, sketch),
        step=CurvatureStep(setting.seed, sketch.worth, together, shared)
        if options.server_step == "auto"
        else ConstantStep(float(options.server_step)),
        schedule=_cycle(setting, options, blocks),
        parts=blocks,
        remembers=options.adam_state == "kept",
    )


def _local(setting: Setting, options: CycleOptions) -> ByGradients:
    return ByGradients(setting.optimizer, keep=options.adam_state == "kept")


def _cycle(setting: Setting, options: CycleOptions, blocks: tuple[Shapes, ...]) -> Cycle:
    return Cycle(
        setting.seed,
        setting.clients,
        len(blocks),
        options.order,
        setting.cohort_size,
        options.clients_per_block,
    )
