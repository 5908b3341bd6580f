"""What a round costs on a real federation beyond local training.

    python benchmarks/flower.py [--rounds 6] [--json]

A federation of four nodes on this machine: processes, TLS, keys. On it, in turn: Ferret and FedAvg
with one step of one sample a visit, so that training counts for next to nothing, on the embedded
model; and an app of bare Flower whose messages are empty. Prints the median seconds from one round
to the next after the first; what is beyond the bare app's is fullfed's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

import tomli_w

from fullfed.deployment.flower import environment, submit
from fullfed.deployment.node_folder import NodeFolder
from fullfed.deployment.processes import Child, running
from fullfed.deployment.server_folder import ServerFolder
from fullfed.deployment.starting import start
from fullfed.federation.recipe import load_recipe
from fullfed.quickstart import tasks

NODES = ("a", "b", "c", "d")
METHODS = {"ferret": {"name": "ferret", "coordinates": 8192}, "fedavg": {"name": "fedavg"}}
_PATIENCE = 600.0

_BARE_SERVER = """\
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    file, ends = Path(context.run_config["run"]), []
    for _ in range(ROUNDS):
        content = RecordDict({"empty": ConfigRecord({"nothing": 0})})
        pending = set(grid.push_messages([
            Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()
        ]))
        while pending:
            for name in list(pending):
                for reply in grid.pull_messages([name]):
                    pending.discard(name)
            time.sleep(0.2)
        ends.append(time.time())
    file.write_text(json.dumps(ends))
"""
_BARE_CLIENT = """\
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    return Message(RecordDict(), reply_to=message)
"""


def write_data(folder: Path) -> None:
    """A generated task for each node."""
    for name, kind in zip(NODES, tasks.FEDERATED_KINDS, strict=False):
        examples = tasks.examples(kind, 48, 0, "train")
        records = [
            {"instruction": e.instruction, "input": e.input, "output": e.output} for e in examples
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)


def write_recipe(folder: Path, method: str, rounds: int) -> Path:
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "of each node", "template": "alpaca"},
        "federation": {"rounds": rounds, "clients_per_round": len(NODES)},
        "local": {"steps": 1, "batch_size": 1},
        "method": METHODS[method],
    }
    path = folder / f"{method}.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def gaps(ends: list[float]) -> float:
    """The median seconds between rounds' ends."""
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def measure_method(
    server: ServerFolder, folder: Path, method: str, rounds: int
) -> dict[str, float]:
    out, ends = folder / f"run-{method}", list[float]()
    recipe = load_recipe(write_recipe(folder, method, rounds))
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            lines = (out / "metrics.jsonl").read_text().count("\n") if _begun(out) else 0
            ends.extend([time.time()] * (lines - len(ends)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start(server, recipe, out, lambda text: None)
    over.set()
    watcher.join()
    records = [json.loads(line) for line in (out / "metrics.jsonl").open()][1:]
    slowest = statistics.median(r["seconds"]["train"] + r["seconds"]["encode"] for r in records)
    return {
        f"{method}_round_seconds": gaps(ends),
        f"{method}_work_seconds_of_four_nodes": slowest,
    }


def _begun(out: Path) -> bool:
    return (out / "metrics.jsonl").exists()


def measure_bare(server: ServerFolder, folder: Path, rounds: int) -> dict[str, float]:
    package = server.app / "fullfed_app"
    kept = {side: (package / f"{side}.py").read_text() for side in ("server", "client")}
    (package / "server.py").write_text(_BARE_SERVER.replace("ROUNDS", str(rounds)))
    (package / "client.py").write_text(_BARE_CLIENT)
    result = folder / "bare.json"
    submit(server, result, lambda text: None)
    wait_for(result.exists)
    time.sleep(1)
    for side, text in kept.items():
        (package / f"{side}.py").write_text(text)
    return {"bare_flower_round_seconds": gaps(json.loads(result.read_text()))}


def wait_for(condition: object) -> None:
    ends = time.monotonic() + _PATIENCE
    while not condition():  # type: ignore[operator]
        if time.monotonic() > ends:
            raise TimeoutError("the federation does not get going")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as probe:
        folder = Path(temporary)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        write_data(folder)
        listen = "127.0.0.1"
        server = ServerFolder.create(folder / "fed", NODES, listen, port, listen, "builtin")
        env = environment(server.flower)
        serving = Child(["fullfed", "serve", str(folder / "fed")], folder / "serve.out", env)
        joining = [
            Child(
                ["fullfed", "join", str(node), "--data", str(folder / f"{node.name}.jsonl")],
                folder / f"{node.name}.out",
                environment(NodeFolder(node).flower),
            )
            for node in (folder / "fed" / "partners" / name for name in NODES)
        ]
        with running(serving, *joining):
            wait_for(lambda: all("connected to" in child.said() for child in joining))
            figures = measure_bare(server, folder, arguments.rounds)
            for method in METHODS:
                figures |= measure_method(server, folder, method, arguments.rounds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:>36}  {value:.2f}")


if __name__ == "__main__":
    main()
