"""A partner's node: the resident worker, and the link to the server beside it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from fullfed.data.sources import find_files
from fullfed.deployment.folders import NodeFile, NodeFolder
from fullfed.deployment.processes import (
    TOLD,
    Child,
    Print,
    check_server,
    environment,
    pause,
    relay,
    running,
    shown,
)
from fullfed.errors import UserError
from fullfed.files import private_files
from fullfed.hub import absolute, has_wildcards, is_hub_name

_RESTART_SECONDS = 1.0
_USER_ERROR = 2  # exit code
LOG_FORMAT = "%(asctime)s %(levelname)s: %(message)s"  # of the worker
_ERROR = " ERROR: "
RECIPE = "the run's recipe is "  # what owners of nodes may agree on: its hash follows


def configured(folder: NodeFolder, data: str | None, model: str | None) -> NodeFile:
    """The node's settings with what was asked for on the command line.

    Raises:
        UserError: no data are named, or they or the model are not there.
    """
    given = {"data": data, "model": model}
    chosen = {name: absolute(source) for name, source in given.items() if source}
    settings = folder.settings().model_copy(update=chosen)
    if settings.data is None:
        raise UserError(f"{folder.path}: no data are named; name them with --data.")
    if has_wildcards(settings.data):
        find_files(settings.data)  # refuses a pattern that nothing matches
    elif not Path(settings.data).exists() and not is_hub_name(settings.data):
        raise UserError(f"{settings.data}: there are no data here; correct --data.")
    absent = settings.model != "builtin" and not Path(settings.model).is_dir()
    if absent and not is_hub_name(settings.model):
        raise UserError(f"{settings.model}: there is no model folder here; correct --model.")
    return settings


@private_files()
def join(folder: NodeFolder, data: str | None, model: str | None, say: Print) -> None:
    """Take part in the federation until stopped. What dies is started again.

    Raises:
        UserError: bad settings or data, or the server is not the federation's.
    """
    settings = configured(folder, data, model)
    folder.write(settings)
    say(f"node.toml allows: {settings.limits}")
    if not check_server(settings.server, folder.authority):
        say(f"waiting for the server at {settings.server}")
    while not check_server(settings.server, folder.authority):
        pause()
    folder.flower.mkdir(exist_ok=True, mode=0o700)
    own = ["fullfed", "worker", str(folder.path)]
    say(shown(own))
    say(shown(relay(folder)))
    worker = Child(own, folder.path / "worker.log", os.environ)
    node = Child(relay(folder), folder.path / "node.log", environment(folder.flower))
    with running(worker, node):
        _watch(folder, worker, node, say)


def _watch(folder: NodeFolder, worker: Child, node: Child, say: Print) -> None:
    connected = 0  # as which Flower node
    while True:
        pause()
        for error in errors(worker.news()):
            say(error)
        for line in node.news():
            if line.startswith(TOLD):
                say(line.removeprefix(TOLD))
                found = re.search(r"^connected .*\(node (\d+)\)", line.removeprefix(TOLD))
                connected = int(found[1]) if found else connected
        if worker.exit_code == _USER_ERROR:
            raise UserError(worker.said().strip().splitlines()[-1].removeprefix("error: "))
        if worker.exit_code is not None:
            say("the worker has died and is started again")
            time.sleep(_RESTART_SECONDS)
            worker.start()
        if node.exit_code is not None:
            say("the link to the server has died and is started again")
            time.sleep(_RESTART_SECONDS)
            node.start(relay(folder, connected))


def errors(lines: Sequence[str]) -> list[str]:
    """What the worker's operator has to know of what the worker logs."""
    found = [(line.partition(_ERROR)[2], "".join(line.partition(RECIPE)[1:])) for line in lines]
    return [error or recipe for error, recipe in found if error or recipe]
