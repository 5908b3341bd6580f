"""What a round costs on a real federation beyond local training.

    python benchmarks/flower.py [--rounds 5] [--repeats 2] [--json]

Two federations of four nodes on this machine, one after the other: processes, TLS, keys. On
Flower's own server and nodes an app of bare Flower whose messages are empty; on fullfed's Ferret
and FedAvg, and Ferret by secure sums beside the same without, on the embedded model, with one step
of one sample a visit and nothing to evaluate.
Prints the median seconds from one round's end to the next's; what of that a client trains and
encodes (mean), and the server merges; the bytes of a round both ways; and how many visits there
were and how many models workers loaded for them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fullfed.deployment.flower_runs import start
from fullfed.deployment.folders import NodeFolder, ServerFolder
from fullfed.deployment.meter import Meter, PartnerLimits
from fullfed.deployment.processes import Child, check_server, environment, free_port, running
from fullfed.deployment.server import configure, submit, sync_nodes, write_app
from fullfed.engines.node_limits import Limits
from fullfed.quickstart.kinds import draw_examples
from fullfed.quickstart.tasks import FEDERATED
from fullfed.recipe_file import load_recipe
from fullfed.runs.folder import RunFolder

NODES = ("a", "b", "c", "d")
_SHARED = {"name": "ferret", "coordinates": 8192, "bits": 4, "seeds": "shared"}
METHODS: dict[str, dict[str, Any]] = {
    "ferret": {"method": {"name": "ferret", "coordinates": 8192}},
    "fedavg": {"method": {"name": "fedavg"}},
    "ferret_shared": {"method": _SHARED},
    "ferret_secure": {"method": _SHARED, "privacy": {"secure_sum": True}},
}
_PATIENCE = 600.0  # seconds

_BARE_SERVER = """\
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
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
        with Path(context.run_config["run"]).open("a") as file:
            print("round", file=file)
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
    for name, (task, kind) in zip(NODES, FEDERATED.items(), strict=False):
        lines = [
            json.dumps({"instruction": e.instruction, "input": e.input, "output": e.output}) + "\n"
            for e in draw_examples(task, kind, 48, 0, "train")
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines))


def write_recipe(folder: Path, method: str, rounds: int) -> Path:
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "of each node", "template": "alpaca"},
        "federation": {"rounds": rounds, "clients_per_round": len(NODES)},
        "local": {"steps": 1, "batch_size": 1},
        "deployment": {"quorum": 1.0},
        **METHODS[method],
    }
    path = folder / f"{method}.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def gaps(lines: Path, rounds: int, carry_out: Callable[[], object]) -> list[float]:
    """Seconds between the lines that appear in a file, one a round."""
    ends: list[float] = []

    def watch() -> None:
        while len(ends) < rounds:
            written = lines.read_text().count("\n") if lines.exists() else 0
            ends.extend([time.monotonic()] * (written - len(ends)))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    carry_out()
    watcher.join(_PATIENCE)
    return [after - before for before, after in itertools.pairwise(ends)]


def bare_federation(folder: Path) -> tuple[ServerFolder, list[Child]]:
    """Flower's own server and its nodes, with the keys and certificates of a federation."""
    server, port, here = ServerFolder(folder / "bare"), free_port(), "127.0.0.1"
    ServerFolder.create(server.federation, NODES, here, port, here, "builtin")
    configure(server.flower, port, server.authority, Meter({}, PartnerLimits()))
    superlink = [
        *("flower-superlink", "--host", here, "--port", str(port), "--enable-supernode-auth"),
        *("--ssl-ca-certfile", str(server.authority), "--ssl-certfile", str(server.certificate)),
        *("--ssl-keyfile", str(server.key), "--disable-runtime-dependency-installation"),
    ]
    children = [Child(superlink, folder / "bare.out", environment(server.flower))]
    for name in NODES:
        node = NodeFolder(server.federation / "partners" / name)
        supernode = [
            *("flower-supernode", "--superlink", f"{here}:{port}", "--port", str(free_port())),
            *("--root-certificates", str(node.authority)),
            *("--auth-supernode-private-key", str(node.key)),
        ]
        children.append(Child(supernode, folder / f"bare-{name}.out", environment(node.path)))
    return server, children


