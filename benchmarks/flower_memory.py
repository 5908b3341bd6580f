"""The memory of each process of a real federation, in copies of the model.

    python benchmarks/flower_memory.py [--shapes smollm2] [--nodes 2] [--json]

A server and its nodes on this machine (processes, TLS, keys), two rounds of FedAvg and of Ferret
with random weights and random letters, one step of one sample a visit, the optimizer in the
backward pass, nothing to evaluate. Prints each kind of process's peak of memory, less what the
same kind of process needs for a model of no size to speak of, over the bytes of the model in
float32. Pages of files do not count, but of those in memory (tmpfs): the system drops them when it
needs room.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
from transformers import AutoTokenizer

from flower import processes, wait_for
from fullfed.deployment.flower_runs import start
from fullfed.deployment.folders import ServerFolder
from fullfed.deployment.processes import free_port, running
from fullfed.engines.node_limits import Limits
from fullfed.quickstart import MODEL_PATH
from fullfed.recipe_file import load_recipe
from fullfed.runs.folder import RunFolder
from shapes import SHAPES

ROUNDS = 2
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"method": {"name": "fedavg"}},
    "ferret": {"method": {"name": "ferret", "coordinates": 40_000}},
}
SMALL = "tiny"  # whose own bytes do not count
# By a part of their command line; the first that fits.
KINDS = {
    "the run": "flwr-serverapp",
    "the server's SuperLink": "fullfed.deployment.superlink",
    "serve": "fullfed serve",
    "a node's relay": "fullfed.deployment.relay",
    "a node's worker": "fullfed worker",
    "join": "fullfed join",
}
_TAKEN = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)
_EVERY = 0.02  # seconds between two looks at the processes


def taken() -> Iterator[tuple[str, int]]:
    """(kind, bytes of memory) of each process of a federation that runs now."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found = _TAKEN.findall((process / "status").read_text())
        except OSError:
            continue  # it has ended meanwhile
        kind = next((kind for kind, part in KINDS.items() if part in command), None)
        if kind is not None:
            yield kind, sum(map(int, found)) << 10


@contextmanager
def watched(highest: dict[str, int]) -> Iterator[None]:
    """Inside, ``highest`` follows the peak of each kind of process."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY):
            for kind, now in taken():
                highest[kind] = max(highest.get(kind, 0), now)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def write_ingredients(folder: Path, shape: str, nodes: Sequence[str]) -> int:
    """A model and the nodes' data; return how many parameters it has."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    sized = SHAPES[shape]
    model = replace(sized, vocabulary=max(sized.vocabulary, len(tokenizer))).model("cpu")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name in nodes:
        records = [{"instruction": f"{name}{n}", "output": "yes"} for n in range(8)]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    return sum(p.numel() for p in model.parameters())


def write_recipe(folder: Path, method: str, nodes: Sequence[str]) -> Path:
    tables = {
        "model": {"path": str(folder / "model")},
        "data": {"train": "of each node", "template": "alpaca"},
        "federation": {
            "rounds": ROUNDS,
            "clients_per_round": len(nodes),
            "snapshot_every": 1,
            "keep_updates": "since-snapshot",
        },
        "local": {"learning_rate": 1e-3, "steps": 1, "batch_size": 1, "clip_by": "tensor"},
        "memory": {"optimizer_in_backward": True},
        "deployment": {"quorum": 1.0},
        **METHODS[method],
    }
    path = folder / f"{method}.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def measure(shape: str, method: str, count: int) -> dict[str, int]:
    """The peak of each kind of process, in bytes, and "parameters".

    Args:
        count: of nodes.
    """
    nodes = [f"node-{number}" for number in range(count)]
    highest: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters = write_ingredients(folder, shape, nodes)
        port, here, model = free_port(), "127.0.0.1", str(folder / "model")
        server = ServerFolder.create(folder / "fed", nodes, here, port, here, model)
        limits = Limits(most_message_bytes=64 << 30)
        _, serving, joins = processes(server, nodes, folder, limits)
        with watched(highest), running(serving, *joins):
            wait_for(lambda: all("connected to" in child.said() for child in joins))
            run = RunFolder(folder / "run")
            start(server, load_recipe(write_recipe(folder, method, nodes)), run.path, print)
            assert len(run.metrics()) == ROUNDS
    return {"parameters": parameters, **highest}


def copies(found: Mapping[str, int], small: Mapping[str, int]) -> dict[str, float]:
    """Each kind's peak in copies of the model in float32, less what a small model needs."""
    size = 4 * (found["parameters"] - small["parameters"])
    return {kind: (found[kind] - small[kind]) / size for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", action="store_true", help="the bytes themselves")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        shape, method = arguments.one
        print(json.dumps(measure(shape, method, arguments.nodes)))
        return
    print(f"| model | method | {' | '.join(KINDS)} |\n|---|---|{'---|' * len(KINDS)}")
    for method in arguments.methods:
        small = in_a_process(SMALL, method, arguments.nodes)
        for shape in arguments.shapes:
            found = in_a_process(shape, method, arguments.nodes)
            if arguments.json:
                print(json.dumps({"shape": shape, "method": method, **found}))
            row = " | ".join(f"{value:.2f}" for value in copies(found, small).values())
            print(f"| {shape} | {method} | {row} |", flush=True)


def in_a_process(shape: str, method: str, count: int) -> dict[str, int]:
    """``measure`` in a process of its own, since that holds the model once too."""
    command = [sys.executable, __file__, "--one", shape, method, "--nodes", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
