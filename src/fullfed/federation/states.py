"""What clients keep between visits.

A client's state (residuals of its codec, moments of its optimizer) never leaves it. It is stored
under a name and the round that made it. A visit reads the newest state of an earlier round, so one
that is repeated after a crash begins where it began before; and what a visit leaves counts only if
the round's update has its report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.method import NOTHING
from fullfed.files import read_sealed, write_atomically, write_sealed


class States(Protocol):
    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        """The newest state from before ``round``; empty if there is none."""

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        """Keep the state after a visit in ``round``, and forget those no visit can need again."""

    def settle(self, round: int, clients: Collection[int]) -> None:
        """``round`` is over: forget the states of visits whose reports are not in its update."""


class StatesInMemory:
    """For as long as this process lives."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, str], dict[int, Mapping[str, Tensor]]] = {}

    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        rounds = self._states.get((client, name), {})
        newest = max((r for r in rounds if r < round), default=None)
        return NOTHING if newest is None else rounds[newest]

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        rounds = self._states.setdefault((client, name), {})
        rounds[round] = {name: tensor.clone() for name, tensor in state.items()}
        for old in sorted(r for r in rounds if r < round)[:-1]:
            del rounds[old]

    def settle(self, round: int, clients: Collection[int]) -> None:
        for (client, _), rounds in self._states.items():
            if client not in clients:
                rounds.pop(round, None)


class StatesOnDisk:
    """In a folder: a folder for each client, with a file for each name and round and an index.

    The index is sealed and has the SHA-256 of every state that counts, so that a state which was
    changed, deleted or put in the place of another is found. It is written after the state: one
    that a crash kept out of it is of a visit that is repeated, or does not count.

    Args:
        folder: made when there is something to keep.
        run: names the run whose states these are.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run

    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        rounds = self._index(client).get(name, {})
        newest = max((r for r in rounds if r < round), default=None)
        if newest is None:
            return NOTHING
        path = self._path(client, name, newest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(path) from error
        if hashlib.sha256(data).hexdigest() != rounds[newest]:
            raise _unreadable(path)
        return safetensors.torch.load(data)

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        index = self._index(client)
        if not index:  # so that a state without an index has lost it
            self._write_index(client, index)
        data = safetensors.torch.save({n: t.cpu().contiguous() for n, t in state.items()})
        write_atomically(self._path(client, name, round), data)
        rounds = index.setdefault(name, {})
        for old in sorted(r for r in rounds if r < round)[:-1]:
            del rounds[old]
        rounds[round] = hashlib.sha256(data).hexdigest()
        self._write_index(client, index)
        counting = {self._path(client, name, r) for r in rounds}
        for path in self._index_file(client).parent.glob(f"{name}.*.safetensors"):
            if path not in counting:
                path.unlink()

    def forget(self, first: int) -> None:
        """``first`` and later rounds are undone: forget the states of their visits. A client's last
        two are kept, so one that went further has none from before, and begins anew."""
        for file in self._folder.glob("*/index.json"):
            client = int(file.parent.name)
            states = {
                name: {round: sha for round, sha in rounds.items() if round < first}
                for name, rounds in self._index(client).items()
            }
            self._write_index(client, states, first)
            for path in file.parent.glob("*.safetensors"):
                if int(path.name.split(".")[-2]) >= first:
                    path.unlink()

    @property
    def has_forgotten(self) -> bool:
        """Whether states that are here were looked through for those of undone rounds."""
        clients = (int(file.parent.name) for file in self._folder.glob("*/index.json"))
        return any(self._undone(client) >= 0 for client in clients)

    def settle(self, round: int, clients: Collection[int]) -> None:
        for path in self._folder.glob(f"*/*.{round}.safetensors"):
            if (client := int(path.parent.name)) not in clients:
                index = self._index(client)
                for rounds in index.values():
                    rounds.pop(round, None)
                self._write_index(client, index)
                path.unlink(missing_ok=True)

    def check(self, newest: Mapping[int, int]) -> None:
        """See that the state is there which each client's ``newest`` counted visit left, unless
        the visit was before a round that was undone.

        Raises:
            UserError: it is not.
        """
        for client, round in newest.items():
            there = any(round in rounds for rounds in self._index(client).values())
            if not there and round >= self._undone(client):
                raise UserError(
                    f"{self._index_file(client)}: what the client kept of round {round} is missing "
                    "here; restore a copy of the folder."
                )

    def _index(self, client: int) -> dict[str, dict[int, str]]:
        """The SHA-256 of each state that counts, by name and round."""
        states = self._read_index(client)["states"]
        return {name: {int(r): sha for r, sha in own.items()} for name, own in states.items()}

    def _undone(self, client: int) -> int:
        """States from before this round may be gone, because rounds from it on were undone; -1 if
        none were."""
        return int(self._read_index(client)["undone"])

    def _read_index(self, client: int) -> dict[str, Any]:
        path = self._index_file(client)
        if not path.exists() and not any(path.parent.glob("*.safetensors")):
            return {"states": {}, "undone": -1}
        absent = f"{path}: the file is missing; restore a copy of the folder."
        return read_sealed(path, absent, self._owner(client))

    def _write_index(
        self, client: int, index: Mapping[str, Mapping[int, str]], undone: int | None = None
    ) -> None:
        path = self._index_file(client)
        path.parent.mkdir(parents=True, exist_ok=True)
        states = {name: {str(r): sha for r, sha in own.items()} for name, own in index.items()}
        undone = self._undone(client) if undone is None else undone
        write_sealed(path, {"states": states, "undone": undone}, self._owner(client))

    def _owner(self, client: int) -> str:
        return f"{self._run} {client}"

    def _index_file(self, client: int) -> Path:
        return self._folder / str(client) / "index.json"

    def _path(self, client: int, name: str, round: int) -> Path:
        return self._folder / str(client) / f"{name}.{round}.safetensors"


class StatesOfVisits(StatesOnDisk):
    """The same folder in a process that only visits: another one sees to what counts."""

    def settle(self, round: int, clients: Collection[int]) -> None:
        """That is the other process's."""


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path}: this is not the state that the client kept; restore a copy of it.")
