"""What a federation's server and its partners have in TOML: federation.toml and node.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fullfed.config import describe_validation
from fullfed.errors import UserError
from fullfed.files import write_atomically

Port = Annotated[int, Field(gt=0, lt=65536)]
Settings = TypeVar("Settings", bound=BaseModel)


class FederationFile(BaseModel):
    """federation.toml.

    address: what partners reach the server by; listen: the interface the server listens on.
    partners: their names; a partner's place is its client number in the runs that begin.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    address: str
    port: Port
    listen: str
    partners: tuple[str, ...]


class NodeFile(BaseModel):
    """node.toml.

    server: host:port. name: the partner's. model: the node's copy of the base model, a folder,
    a hub name or "builtin". data: what ``join --data`` says if it says nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    server: str
    name: str
    model: str = "builtin"
    device: str = "auto"
    data: str | None = None


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """
    Raises:
        UserError: the file is not as it should be.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        return kind.model_validate(tables)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: this is not valid TOML ({error}).") from error
    except ValidationError as error:
        raise UserError(f"{path}: {describe_validation(error)}.") from error


def write_settings(path: Path, settings: BaseModel) -> None:
    write_atomically(path, tomli_w.dumps(settings.model_dump(exclude_none=True)).encode())
