"""What clients keep between visits: residuals, optimizer states. It never leaves them.

A state belongs to a client, has a name, and is that after a visit in some round. A visit reads the
newest state of an earlier round, so one that is repeated after a crash begins where it began
before; and what a visit leaves counts only if the round's update has its report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.method import NOTHING
from fullfed.files import write_atomically


class States(Protocol):
    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        """The newest state from before ``round``; empty if there is none."""

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        """Keep the state after a visit in ``round``, and forget those no visit can need again."""

    def settle(self, round: int, merged: Collection[int]) -> None:
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

    def settle(self, round: int, merged: Collection[int]) -> None:
        for (client, _), rounds in self._states.items():
            if client not in merged:
                rounds.pop(round, None)


class StatesOnDisk:
    """In a folder: a folder for each client, a file for each name and round.

    Args:
        folder: made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        rounds = [r for r in self._rounds(client, name) if r < round]
        if not rounds:
            return NOTHING
        path = self._path(client, name, max(rounds))
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: the client's state cannot be read; restore a copy of it."
            ) from error

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        path = self._path(client, name, round)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        write_atomically(path, safetensors.torch.save(tensors))
        for old in sorted(r for r in self._rounds(client, name) if r < round)[:-1]:
            self._path(client, name, old).unlink()

    def settle(self, round: int, merged: Collection[int]) -> None:
        for path in self._folder.glob(f"*/*.{round}.safetensors"):
            if int(path.parent.name) not in merged:
                path.unlink(missing_ok=True)

    def _rounds(self, client: int, name: str) -> Iterator[int]:
        for path in (self._folder / str(client)).glob(f"{name}.*.safetensors"):
            yield int(path.name.split(".")[-2])

    def _path(self, client: int, name: str, round: int) -> Path:
        return self._folder / str(client) / f"{name}.{round}.safetensors"
