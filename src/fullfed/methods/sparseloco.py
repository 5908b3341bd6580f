"""SparseLoCo: DiLoCo whose clients send the largest numbers of their change, in two bits, and keep
the rest (Sarfi et al. 2025, "Communication efficient LLM pre-training with SparseLoCo", arXiv
2508.15706, Algorithm 1).

    clients:   e_i <- decay * e_i + (w_r^(i) - w_r);  send q_i = Q(top-k of e_i);  e_i <- e_i - q_i
    everyone:  w_{r+1} = w_r + server_step * mean_i q_i

Of every 4,096 numbers the 64 largest are sent. What is kept (error feedback) takes the place of
DiLoCo's outer momentum. Clients keep their AdamW as DiLoCo's do (``local.optimizer_state``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fullfed.methods.averaging import averaging
from fullfed.methods.composition import Composition
from fullfed.methods.server_step import check_server_step
from fullfed.methods.setting import Setting

CODEC: dict[str, Any] = {
    "name": "topk",
    "count": 64,
    "chunk": 4096,
    "bits": 2,
    "error_feedback": True,
    "decay": 0.95,
}


@dataclass(frozen=True)
class SparseLoCoOptions:
    """
    Attributes:
        server_step: how much of the mean is applied.
    """

    server_step: float = 1.0

    def __post_init__(self) -> None:
        check_server_step(self.server_step)


def build(setting: Setting, options: SparseLoCoOptions) -> Composition:
    return averaging(setting, step=options.server_step)
