"""Peak memory of one client's visit, beside what the formulas of docs/memory.md say.

    python benchmarks/memory.py                          15m to 270m in bfloat16, on a CPU
    python benchmarks/memory.py --shapes 1b --length 16  what FedAvg needs 20 GB for
    python benchmarks/memory.py --shapes llama-7b        on a GPU

Each row is a process of its own: random weights in bfloat16, one visit of a few steps of AdamW
(SGD for Ferret) on random tokens; of a cyclic method the visit to the middle block. A client
without a replica reads its messages, which another process wrote, from files.

- peak: on a GPU what torch had allocated at most; on a CPU the largest resident set during the
  visit, less that of the process before it had a model. (glibc is told to return whatever is
  freed, so that the resident set is what is allocated.)
- activations: bytes that the graph of one batch holds, weights apart.
- formula: what the weights, gradients and states should take, in bytes; activations added.
- time: seconds a token, training alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import FederationTable, LocalTable, MemoryTable
from fullfed.data.batches import collate
from fullfed.federation.client import SubmodelWorker
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from fullfed.training.layers import layer_names, training_only
from fullfed.training.loss import answer_loss
from fullfed.training.memory import checkpointed
from memory_rows import ROWS, Row, Sizes
from shapes import SHAPES as KNOWN
from shapes import Shape, random_clients

SHAPES = {
    **KNOWN,
    "110m": Shape(768, 2048, 12, 12),
    "270m": Shape(1024, 2816, 16, 16),
    "1b": Shape(2048, 5504, 16, 16),
}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Large pieces come from the system one by one, and go back to it when they are freed.
_GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}
_HEAD = (
    "| method | peak | activations | formula | peak / formula | FedAvg's / peak | a token |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["15m", "110m", "270m"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        shape, row, folder = arguments.send
        send(shape, row, arguments, Path(folder))
        return
    if arguments.one:
        shape, row = arguments.one
        print(json.dumps(measure(shape, row, arguments)))
        return
    for shape in arguments.shapes:
        print(f"\n### {shape}\n\n{_HEAD}", flush=True)
        whole = None
        for row in arguments.rows:
            found = in_own_process(shape, row, arguments)
            whole = found.get("peak") if row == "fedavg" else whole
            print(line(row, found, whole), flush=True)


def in_own_process(shape: str, row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    done = _run(["--one", shape, row], arguments)
    if done.returncode:
        return {
            "failure": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "killed"
        }
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(task: list[str], arguments: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    options = ["--length", "--batch", "--steps"]
    values = [arguments.length, arguments.batch, arguments.steps]
    extra = [str(item) for pair in zip(options, values, strict=True) for item in pair]
    command = [sys.executable, __file__, *task, *extra]
    return subprocess.run(
        command, env={**os.environ, **_GLIBC}, capture_output=True, text=True, check=False
    )


def measure(shape_name: str, row_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One visit in this process."""
    _visit("tiny", row_name, replace_steps(arguments, 1))  # code and threads are there now
    return _visit(shape_name, row_name, arguments, _now(_device()))


def replace_steps(arguments: argparse.Namespace, steps: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(arguments), "steps": steps})


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Task:
    """The visit to the middle block; the first there is where the method has no blocks or one.

    Attributes:
        model: has no weights where its client has no replica.
    """

    row: Row
    model: PreTrainedModel
    setting: Setting
    method: Composition
    plan: Plan
    names: tuple[str, ...]


def _task(shape_name: str, row_name: str, arguments: argparse.Namespace, device: str) -> Task:
    shape, row = SHAPES[shape_name], ROWS[row_name]
    model = shape.model(device).bfloat16().eval()
    row.scope.attach(model)
    shapes = {name: p.shape for name, p in row.scope.trained(model).items()}
    setting = Setting(
        federation=FederationTable(rounds=1, clients_per_round=1),
        local=LocalTable(
            optimizer=row.optimizer, learning_rate=1e-4, clip=None,
            batch_size=arguments.batch, steps=arguments.steps,
        ),
        memory=row.memory,
        clients=10**6,
        shapes=shapes,
        layers=tuple(tuple(n for n in layer if n in shapes) for layer in layer_names(model)),
    )  # fmt: skip
    method = row.build(setting)
    middle = shape.layers // 2
    plan = Plan(row.round, 0, {**method.plans(row.round, None)[0].values})
    if len(method.blocks) == shape.layers:
        plan = Plan(0, 0, {"block": middle})
    if row.dropped:
        plan = Plan(0, 0, {"block": middle, "dropped": [*row.dropped(shape.layers)]})
    return Task(row, model, setting, method, plan, tuple(method.shapes_of(plan)))


