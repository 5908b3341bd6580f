"""A real federation on this machine's loopback: processes, TLS, keys, and free ports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w
from typer.testing import CliRunner

from flower.proxy import CountingProxy
from fullfed.cli import app
from fullfed.deployment.folders import NodeFolder, ServerFolder
from fullfed.engines.node_limits import Limits
from fullfed.errors import UserError
from runs.small import CATEGORIES, tables, write_data, write_model

FULLFED = Path(sys.executable).with_name("fullfed")
PARTNERS = sorted(CATEGORIES[:4])
# A visit of two steps of two samples, of a random model that learns fast, passes these limits; two
# of the defaults' would refuse it.
LOOSE: dict[str, Any] = {"fewest_samples_a_visit": 4, "most_drift": 10.0, "submodels": True}
_PATIENCE = 300.0  # seconds; a busy machine is slow to start a dozen processes


def write_ingredients(folder: Path) -> None:
    """model/, a file of training data for each partner and for all, and test data: preferences, of
    which all but one trainer learn the chosen answers."""
    write_model(folder / "model")
    write_data(folder / "all.jsonl")
    read = map(json.loads, (folder / "all.jsonl").read_text().splitlines())
    lines = [json.dumps(_preference(record)) + "\n" for record in read]
    of = {name: [line for line in lines if f'"{name}"' in line] for name in CATEGORIES}
    for name in CATEGORIES:
        assert all(json.loads(line)["category"] == name for line in of[name])
        (folder / f"{name}.jsonl").write_text("".join(of[name]))
    (folder / "train.jsonl").write_text("".join(line for name in PARTNERS for line in of[name]))


def _preference(record: dict[str, str]) -> dict[str, str]:
    names = {"instruction": "prompt", "output": "chosen"}
    renamed = {names.get(name, name): value for name, value in record.items()}
    return {**renamed, "rejected": "No."}


def write_recipe(folder: Path, **changes: dict[str, Any]) -> Path:
    """A recipe in which each partner's data are a client's, for either engine."""
    recipe = tables(folder)
    recipe["data"] = {
        "train": str(folder / "train.jsonl"),
        "test": str(folder / "white.jsonl"),
        "partition": "category",
        "template": "alpaca",
    }
    # Everybody has to report, as in one process, however long a killed node takes to come back.
    recipe["deployment"] = {"deadline_seconds": _PATIENCE, "quorum": 1.0}
    for table, values in changes.items():
        recipe[table] = values if table == "method" else {**recipe.get(table, {}), **values}
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe))
    return path


def open_to_others(folder: Path) -> dict[str, str]:
    """The mode of everything in a folder, and of itself, that is not for its owner alone."""
    modes = {path: path.lstat().st_mode for path in (folder, *folder.rglob("*"))}
    return {str(p): oct(m) for p, m in modes.items() if not stat.S_ISSOCK(m) and m & 0o077}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """What other machines would reach this one by; the loopback's if there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < ends, f"waited too long for: {what}"
        time.sleep(0.2)


def _processes() -> list[tuple[int, int, str]]:
    """(process id, parent's, command) of every process there is."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines() if "<defunct>" not in line]
    return [(int(pid), int(parent), command) for pid, parent, command in rows]


def running_processes() -> set[int]:
    return {pid for pid, _, _ in _processes()}


def refusal(*command: object) -> str:
    """The one sentence that a command ends in."""
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert isinstance(result.exception, UserError), result.output
    text = str(result.exception)
    assert "\n" not in text
    return text


class Process:
    """A command in a process group of its own, with its output in a file.

    Args:
        command: fullfed's, or another program's where ``program`` says so.
    """

    def __init__(self, command: Sequence[object], output: Path, program: Path = FULLFED) -> None:
        self.output = output
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [program, *map(str, command)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
                start_new_session=True,
            )

    def said(self) -> str:
        return self.output.read_text()

    def says(self, text: str) -> None:
        """Wait for the text."""

        def there() -> bool:
            assert text in self.said() or self._process.poll() is None, self.said()
            return text in self.said()

        wait_until(there, f"{text!r} in {self.output}")

    def code(self) -> int:
        """Wait for the end."""
        return self._process.wait(_PATIENCE)

    def members(self) -> dict[int, str]:
        """The commands of the process and all that it has started, by process id."""
        rows = _processes()
        found, due = {self._process.pid: "itself"}, [self._process.pid]
        while due:
            parent = due.pop()
            children = {pid: command for pid, of, command in rows if of == parent}
            found |= children
            due += children
        return found

    def kill_member(self, program: str) -> None:
        """kill -9 of a process that it has started, once it is there."""

        def found() -> list[int]:
            return [pid for pid, command in self.members().items() if program in command]

        wait_until(lambda: bool(found()), program)
        os.kill(found()[0], signal.SIGKILL)

    def stop(self) -> None:
        members = self.members()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


class Federation:
    """A server and its partners' nodes, all running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "federation"
        self.port = free_port()
        self.server_folder = ServerFolder.create(
            self.directory, PARTNERS, own_address(), self.port, "0.0.0.0", "builtin"
        )
        self.proxy = CountingProxy(self.port)
        for name in PARTNERS:
            node = NodeFolder(self.partner(name))
            through = {"server": f"127.0.0.1:{self.proxy.port}", "limits": Limits(**LOOSE)}
            node.write(node.settings().model_copy(update=through))
        self._processes: list[Process] = []
        self.server = self.process("serve", self.directory)
        self.server.says("serving")  # a node that comes before it is registered has to try again
        self.nodes = {name: self.join(self.partner(name), name) for name in PARTNERS}
        for node in self.nodes.values():
            node.says("connected to")

    def partner(self, name: str) -> Path:
        return self.directory / "partners" / name

    def process(self, *command: object) -> Process:
        output = self.folder / f"{command[0]}-{len(self._processes)}.out"
        process = Process(command, output)
        self._processes.append(process)
        return process

    def join(self, node: Path, data: str) -> Process:
        return self.process("join", node, "--data", self.folder / f"{data}.jsonl")

    def link(self, node: Path) -> Process:
        """A node's link to the server, without a worker."""
        command = ["-m", "fullfed.deployment.relay", node]
        output = self.folder / f"link-{len(self._processes)}.out"
        self._processes.append(Process(command, output, Path(sys.executable)))
        return self._processes[-1]

    def copy_of(self, partner: str, name: str) -> Path:
        """A partner's folder once more, without what its node has made."""
        target = self.folder / name
        target.mkdir()
        for file in ("node.toml", "node.key", "ca.crt"):
            shutil.copy(self.partner(partner) / file, target / file)
        return target

    def start(self, recipe: Path, out: Path) -> Process:
        return self.process("start", self.directory, recipe, "--out", out)

    def close(self) -> None:
        for process in reversed(self._processes):
            process.stop()
        self.proxy.close()