def bare(server: ServerFolder, folder: Path, rounds: int, number: int) -> dict[str, list[float]]:
    app = folder / f"bare-app-{number}"
    write_app(app)
    (app / "fullfed_app" / "server.py").write_text(_BARE_SERVER.replace("ROUNDS", str(rounds)))
    (app / "fullfed_app" / "client.py").write_text(_BARE_CLIENT)
    lines = folder / f"bare-{number}"

    def carry_out() -> None:
        submit(server.flower, app, lines, lambda text: None)

    return {"bare_flower_round": gaps(lines, rounds, carry_out)}


def method(
    server: ServerFolder, folder: Path, name: str, rounds: int, number: int
) -> dict[str, list[float]]:
    run = RunFolder(folder / f"{name}-{number}")
    recipe = load_recipe(write_recipe(folder, name, rounds))

    def carry_out() -> None:
        start(server, recipe, run.path, lambda text: None)

    seconds = {f"{name}_round": gaps(run.metrics_file, rounds, carry_out)}
    later = [record["seconds"] for record in run.metrics()[1:]]
    work = [(of["train"] + of["encode"]) / len(NODES) for of in later]
    return seconds | {
        f"{name}_client_work": work,
        f"{name}_server_work": [of["aggregate"] + of["evaluate"] for of in later],
        **{f"{name}_{way}": [r["bytes"][way] for r in run.metrics()[1:]] for way in ("up", "down")},
    }


def times_logged(nodes: list[NodeFolder], pattern: str) -> int:
    """How often workers wrote a line that ends so."""
    logs = [(node.path / "worker.log").read_text() for node in nodes]
    return sum(len(re.findall(f"{pattern}$", log, re.MULTILINE)) for log in logs)


def processes(
    server: ServerFolder, names: Sequence[str], folder: Path, limits: Limits
) -> tuple[list[NodeFolder], Child, list[Child]]:
    """A federation's nodes, and what serves and what joins, which run from ``running`` on.

    Args:
        folder: has the nodes' data; what they say goes there.
        limits: of each node, but that a visit may be one of one sample.
    """
    nodes = [NodeFolder(server.federation / "partners" / name) for name in names]
    least = {"fewest_samples_a_step": 1, "fewest_samples_a_visit": 1}
    for node in nodes:
        allowed = limits.model_copy(update=least)
        node.write(node.settings().model_copy(update={"limits": allowed}))
    joins = [
        Child(
            ["fullfed", "join", str(node.path), "--data", str(folder / f"{node.path.name}.jsonl")],
            folder / f"{node.path.name}.out",
            environment(node.flower),
        )
        for node in nodes
    ]
    command = ["fullfed", "serve", str(server.federation)]
    return nodes, Child(command, folder / "serve.out", environment(server.flower)), joins


def measure(folder: Path, rounds: int, repeats: int) -> dict[str, float]:
    write_data(folder)
    port, here = free_port(), "127.0.0.1"
    server = ServerFolder.create(folder / "fed", NODES, here, port, here, "builtin")
    nodes, serving, children = processes(server, NODES, folder, Limits())
    seconds: dict[str, list[float]] = defaultdict(list)
    flowers, (superlink, *supernodes) = bare_federation(folder)
    with running(serving, superlink, *children):
        wait_for(lambda: check_server(flowers.local_address, flowers.authority))
        sync_nodes(flowers, lambda text: None)
        with running(*supernodes):
            wait_for(lambda: all("SuperNode ID" in child.said() for child in supernodes))
            for number in range(repeats):
                for name, values in bare(flowers, folder, rounds, number).items():
                    seconds[name] += values
        wait_for(lambda: all("connected to" in child.said() for child in children))
        for number in range(repeats):
            for each in METHODS:
                for name, values in method(server, folder, each, rounds, number).items():
                    seconds[name] += values
    figures = {
        name if name.endswith(("_up", "_down")) else f"{name}_seconds": statistics.median(of)
        for name, of in seconds.items()
    }
    loads = times_logged(nodes, " loaded")
    return figures | {"visits": times_logged(nodes, r" as client \d+"), "models_loaded": loads}


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError("the federation does not get going")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(Path(temporary), arguments.rounds, arguments.repeats)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:>24}  {value:.2f}")


if __name__ == "__main__":
    main()
