"""Long-running processes: started with their output in a file, watched, ended with their parent."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE = 10.0  # seconds between asking a process to end and ending it


class Child:
    """A process that can be started again.

    Args:
        command: what to run; the program is looked for beside this Python.
        output: the file that stdout and stderr are appended to.
        env: its environment.
    """

    def __init__(self, command: Sequence[str], output: Path, env: Mapping[str, str]) -> None:
        self._command, self._output, self._env = list(command), output, env
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._heard = 0

    def start(self) -> None:
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

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = {s: signal.signal(s, leave) for s in (signal.SIGTERM, signal.SIGINT)}
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
