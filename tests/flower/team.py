"""What torchrun runs in each of a team's processes: sketches of shards, then a node's orders.

The results of the first part, and the answers of the process that leads, are files in the folder
that the command line names; the test that starts this compares them with one process's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from flower.real import LOOSE
from fullfed.deployment.node_task import TaskLoader
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_limits import Limits
from fullfed.engines.node_team import Team, follow
from fullfed.errors import UserError
from fullfed.sketch import Purpose, Scales, SignBasis, Stream, dither_, perturb_, round_
from fullfed.sketch.shards import whole

SHAPES = [(7, 30), (1, 5), (301,), (4, 3, 9), (100, 64)]  # uneven, less than a row each, long
BASIS = SignBasis(seed=5, round=2, coordinates=97)
# A run may have a sample a step, so that one of two processes has none.
LIMITS = Limits(**{**LOOSE, "fewest_samples_a_step": 1, "most_runs": 9})
PROBE = Stream(5, Purpose.PROBE, 2, 1)


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made).to(dtype) for shape in SHAPES]


def scales() -> Scales:
    made = torch.Generator().manual_seed(3)
    rows = [torch.randint(-20, 20, (s[0],), generator=made).to(torch.int8) for s in SHAPES]
    sizes = [torch.Size(s[1:]).numel() for s in SHAPES]
    columns = [torch.randint(-20, 20, (n,), generator=made).to(torch.int8) for n in sizes]
    columns[2].zero_()
    return Scales(tuple(rows), tuple(columns))


def sketched(after: list[Tensor], before: list[Tensor], short: list[Tensor]) -> dict[str, Tensor]:
    """What everything makes of tensors, whole or sharded; they are changed."""
    made = {"y": BASIS.project(after, before=before)}
    made["scaled"] = BASIS.project(after, before=before, scales=scales())
    made["reference"] = BASIS.project(after, backend="reference")
    y = torch.randn(97, generator=torch.Generator().manual_seed(9))
    BASIS.reconstruct_(before, y, scale=0.3)
    BASIS.reconstruct_(before, y, scale=0.3, scales=scales())
    BASIS.reconstruct_(before, y, scale=0.3, backend="reference")
    perturb_(after, PROBE, 0.1)
    perturb_(after, PROBE, 0.1, "gaussian")
    perturb_(after, PROBE, 0.1, scales=scales())
    wide = [tensor.float() for tensor in short]
    dither_(wide, torch.bfloat16, PROBE)
    round_(short, [tensor + 0.01 for tensor in wide], PROBE)
    changed = {"before": before, "after": after, "wide": wide, "short": short}
    named = {f"{name}/{n}": t for name, held in changed.items() for n, t in enumerate(held)}
    return made | {name: whole(tensor).clone() for name, tensor in named.items()}


def refusal(placements: list[Placement] | None, team: Team) -> str:
    """What is said of tensors that are sharded in another way, or only some of them."""
    first, second = tensors(1)[:2]
    held = [distribute_tensor(first, team.mesh, placements or [Shard(0)]), second]
    if placements:
        held[1] = distribute_tensor(second, team.mesh, placements)
    with pytest.raises(UserError) as refused:
        BASIS.project(held)
    return str(refused.value)


def part(rank: int, processes: int, held: list[Tensor]) -> list[Tensor]:
    """Whole tensors with zeros for the rows that other processes have, by torch.chunk."""
    made = []
    for tensor in held:
        rows = list(torch.arange(len(tensor)).chunk(processes))
        mine = torch.zeros_like(tensor)
        if rank < len(rows):
            mine[rows[rank]] = tensor[rows[rank]]
        made.append(mine)
    return made


def main(folder: Path, data: str, model: str) -> None:
    team = Team("cpu")
    sharded = [
        [distribute_tensor(t, team.mesh, [Shard(0)], src_data_rank=None) for t in held]
        for held in (tensors(1), tensors(2), tensors(3, torch.bfloat16))
    ]
    rank = team.mesh.get_local_rank()
    save_file(sketched(*sharded), folder / f"sketch-{rank}.safetensors")
    refused = [refusal(held, team) for held in ([Replicate()], [Shard(1)], None)]
    (folder / "refused").write_text("\n".join(refused))
    load = TaskLoader(data, model, "cpu", LIMITS, team=team)
    if team.leads:
        answer_orders(folder, load)
    else:
        follow(team, load.follow)


def answer_orders(folder: Path, load: TaskLoader) -> None:
    """Answer the orders in the folder by a node that is started anew before some of them."""
    node: NodeWorker | None = None
    for file in sorted(folder.glob("order-*")):
        if node is None or file.name.endswith("anew"):
            node and node.leave()
            node = NodeWorker(folder / "state", load, LIMITS)
        frames = {f.name: f.read_bytes() for f in sorted(file.iterdir())}
        answer = dict(node.handle(frames))
        if node._joined is not None:
            replica = node._joined.client._worker.replica  # type: ignore[union-attr]
            answer["hash"] = replica.content_hash().encode()
        write(folder / file.name.replace("order", "answer"), answer)


def write(folder: Path, frames: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, frame in frames.items():
        (folder / name).write_bytes(frame)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
