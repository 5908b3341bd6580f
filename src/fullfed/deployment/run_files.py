"""The files that a run on Flower has in its folder beside those of any run.

members.json   the run's name, and which node is which client; fixed when the run begins
server.json    why the ServerApp gave up, if it did
server.lock    locked as long as a ServerApp is at work
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fullfed.errors import UserError
from fullfed.files import locked, write_json

RUN = "run"  # what a run's configuration calls its folder


@dataclass(frozen=True)
class Member:
    """A partner.

    Attributes:
        name: of the partner.
        key: its node's public key, PEM.
    """

    name: str
    key: str


@dataclass(frozen=True)
class Members:
    """
    Attributes:
        run: names the run, 16 random hexadecimal digits.
        clients: in the order of their numbers.
    """

    run: str
    clients: Sequence[Member]


class MembersFile:
    """members.json in a run's folder."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / "members.json"

    def create(self, clients: Sequence[Member]) -> None:
        """Name the run and fix its members."""
        members = [asdict(client) for client in clients]
        write_json(self.path, {"run": secrets.token_hex(8), "clients": members})

    def read(self) -> Members:
        """
        Raises:
            UserError: the file is missing or was changed.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            clients = [Member(**member) for member in content["clients"]]
            return Members(str(content["run"]), clients)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: this is not what the run wrote; restore a copy of it."
            ) from error


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
        with locked(
            self._lock_file, f"{self._lock_file.parent}: another process carries this run on."
        ):
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
        error = json.loads(self._status.read_text(encoding="utf-8"))["error"]
        return None if error is None else str(error)
