"""What benchmarks/memory.py measures, and the formulas of docs/memory.md for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fullfed.config import MemoryTable
from fullfed.methods import (
    blockllm,
    embracing_fl,
    fedavg,
    fedbpt,
    fedcybgd,
    fedkseed,
    fedpeptao,
    ferret,
    flasc,
    flexlora,
    slora,
)
from fullfed.methods.codecs.codec import Codec
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.sketch import Sketch
from fullfed.methods.codecs.sketch_options import SketchOptions
from fullfed.methods.composition import Composition
from fullfed.methods.lora import build_fedit
from fullfed.methods.scopes import Adapters, Everything, LoraOptions, Scope
from fullfed.methods.setting import Setting

_PLAIN, _ALL = MemoryTable(), Everything()


@dataclass(frozen=True)
class Sizes:
    """Elements: d of the model, d_b of the middle block, the largest tensor of each; layers B; and
    what a visit trains, d_t. And the width of the model."""

    d: int
    block: int
    widest: int
    largest: int
    layers: int
    trained: int
    width: int


@dataclass(frozen=True)
class Row:
    """A method with its memory options, and the bytes that its formula says, activations apart.

    ``dropped``: the layers that a client without a replica goes without, of how many there are;
    ``scope``: what is trained; ``round``: of the visit; ``gradients``: whether it has any.
    """

    build: Callable[[Setting], Composition]
    formula: Callable[[Sizes], float]
    memory: MemoryTable = _PLAIN
    optimizer: str = "adamw"
    dropped: Callable[[int], list[int]] | None = None
    scope: Scope = _ALL
    round: int = 0
    gradients: bool = True


def _cyclic(setting: Setting, codec: Codec | None = None, **options: Any) -> Composition:
    own = codec or Dense("bfloat16", error_feedback=True)
    return fedcybgd.build(replace(setting, codec=own), fedcybgd.FedCyBGDOptions(**options))


def _half(layers: int) -> list[int]:
    """Half of the other layers, neither the first nor the last."""
    free = [b for b in range(1, layers - 1) if b != layers // 2]
    return free[: (layers - 1) // 2]


def _of_class(share: float) -> Row:
    """EmbracingFL's client with a share of the memory."""
    options = embracing_fl.EmbracingFLOptions({"class": share}, {"class": 1.0})

    def formula(s: Sizes) -> float:
        """While a visit trains, or before and after, when the whole replica is there."""
        outer = (s.d - s.layers * s.block) / 2  # embeddings; final norm and head are as many
        fitting = [n for n in range(s.layers + 1) if n * s.block + outer <= share * s.d]
        layers = max(fitting, default=0)
        trained = s.d if share == 1 else layers * s.block + outer
        during = 2 * trained + (_LARGE + 4) * trained + 8 * s.widest  # the head is in each
        return max(during, 2 * s.d + 8 * trained)

    return Row(lambda setting: embracing_fl.build(setting, options), formula)


_TARGETS = slora.SLoRAOptions().targets
_LORA, _FLASC = LoraOptions(targets=_TARGETS), flasc.FlascOptions(targets=_TARGETS)
_FLEXLORA, _SLORA = flexlora.FlexLoRAOptions((32,), targets=_TARGETS), slora.SLoRAOptions()
_FEDPEPTAO, _FEDBPT = fedpeptao.FedPepTAOOptions(), fedbpt.FedBPTOptions()


def _beside(s: Sizes) -> float:
    """The frozen model, and what trains beside it: itself, values before, gradients, moments."""
    return 2 * s.d + (_LARGE + 4) * s.trained


_LEAN = MemoryTable(optimizer_in_backward=True)
_IN_INT8, _IN_INT4 = (_LEAN.model_copy(update={"frozen": kind}) for kind in ("int8", "int4"))
_LARGE = 16  # a block's bytes an element: exact values before, float32 copy, two moments


