"""Who takes part in a run on Flower, and in which federation: two files in the run's folder.

members.json is fixed when the run begins, and a part of what it is bound to. federation.json is
written at every start, because a federation's folder may be moved.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from pydantic import BaseModel, ValidationError

from fullfed.errors import UserError
from fullfed.files import write_json

_MEMBERS, _FEDERATION = "members.json", "federation.json"  # in a run's folder


class Partner(BaseModel):
    """A partner's name, its node's public key (PEM), and the samples that were declared for it."""

    name: str
    key: str
    samples: int | None = None


class Members(BaseModel):
    """members.json.

    run: the run's name, 16 random hexadecimal digits. clients: partners, by their numbers.
    """

    run: str
    clients: list[Partner]

    def samples(self) -> dict[int, int]:
        """Those declared, by client."""
        numbered = enumerate(self.clients)
        return {n: c.samples for n, c in numbered if c.samples is not None}


def fix_members(run_folder: Path, clients: list[Partner], anew: bool) -> Members:
    """Name a run and fix its members, unless that was done before and is not to be done anew.

    Raises:
        UserError: the file was changed.
    """
    members = None if anew else read_members(run_folder)
    if members is None:
        members = Members(run=secrets.token_hex(8), clients=clients)
        write_json(run_folder / _MEMBERS, members.model_dump())
    return members


def read_members(run_folder: Path) -> Members | None:
    """The members of a run; None for one in Flower's simulation, which has no members.json.

    Raises:
        UserError: the file was changed.
    """
    file = run_folder / _MEMBERS
    if not file.exists():
        return None
    try:
        return Members.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{file}: this is not what the run wrote; restore a copy of it.") from error


def write_federation(run_folder: Path, federation: Path) -> None:
    """Keep where the federation of a run is."""
    write_json(run_folder / _FEDERATION, {"federation": str(federation)})


def read_federation(run_folder: Path) -> Path | None:
    """Where the federation of a run was at the last start; None for a run of no federation."""
    file = run_folder / _FEDERATION
    return Path(json.loads(file.read_bytes())["federation"]) if file.exists() else None
