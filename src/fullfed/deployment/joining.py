"""Running a partner's node: the resident worker and Flower's SuperNode beside it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from fullfed.data.hub import is_hub_name
from fullfed.deployment.flower import Print, environment, shown, supernode
from fullfed.deployment.node_folder import NodeFolder
from fullfed.deployment.processes import Child, pause, running
from fullfed.deployment.settings import NodeFile
from fullfed.deployment.sockets import check_server
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
    changes = {"data": data and _absolute(data), "model": model and _absolute(model)}
    chosen = {name: value for name, value in changes.items() if value}
    settings = folder.settings().model_copy(update=chosen)
    if settings.data is None:
        raise UserError(f"{folder.path}: no data are named; name them with --data.")
    if not Path(settings.data).exists() and not is_hub_name(settings.data):
        raise UserError(f"{settings.data}: there are no data here; correct --data.")
    absent = settings.model != "builtin" and not Path(settings.model).is_dir()
    if absent and not is_hub_name(settings.model):
        raise UserError(f"{settings.model}: there is no model folder here; correct --model.")
    return settings


def _absolute(source: str) -> str:
    return str(Path(source).absolute()) if Path(source).exists() else source


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
                from fullfed.deployment.departure import take_leave  # imports much of Flower

                take_leave(folder, connected)
        connected = 0
        check_server(settings.server, folder.authority)
        node.start()


def errors(lines: Sequence[str]) -> list[str]:
    """What the worker's operator has to know of what the worker logs."""
    return [line.partition(_ERROR)[2] for line in lines if _ERROR in line]