def _frozen(s: Sizes, bits: float) -> float:
    """What is packed and what trains; or afterwards the whole model again, with the trained part's
    copy, its float32 master, the report and the residual."""
    during = bits / 8 * (s.d - s.block) + (2 + _LARGE) * s.block + 6 * s.largest + 2 * s.widest
    return max(during, 2 * s.d + 14 * s.block)


def _without_replica(s: Sizes) -> float:
    """What is packed, of which one matrix is unpacked at a time, and what trains; or before that
    the submodel as it came beside its tensors."""
    kept = s.layers - 1 - len(_half(s.layers))
    packed = s.d - s.layers * s.block + kept * s.block
    during = packed + (2 + _LARGE) * s.block + max(6 * s.largest, 2 * s.widest)
    return max(during, packed + kept * s.block + 4 * s.block)


ROWS = {
    "fedavg": Row(
        lambda s: fedavg.build(replace(s, codec=Dense("bfloat16")), fedavg.FedAvgOptions()),
        lambda s: 22 * s.d + 8 * s.widest,
    ),
    "ferret (sgd)": Row(
        lambda s: ferret.build(s, ferret.FerretOptions(coordinates=4096, server_step=1.0)),
        lambda s: 14 * s.d,
        optimizer="sgd",
    ),
    "fedkseed": Row(
        lambda s: fedkseed.build(s, fedkseed.FedKSeedOptions()),
        lambda s: 2 * s.d + 2 * s.widest,
        gradients=False,
    ),
    "fedcybgd": Row(_cyclic, lambda s: 2 * s.d + (_LARGE + 4) * s.block),
    "+ optimizer in backward": Row(
        _cyclic, lambda s: 2 * s.d + _LARGE * s.block + 6 * s.largest, _LEAN
    ),
    "+ checkpointed layers": Row(
        _cyclic,
        lambda s: 2 * s.d + _LARGE * s.block + 6 * s.largest,
        _LEAN.model_copy(update={"checkpoint_activations": True}),
    ),
    "+ frozen in int8": Row(_cyclic, lambda s: _frozen(s, 8), _IN_INT8),
    "+ frozen in int4": Row(_cyclic, lambda s: _frozen(s, 4.25), _IN_INT4),
    "surrogate client, no replica": Row(
        lambda s: _cyclic(s, surrogate=0.5), _without_replica, _LEAN, dropped=_half
    ),
    "embracing-fl, strong": _of_class(1.0),
    "embracing-fl, moderate": _of_class(0.4),
    "embracing-fl, weak": _of_class(0.15),
    "blockllm": Row(
        lambda s: blockllm.build(s, blockllm.BlockLLMOptions()),
        lambda s: 2 * s.d + (_LARGE + 4) * s.d / 10 + 8 * s.largest,
    ),
    "fedit": Row(lambda s: build_fedit(s, _LORA), _beside, scope=Adapters(0, _LORA)),
    "flasc": Row(lambda s: flasc.build(s, _FLASC), _beside, scope=Adapters(0, _FLASC)),
    "flexlora, rank 32": Row(
        lambda s: flexlora.build(s, _FLEXLORA), _beside, scope=flexlora.scope(0, _FLEXLORA)
    ),
    "slora, sparse phase": Row(
        lambda s: slora.build(s, _SLORA),
        lambda s: _beside(s) + 6 * s.largest,
        scope=slora.scope(0, _SLORA),
    ),
    "fedpeptao": Row(
        lambda s: fedpeptao.build(s, _FEDPEPTAO),
        _beside,
        scope=fedpeptao.scope(0, _FEDPEPTAO),
        round=1,
    ),
    "fedbpt": Row(
        lambda s: fedbpt.build(s, _FEDBPT),
        lambda s: 2 * s.d + 4 * _FEDBPT.prompt_tokens * s.width * _FEDBPT.dimension,  # M
        scope=fedbpt.scope(0, _FEDBPT),
        gradients=False,
    ),
    "block x sketch": Row(
        lambda s: _cyclic(s, Sketch(0, SketchOptions(coordinates=4096)), server_step=1.0),
        lambda s: 2 * s.d + _LARGE * s.block + 6 * s.largest,
        _LEAN,
    ),
}  # fmt: skip
