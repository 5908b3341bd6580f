"""A partner's node: the resident worker, and Flower's SuperNode beside it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fullfed.data.sources import is_hub_name
from fullfed.deployment.folders import NodeFile, NodeFolder
from fullfed.deployment.processes import (
    Child,
    Print,
    check_server,
    environment,
    pause,
    running,
    shown,
    supernode,
)
from fullfed.errors import UserError

_TURNED_AWAY = "code: 2004"  # Flower's error when a key is unknown, or in use by another node
_RETRY_SECONDS = 5.0
_RESTART_SECONDS = 1.0
_USER_ERROR = 2  # exit code
LOG_FORMAT = "%(asctime)s %(levelname)s: %(message)s"  # of the worker
_ERROR = " ERROR: "


def configured(folder: NodeFolder, data: str | None, model: str | None) -> NodeFile:
    """The node's settings with what was asked for on the command line.

    Raises:
        UserError: no data are named, or they or the model are not there.
    """
    given = {"data": data, "model": model}
    chosen = {
        name: str(Path(source).absolute()) if Path(source).exists() else source
        for name, source in given.items()
        if source
    }
    settings = folder.settings().model_copy(update=chosen)
    if settings.data is None:
        raise UserError(f"{folder.path}: no data are named; name them with --data.")
    if not Path(settings.data).exists() and not is_hub_name(settings.data):
        raise UserError(f"{settings.data}: there are no data here; correct --data.")
    absent = settings.model != "builtin" and not Path(settings.model).is_dir()
    if absent and not is_hub_name(settings.model):
        raise UserError(f"{settings.model}: there is no model folder here; correct --model.")
    return settings


def join(folder: NodeFolder, data: str | None, model: str | None, say: Print) -> None:
    """Take part in the federation until stopped. What dies is started again.

    Raises:
        UserError: bad settings or data, or the server is not the federation's.
    """
    settings = configured(folder, data, model)
    folder.write(settings)
    if not check_server(settings.server, folder.authority):
        say(f"waiting for the server at {settings.server}")
    while not check_server(settings.server, folder.authority):
        pause()
    folder.flower.mkdir(exist_ok=True, mode=0o700)
    own = ["fullfed", "worker", str(folder.path)]
    flowers = supernode(folder)
    say(shown(own))
    say(shown(flowers))
    worker = Child(own, folder.path / "worker.log", os.environ)
    node = Child(flowers, folder.path / "node.log", environment(folder.flower))
    with running(worker, node):
        _watch(folder, settings, worker, node, say)


def _watch(folder: NodeFolder, settings: NodeFile, worker: Child, node: Child, say: Print) -> None:
    connected, told = 0, False  # connected as which Flower node
    while True:
        pause()
        for error in errors(worker.news()):
            say(error)
        if worker.exit_code == _USER_ERROR:
            raise UserError(worker.said().strip().splitlines()[-1].removeprefix("error: "))
        if worker.exit_code is not None:
            say("the worker has died and is started again")
            time.sleep(_RESTART_SECONDS)
            worker.start()
        if node.exit_code is None:
            found = None if connected else re.search(r"SuperNode ID: (\d+)", node.said())
            if found:
                connected, told = int(found[1]), False
                say(f"connected to {settings.server} as {settings.name} (node {connected})")
            continue
        if _TURNED_AWAY in node.said():
            if not told:
                say(
                    f"{settings.server}: the server turns this node away: its key is not "
                    "registered, or another node runs with it, or ran until a minute ago; "
                    "trying again"
                )
            told = True
            time.sleep(_RETRY_SECONDS)
        else:
            say("Flower's node has died and is started again")
            time.sleep(_RESTART_SECONDS)
            if connected:
                deregister(folder, connected)
        connected = 0
        check_server(settings.server, folder.authority)
        node.start()


def errors(lines: Sequence[str]) -> list[str]:
    """What the worker's operator has to know of what the worker logs."""
    return [line.partition(_ERROR)[2] for line in lines if _ERROR in line]


def deregister(folder: NodeFolder, flower_node: int) -> None:
    """Tell the server, if it is there, that a node of this folder's has died.

    Flower's server takes a node whose process was killed for alive for another minute, sends it
    orders, and lets no other process in with its key. Flower has no command for this; the call is
    the one that a node makes when it ends in peace.
    """
    import httpx  # as much of Flower as this imports is not for every start
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    key = load_ssh_private_key(folder.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signing: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    server, authority = folder.settings().server, str(folder.authority)
    # Without it the server notices by itself, later.
    with (
        suppress(httpx.HTTPError, RuntimeError),
        FleetHttpClient.from_server_address(server, False, authority, signing) as client,
    ):
        client.DeactivateNode(DeactivateNodeRequest(node_id=flower_node))
