"""The processes of a federation: Flower's programs, how they are run and watched, and their ports.

A process is started with its output in a file, and ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fullfed.deployment.folders import CONTROL_KEY, NodeFolder, ServerFolder
from fullfed.errors import UserError

PYTHON = Path(sys.executable).name
NOT_LISTENING = "-"  # for partners
TOLD = "fullfed: "  # before what a link to the server says to the partner
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE = 10.0  # seconds between asking a process to end and ending it
_CONNECT_TIMEOUT = 10.0  # seconds

Print = Callable[[str], None]


def environment(home: Path, trains: bool = False) -> dict[str, str]:
    """What Flower's processes run under: no telemetry, no downloads, a home of their own.

    Args:
        trains: whether clients train in them. Otherwise glibc gives memory back as soon as a chunk
            of a message or a tensor is freed, which takes time in a training step.
    """
    freed = {} if trains else {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return {
        **os.environ,
        # Flower finds its own programs by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": tempfile.gettempdir(),  # of sockets, whose paths must be short
        **freed,
        **temporary_files(home),
    }


def temporary_files(folder: Path) -> dict[str, str]:
    """Where a process keeps large messages, unless TMPDIR says where: on the disk of ``folder``,
    since the system's temporary files may be in memory."""
    own = folder / "temporary"
    own.mkdir(parents=True, mode=0o700, exist_ok=True)
    return {"TMPDIR": os.environ.get("TMPDIR", str(own))}


def superlink(folder: ServerFolder, local_port: int) -> list[str]:
    """The command that runs the server; its own machine reaches it at ``local_port``."""
    settings = folder.settings()
    return [
        *_gated(settings.listen, settings.port, folder.control_key, local_port),
        *("--ssl-ca-certfile", str(folder.authority)),
        *("--ssl-certfile", str(folder.certificate), "--ssl-keyfile", str(folder.key)),
        *("--enable-supernode-auth", "--database", str(folder.flower / "superlink.db")),
    ]


def simulating_superlink(home: Path, local_port: int) -> list[str]:
    """The command that runs a server of simulated nodes, for this machine alone."""
    key = home / CONTROL_KEY
    return [*_gated(NOT_LISTENING, 0, key, local_port), "--simulation", "--insecure"]


def _gated(listen: str, port: int, key: Path, local_port: int) -> list[str]:
    return [
        *(PYTHON, "-m", "fullfed.deployment.superlink", listen, str(port), str(key)),
        *("--port", str(local_port), "--disable-runtime-dependency-installation"),
        # Whoever takes a run's process over has to know the key, too.
        *("--isolation", "process", "--superexec-auth-secret-file", str(key)),
    ]


def executor(key: Path, local_port: int, authority: Path | None) -> list[str]:
    """The command that starts what the server has to be run: a run's process.

    Args:
        key: the operator's, a file.
        authority: whose certificate the server has; None for one without TLS.
    """
    trust = () if authority is None else (str(authority),)
    return [
        *(PYTHON, "-m", "fullfed.deployment.executor", f"127.0.0.1:{local_port}", str(key)),
        *trust,
    ]


def relay(folder: NodeFolder, left: int = 0) -> list[str]:
    """The command that runs a node's link to the server; see fullfed.deployment.relay."""
    return [PYTHON, "-m", "fullfed.deployment.relay", str(folder.path), str(left)]


def shown(command: Sequence[str]) -> str:
    """The command as a shell takes it."""
    return "$ " + shlex.join(command)


class Child:
    """A process that can be started again.

    Args:
        command: what to run; the program is looked for beside this Python.
        output: the file that stdout and stderr are appended to.
    """

    def __init__(self, command: Sequence[str], output: Path, env: Mapping[str, str]) -> None:
        self._command, self._output, self._env = list(command), output, env
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._heard = 0

    def start(self, command: Sequence[str] = ()) -> None:
        """Start it, or the command given in its place from now on."""
        self._command = list(command) or self._command
        self._began = self._heard = self._output.stat().st_size if self._output.exists() else 0
        program = Path(sys.executable).with_name(self._command[0])
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [str(program), *self._command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self._env),
                preexec_fn=_end_with_parent,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def said(self) -> str:
        """What it has written since it was last started."""
        with self._output.open("rb") as output:
            output.seek(self._began)
            return output.read().decode(errors="replace")

    def news(self) -> list[str]:
        """The whole lines that it has written since it was last asked."""
        with self._output.open("rb") as output:
            output.seek(self._heard)
            lines, newline, _ = output.read().rpartition(b"\n")
        self._heard += len(lines) + len(newline)
        return lines.decode(errors="replace").splitlines()

    def stop(self) -> None:
        """End it: politely, and then not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._process.kill()
        self._process.wait()


def _end_with_parent() -> None:
    """Have the kernel end a child whose parent is killed (Linux; elsewhere the child stays)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def running(*children: Child) -> Iterator[None]:
    """Start the children; stop them at the end, also when this process is asked to end."""
    asked = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in asked}
    try:
        for child in children:
            child.start()
        yield
    finally:
        for child in reversed(children):
            child.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def pause() -> None:
    """Between two looks at processes."""
    time.sleep(0.5)


def check_server(address: str, authority: Path) -> bool:
    """Whether the server at host:port is there and is the federation's.

    Raises:
        UserError: it is there and is not, or its certificate has expired.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"{address}: the server's certificate is refused ({error.verify_message}); "
            "ask whoever runs the server."
        ) from error
    except (OSError, ValueError):
        return False


def check_port_free(host: str, port: int) -> None:
    """Raise a UserError if the server cannot listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port}: the port cannot be used ({error.strerror}); stop what uses it, "
                "or change `port` in federation.toml and in every node.toml."
            ) from error


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something on this machine does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
