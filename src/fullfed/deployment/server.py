"""A federation's server: running it, registering partners' nodes there, and giving it runs.

The server is Flower's SuperLink behind a gate (fullfed.deployment.gate). What is asked of it goes
by Flower's own command, ``flwr``, and every command is printed before it runs.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from fullfed.deployment import RUN
from fullfed.deployment.folders import CONNECTION, CONTROL_KEY, ServerFolder
from fullfed.deployment.identities import check_not_expired
from fullfed.deployment.members import Partner
from fullfed.deployment.meter import LIMITS, Meter
from fullfed.deployment.processes import (
    Child,
    Print,
    check_port_free,
    check_server,
    environment,
    executor,
    free_port,
    pause,
    running,
    shown,
    superlink,
)
from fullfed.errors import UserError
from fullfed.files import private_files, write_atomically, write_json

ONLINE = "online"  # Flower's word for a node that is connected
START_SECONDS = 120.0  # that Flower may take to start what it was asked to
_COMMAND_TIMEOUT = 180.0  # seconds
_PROJECT = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fullfed-app"
version = "1.0.0"
description = "fullfed on Flower: the app is the installed fullfed"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fullfed"

[tool.flwr.app.components]
serverapp = "fullfed_app.server:app"
clientapp = "fullfed_app.client:app"

[tool.flwr.app.config]
{RUN} = ""
"""


@private_files()
def serve(folder: ServerFolder, say: Print, look: Callable[[], None]) -> None:
    """Run the server until it is stopped.

    Args:
        look: is called twice a second while it runs.

    Raises:
        UserError: the port is in use, the certificate has expired, or Flower gives up.
    """
    settings = folder.settings()
    renew = f"renew it with `fullfed federation keys rotate {folder.federation}`"
    check_not_expired(folder.certificate, renew)
    check_port_free(settings.listen, settings.port)
    port = free_port()
    meter = Meter(folder.limits(), settings.limits)
    configure(folder.flower, port, folder.authority, meter)
    commands = superlink(folder, port), executor(folder.control_key, port, folder.authority)
    there = partial(check_server, folder.local_address, folder.authority)
    with running_superlink(commands, folder.flower, there, say) as children:
        sync_nodes(folder, say)
        folder.audit.record("serve", address=f"{settings.address}:{settings.port}")
        say(f"serving {len(settings.partners)} partners at {settings.address}:{settings.port}")
        try:
            while all(child.exit_code is None for child in children):
                look()
                pause()
        finally:
            folder.audit.record("close")
    raise UserError(f"{folder.superlink_log}: Flower's server has ended; the log says why.")


@contextmanager
def running_superlink(
    commands: Sequence[list[str]],
    home: Path,
    there: Callable[[], bool],
    say: Print,
    trains: bool = False,
) -> Iterator[Sequence[Child]]:
    """Start Flower's server and wait until it can be reached; stop it at the end.

    Args:
        commands: of the server, and of what it needs beside it once it is there.
        home: the folder of its configuration and its log.
        trains: as for ``environment``.

    Raises:
        UserError: it ends before it is there, or takes too long.
    """
    log, ends = home / "superlink.log", time.monotonic() + START_SECONDS
    server, *others = (Child(command, log, environment(home, trains)) for command in commands)
    say(shown(commands[0]))
    with running(server):
        while not there():
            if server.exit_code is not None or time.monotonic() > ends:
                raise UserError(f"{log}: Flower's server does not start; the log says why.")
            pause()
        for command in commands[1:]:
            say(shown(command))
        with running(*others):
            yield server, *others


