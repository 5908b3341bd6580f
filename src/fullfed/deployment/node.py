"""A partner's node: the resident worker, and the link to the server beside it."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fullfed.data.sources import find_files
from fullfed.deployment.folders import NodeFile, NodeFolder
from fullfed.deployment.processes import (
    PYTHON,
    TOLD,
    Child,
    Print,
    check_server,
    environment,
    pause,
    relay,
    running,
    shown,
    temporary_files,
)
from fullfed.errors import UserError
from fullfed.files import private_files
from fullfed.hub import absolute, has_wildcards, is_hub_name

_RESTART_SECONDS = 1.0
_USER_ERROR = "error: "  # what the program says before a sentence for its user, and ends
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


class Indented(logging.Formatter):
    """Lines of a record after its first begin with spaces. They may be a server's words, and are
    not to look like what the program itself says to its user (``user_error``)."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n  ".join(super().format(record).splitlines())


@private_files()
def join(folder: NodeFolder, data: str | None, model: str | None, say: Print) -> None:
    """Take part in the federation until stopped. What dies is started again.

    Raises:
        UserError: bad settings or data, or the server is not the federation's.
    """
    settings = configured(folder, data, model)
    folder.write(settings)
    wait_for_server(folder, settings, say)
    own = worker_command(folder, settings)
    say(shown(own))
    say(shown(relay(folder)))
    variables = {**os.environ, **temporary_files(folder.path)}
    worker = Child(own, folder.path / "worker.log", variables)
    with running(worker), link(folder) as node:
        while True:
            pause()
            for error in errors(worker.news()):
                say(error)
            keep_running(folder, node, say)
            if worker.exit_code is not None and (said := user_error(worker.said())):
                raise UserError(said)
            if worker.exit_code is not None:
                say("the worker has died and is started again")
                time.sleep(_RESTART_SECONDS)
                worker.start()


def worker_command(folder: NodeFolder, settings: NodeFile) -> list[str]:
    """The command that runs the node's worker: one process, or one a device by torchrun."""
    if settings.devices == 1:
        return ["fullfed", "worker", str(folder.path)]
    started = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    program = ("-m", "fullfed", "worker", str(folder.path))
    return [PYTHON, *started, str(settings.devices), *program]


def user_error(said: str) -> str:
    """What a worker that has ended said to its user; empty where it ended of something else."""
    errors = [line for line in said.splitlines() if line.startswith(_USER_ERROR)]
    return errors[-1].removeprefix(_USER_ERROR) if errors else ""


def wait_for_server(folder: NodeFolder, settings: NodeFile, say: Print) -> None:
    """Return when the server is there.

    Raises:
        UserError: it is not the federation's.
    """
    say(f"node.toml allows: {settings.limits}")
    if not check_server(settings.server, folder.authority):
        say(f"waiting for the server at {settings.server}")
    while not check_server(settings.server, folder.authority):
        pause()


@dataclass
class RunningLink:
    """The process that is a node's link to the server.

    Attributes:
        process: it.
        connected: Flower's number of the node that it is; 0 before it is connected.
    """

    process: Child
    connected: int = 0


@contextmanager
def link(folder: NodeFolder) -> Iterator[RunningLink]:
    """Inside, the node's link to the server runs."""
    node = Child(relay(folder), folder.path / "node.log", environment(folder.flower))
    with private_files():
        folder.flower.mkdir(exist_ok=True)
        node.start()
    try:
        yield RunningLink(node)
    finally:
        node.stop()


def keep_running(folder: NodeFolder, node: RunningLink, say: Print) -> None:
    """Tell what a link tells, and start it again where it has died."""
    for line in node.process.news():
        if line.startswith(TOLD):
            say(line.removeprefix(TOLD))
            found = re.search(r"^connected .*\(node (\d+)\)", line.removeprefix(TOLD))
            node.connected = int(found[1]) if found else node.connected
    if node.process.exit_code is not None:
        say("the link to the server has died and is started again")
        time.sleep(_RESTART_SECONDS)
        node.process.start(relay(folder, node.connected))


def errors(lines: Sequence[str]) -> list[str]:
    """What the worker's operator has to know of what the worker logs."""
    found = [(line.partition(_ERROR)[2], "".join(line.partition(RECIPE)[1:])) for line in lines]
    return [error or recipe for error, recipe in found if error or recipe]
