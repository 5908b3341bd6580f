"""Flower's own commands, with what fullfed sets for them; every one is printed before it runs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fullfed.deployment.node_folder import NodeFolder
from fullfed.deployment.run_files import RUN
from fullfed.deployment.server_folder import ServerFolder
from fullfed.deployment.sockets import free_port
from fullfed.engines.flower.channel import WORKER
from fullfed.errors import UserError
from fullfed.files import write_atomically

CONNECTION = "federation"  # what Flower's configuration calls the server
_COMMAND_TIMEOUT = 180.0  # seconds

Print = Callable[[str], None]


def environment(home: Path) -> dict[str, str]:
    """What Flower's processes run under: no telemetry, no downloads, a home of their own."""
    return {
        **os.environ,
        # Flower finds its own programs by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def superlink(folder: ServerFolder) -> list[str]:
    """The command that runs the server."""
    settings = folder.settings()
    return [
        "flower-superlink",
        *("--host", settings.listen, "--port", str(settings.port)),
        *("--ssl-ca-certfile", str(folder.authority)),
        *("--ssl-certfile", str(folder.certificate), "--ssl-keyfile", str(folder.key)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--database", str(folder.flower / "superlink.db")),
    ]


def simulating_superlink(port: int) -> list[str]:
    """The command that runs a server of simulated nodes, for this machine alone."""
    return [
        "flower-superlink",
        *("--simulation", "--insecure", "--host", "127.0.0.1", "--port", str(port)),
        "--disable-runtime-dependency-installation",
    ]


def supernode(folder: NodeFolder) -> list[str]:
    """The command that runs a node."""
    return [
        "flower-supernode",
        *("--superlink", folder.settings().server),
        *("--root-certificates", str(folder.authority)),
        *("--auth-supernode-private-key", str(folder.key)),
        *("--port", str(free_port())),
        *("--node-config", f"{WORKER}={json.dumps(str(folder.worker_address))}"),
    ]


def configure(home: Path, port: int, authority: Path | None) -> None:
    """Write the configuration by which ``flwr`` finds the server on this machine.

    Args:
        home: Flower's.
        authority: whose certificate the server has; None for one without TLS.
    """
    home.mkdir(exist_ok=True, mode=0o700)
    connection: dict[str, Any] = {"address": f"127.0.0.1:{port}"}
    connection |= {"insecure": True} if authority is None else {"root-certificates": str(authority)}
    tables = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    write_atomically(home / "config.toml", tomli_w.dumps(tables).encode())


def submit(home: Path, app: Path, run: Path, say: Print, simulated: int | None = None) -> None:
    """Have the server start a ServerApp on a run's folder.

    Args:
        home: Flower's.
        app: the app's folder.
        simulated: how many nodes the server is to simulate, if it does that.

    Raises:
        UserError: Flower refuses.
    """
    command = ["run", str(app), CONNECTION, "-c", f"{RUN}={json.dumps(str(run))}"]
    if simulated is not None:
        command += ["--federation-config", f"num-supernodes={simulated}"]
    _flwr(home, command, say)


def sync_nodes(folder: ServerFolder, say: Print) -> None:
    """Register the partners' keys that the running server does not know, and take out others.

    Raises:
        UserError: Flower refuses.
    """
    wanted = {member.key: member.name for member in folder.members()}
    known = registered(folder)
    for key, node in known.items():
        if key not in wanted:
            _flwr(folder.flower, ["supernode", "unregister", node, CONNECTION], say)
    nodes = {key: node for key, node in known.items() if key in wanted}
    for key, name in wanted.items():
        if key not in nodes:
            public_key = str(folder.public_key(name))
            register = ["supernode", "register", public_key, CONNECTION, "--name", name]
            nodes[key] = str(_flwr(folder.flower, register, say)["node-id"])
            _write_registered(folder, nodes)
    _write_registered(folder, nodes)


def registered(folder: ServerFolder) -> dict[str, str]:
    """The Flower node id of each registered key (PEM)."""
    file = folder.flower / "nodes.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _write_registered(folder: ServerFolder, nodes: dict[str, str]) -> None:
    write_atomically(folder.flower / "nodes.json", json.dumps(nodes).encode())


def node_states(folder: ServerFolder) -> dict[str, str]:
    """Flower's word for the state of each node, by its id: "online", "offline", ..."""
    listed = _flwr(folder.flower, ["supernode", "list", CONNECTION], lambda text: None)
    return {str(node["node-id"]): str(node["status"]) for node in listed["nodes"]}


def shown(command: Sequence[str]) -> str:
    """The command as a shell takes it."""
    return "$ " + shlex.join(command)


def _flwr(home: Path, arguments: list[str], say: Print) -> dict[str, Any]:
    command = ["flwr", *arguments, "--format", "json"]
    say(shown(command))
    program = str(Path(sys.executable).with_name("flwr"))
    done = subprocess.run(
        [program, *command[1:]],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT,
        check=False,
    )
    output = done.stdout[done.stdout.find("{") :]
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        answer = {}
    if done.returncode != 0 or answer.get("success") is not True:
        said = " ".join((str(answer.get("error-message", "")) or done.stderr).split())[:300]
        raise UserError(f"{shlex.join(command)}: Flower refuses ({said or 'it does not say why'}).")
    return answer
