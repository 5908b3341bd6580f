"""Who takes part in a run on Flower: members.json in the run's folder."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import BaseModel, ValidationError

from fullfed.errors import UserError
from fullfed.files import write_json

_MEMBERS = "members.json"  # in a run's folder


class Partner(BaseModel):
    """A partner's name, its node's public key (PEM), and the samples that were declared for it."""

    name: str
    key: str
    samples: int | None = None


class Members(BaseModel):
    """members.json.

    run: the run's name, 16 random hexadecimal digits. clients: partners, by their numbers.
    federation: the folder of the federation, which knows what key each partner has now.
    """

    run: str
    clients: list[Partner]
    federation: str = ""

    def samples(self) -> dict[int, int]:
        """Those declared, by client."""
        numbered = enumerate(self.clients)
        return {n: c.samples for n, c in numbered if c.samples is not None}


def fix_members(run_folder: Path, clients: list[Partner], federation: Path, anew: bool) -> Members:
    """Name a run and fix its members, unless that was done before and is not to be done anew; where
    the federation's folder is may change.

    Raises:
        UserError: the file was changed.
    """
    members = None if anew else read_members(run_folder)
    run, clients = (
        (secrets.token_hex(8), clients) if members is None else (members.run, members.clients)
    )
    fixed = Members(run=run, clients=clients, federation=str(federation))
    write_json(run_folder / _MEMBERS, fixed.model_dump())
    return fixed


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
