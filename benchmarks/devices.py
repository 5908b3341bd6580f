"""What a visit needs of memory and time in each of several processes that hold a model together.

    python benchmarks/devices.py          SmolLM2-135M by 1, 2 and 4 processes on a CPU: minutes
    python benchmarks/devices.py --shape llama-7b --device cuda --processes 8

Random weights and tokens; a visit of Ferret with AdamW, float32, activations computed twice. One
line for each number of processes, of the process that needs most:

- peak: what the visit needed at most, without what the process had before the model was loaded. On
  a GPU what torch had allocated; else the resident set.
- formula: of docs/several-devices.md, without activations.
- seconds: of training and of encoding.

Processes on a CPU share its cores, so more of them are no faster here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fullfed.config import FederationTable, LocalTable, MemoryTable
from fullfed.engines.node_team import Team
from fullfed.methods import ferret
from fullfed.methods.setting import Setting
from fullfed.runs.environment import PeakMemory, peak_memory_bytes
from fullfed.training.devices import shard
from fullfed.training.layers import layer_names
from fullfed.units import bytes_text
from machine import machine
from shapes import SHAPES, random_clients

# Otherwise the C library keeps most of a layer that was whole for a while, in pieces.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def visit(shape_name: str, device: str, steps: int, length: int) -> dict[str, float]:
    """This process's figures of one visit."""
    team, shape, peaks = Team(device), SHAPES[shape_name], PeakMemory()
    peaks.begin("imports")
    before = peak_memory_bytes() if team.device == "cpu" else 0
    with team.in_turn():
        model = shape.model("cpu")
        shapes, layers = {n: p.shape for n, p in model.named_parameters()}, layer_names(model)
        shard(model, team.mesh)
    setting = Setting(
        federation=FederationTable(rounds=1, clients_per_round=1),
        local=LocalTable(optimizer="adamw", learning_rate=1e-4, batch_size=4, steps=steps),
        memory=MemoryTable(checkpoint_activations=True),
        clients=1,
        shapes=shapes,
        layers=layers,
    )
    method = ferret.build(setting, ferret.FerretOptions(coordinates=2**16))
    inside = sum(shapes[name].numel() for layer in layers for name in layer)
    (plan,) = method.plans(0, None)
    (examples,) = random_clients(1, 4 * steps, length, shape.vocabulary)
    peaks.begin("visit")
    done = method.train(model, plan, examples, None)
    peak = peaks.end()["visit"]
    assert peak is not None
    return {
        "parameters": setting.elements,
        "outside": setting.elements - inside,
        "peak": peak - before,
        "train": done.train_seconds,
        "encode": done.encode_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--into", type=Path, help="for the processes that this starts: a folder")
    options = parser.parse_args()
    if options.into is not None:
        torch.set_num_threads(1)
        figures = visit(options.shape, options.device, options.steps, options.length)
        rank = torch.distributed.get_rank()
        (options.into / f"{time.time_ns()}-{rank}.json").write_text(json.dumps(figures))
        torch.distributed.barrier()
        return
    print(f"{json.dumps(machine(options.device))}\n")
    print("| processes | peak | formula | train | encode |\n|---|---|---|---|---|")
    for count in options.processes:
        print(f"| {count} | {row(count, options)} |", flush=True)


def row(count: int, options: argparse.Namespace) -> str:
    """A line's other cells."""
    with TemporaryDirectory() as folder:
        started = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        own = ["--shape", options.shape, "--device", options.device, "--into", folder]
        own += ["--steps", str(options.steps), "--length", str(options.length)]
        command = [*started, f"--nproc-per-node={count}", __file__, *own]
        subprocess.run(command, check=True, env={**os.environ, **RETURNING})
        each = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
    most = {name: max(figures[name] for figures in each) for name in each[0]}
    whole = 16 * most["outside"] if count > 1 else 0
    formula = 20 * most["parameters"] // count + whole
    seconds = f"{most['train']:.1f} s | {most['encode']:.2f} s"
    return f"{bytes_text(int(most['peak']))} | {bytes_text(int(formula))} | {seconds}"


if __name__ == "__main__":
    main()
