"""What there is to know of a run's process at a federation's server: server.json, and its lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fullfed.errors import UserError
from fullfed.files import locked, write_json


class ServerStatus:
    """server.json in a run's folder, and the lock that the ServerApp holds while it lives."""

    def __init__(self, run_folder: Path) -> None:
        self._status = run_folder / "server.json"
        self._lock_file = run_folder / "server.lock"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; keep why a UserError ended what is done under it.

        Raises:
            UserError: another process holds it.
        """
        otherwise = f"{self._lock_file.parent}: another process carries this run on."
        with locked(self._lock_file, otherwise):
            write_json(self._status, {"error": None})
            try:
                yield
            except UserError as error:
                write_json(self._status, {"error": str(error)})
                raise

    def clear(self) -> None:
        """Forget what an earlier ServerApp came to."""
        self._status.unlink(missing_ok=True)

    @property
    def begun(self) -> bool:
        """Whether a ServerApp has taken the run up since it was cleared."""
        return self._status.exists()

    @property
    def alive(self) -> bool:
        """Whether a ServerApp is at work on the run now."""
        if not self._lock_file.exists():
            return False
        try:
            with locked(self._lock_file, "it is"):
                return False
        except UserError:
            return True

    @property
    def error(self) -> str | None:
        """Why the ServerApp gave up, if it did."""
        if not self.begun:
            return None
        try:
            error = json.loads(self._status.read_bytes())["error"]
        except (ValueError, KeyError, TypeError):
            return f"{self._status}: this is not what the server wrote; start the run again."
        return None if error is None else str(error)