def configure(home: Path, port: int, authority: Path | None, meter: Meter) -> None:
    """Write the configuration by which ``flwr`` finds the server on this machine, a new key, and
    what nodes may ask for.

    Args:
        home: the folder of Flower's configuration, which is made.
        port: where the server listens on this machine alone.
        authority: whose certificate the server has; None for one without TLS.
    """
    from fullfed.deployment.flower_internals import store_key

    home.mkdir(exist_ok=True, mode=0o700)
    address, key = f"127.0.0.1:{port}", secrets.token_urlsafe(32)
    write_atomically(home / CONTROL_KEY, key.encode(), mode=0o600)
    store_key(home, address, key)
    meter.write(home / LIMITS)
    connection: dict[str, Any] = {"address": address}
    connection |= {"insecure": True} if authority is None else {"root-certificates": str(authority)}
    tables = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    write_atomically(home / "config.toml", tomli_w.dumps(tables).encode())


def write_app(folder: Path) -> None:
    """Write the Flower app into a folder: it names what is installed, and brings no code."""
    package = folder / "fullfed_app"
    package.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "pyproject.toml", _PROJECT.encode())
    write_atomically(package / "__init__.py", b"")
    for side in ("server", "client"):
        # An assignment, because Flower looks for one without importing the module.
        code = f"from fullfed.deployment import flower_app\n\napp = flower_app.{side}\n"
        write_atomically(package / f"{side}.py", code.encode())


def submit(home: Path, app: Path, run: Path, say: Print, simulated: int | None = None) -> None:
    """Have the server start a ServerApp, of the app in a folder, on a run's folder.

    Args:
        home: the folder of Flower's configuration.
        simulated: how many nodes the server is to simulate, if it does that.

    Raises:
        UserError: Flower refuses.
    """
    command = ["run", str(app), CONNECTION, "-c", f"{RUN}={json.dumps(str(run))}"]
    if simulated is not None:
        command += ["--federation-config", f"num-supernodes={simulated}"]
    _flwr(home, command, say)


@private_files()
def sync_nodes(folder: ServerFolder, say: Print) -> None:
    """Register the partners' keys that the running server does not know, and take out others.

    Raises:
        UserError: Flower refuses.
    """
    wanted = {partner.key: partner.name for partner in folder.partners()}
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
            write_json(folder.nodes, nodes)
    write_json(folder.nodes, nodes)


def registered(folder: ServerFolder) -> dict[str, str]:
    """The Flower node id of each registered key (PEM)."""
    return json.loads(folder.nodes.read_bytes()) if folder.nodes.exists() else {}


@dataclass(frozen=True)
class RegisteredNode:
    """What the server knows of a node.

    Attributes:
        state: Flower's word: "registered" (was never there), "online", "offline".
        since: when it came or went, in ISO 8601; empty if it was never there.
    """

    state: str
    since: str


def partners_nodes(folder: ServerFolder, partners: Sequence[Partner]) -> dict[str, RegisteredNode]:
    """What the running server knows of each partner's node, by the partner's name.

    Raises:
        UserError: it does not answer.
    """
    known = node_states(folder)
    keys = (key.decode("ascii") for key in folder.keys_of(partners))
    named = zip((partner.name for partner in partners), keys, strict=True)
    return {name: known[key] for name, key in named if key in known}


def node_states(folder: ServerFolder) -> dict[str, RegisteredNode]:
    """What the running server knows of each node, by its key (PEM).

    Raises:
        UserError: it does not answer.
    """
    from fullfed.deployment.flower_internals import LostConnectionError, registered_nodes

    key = folder.control_key.read_text(encoding="ascii")
    try:
        known = registered_nodes(folder.local_address, folder.authority, key)
    except LostConnectionError as error:
        raise UserError(
            f"{folder.federation}: the server does not answer ({error}); "
            f"stop and start `fullfed serve {folder.federation}`."
        ) from error
    return {key: RegisteredNode(*about) for key, about in known.items()}


def _flwr(home: Path, arguments: list[str], say: Print) -> dict[str, Any]:
    command = ["flwr", *arguments, "--format", "json"]
    say(shown(command))
    done = subprocess.run(
        command,
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