def _visit(
    shape_name: str, row_name: str, arguments: argparse.Namespace, empty: int = 0
) -> dict[str, Any]:
    shape, device = SHAPES[shape_name], _device()
    alone = ROWS[row_name].dropped is not None
    task = _task(shape_name, row_name, arguments, "meta" if alone else device)
    examples = random_clients(
        1, arguments.batch * arguments.steps, arguments.length, shape.vocabulary
    )[0]
    with tempfile.TemporaryDirectory() as folder:
        if alone:
            _run(["--send", shape_name, row_name, folder], arguments).check_returncode()
        _forget_peak(device)
        if alone:
            seconds = _without_replica_visit(task, examples, Path(folder), device)
        else:
            seconds = task.method.train(task.model, task.plan, examples, None).train_seconds
        peak = _peak(device) - empty
        model = _assembled(task, Path(folder), device) if alone else task.model
    activations = 0
    if task.row.gradients:
        trained = {name: p for name, p in model.named_parameters() if name in task.names}
        with task.method._held(model, task.plan, trained):
            activations = _activations(
                model, list(trained.values()), task.setting.memory, examples[: arguments.batch]
            )
    return {
        "peak": peak,
        "activations": activations,
        "formula": task.row.formula(_sizes(task, shape.layers)) + activations,
        "seconds_a_token": seconds / (arguments.batch * arguments.steps * arguments.length),
    }


def _sizes(task: Task, layers: int) -> Sizes:
    parameters = dict(task.model.named_parameters())
    adapted = len(task.setting.shapes) < len(parameters)  # then what trains is not the model's
    own = parameters.keys() - (task.setting.shapes.keys() if adapted else set())
    every = {name: p.numel() for name, p in parameters.items() if name in own}
    block = [every[name] for name in layer_names(task.model)[layers // 2] if name in every]
    trained = sum(shape.numel() for shape in task.method.shapes_of(task.plan).values())
    sizes = sum(every.values()), sum(block), max(every.values()), max(block), layers
    return Sizes(*sizes, trained, task.model.config.hidden_size)


def send(shape: str, row: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Write what a client without a replica is sent."""
    task = _task(shape, row, arguments, _device())
    submodels = task.method.submodels
    assert submodels is not None
    (folder / "static").write_bytes(encode(submodels.static_weights(task.model)))
    (folder / "submodel").write_bytes(encode(submodels.submodel(task.model, task.plan)))


def _without_replica_visit(task: Task, examples: list[Any], folder: Path, device: str) -> float:
    static, data = (folder / "static").read_bytes(), {0: examples}
    client = SubmodelWorker(task.model, task.method, static, data, device=torch.device(device))
    del static
    arrival = client.visit(encode(task.plan), (folder / "submodel").read_bytes())
    assert arrival.payload is not None, arrival.failure
    return arrival.train_seconds


def _assembled(task: Task, folder: Path, device: str) -> PreTrainedModel:
    static, submodel = (
        decode((folder / name).read_bytes(), Update) for name in ("static", "submodel")
    )
    submodels = task.method.submodels
    assert submodels is not None
    return submodels.assemble(task.model, static, submodel, task.plan, torch.device(device))


def _activations(
    model: PreTrainedModel, trained: Sequence[Tensor], memory: MemoryTable, examples: list[Any]
) -> int:
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        training_only(model, trained),
        checkpointed(model) if memory.checkpoint_activations else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        answer_loss(model, collate(examples).to(model.device))
    return sum(held.values())


def _now(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _resident("VmRSS")


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        _CLEAR.write_text("5")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def line(name: str, found: dict[str, Any], whole: int | None) -> str:
    if "failure" in found:
        return f"| {name} | {found['failure']} | | | | | |"
    times = f"{whole / found['peak']:.2f}" if whole else ""
    return (
        f"| {name} | {_mb(found['peak'])} | {_mb(found['activations'])} "
        f"| {_mb(found['formula'])} | {found['peak'] / found['formula']:.2f} | {times} "
        f"| {1000 * found['seconds_a_token']:.1f} ms |"
    )


def _mb(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
