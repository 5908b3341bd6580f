"""A federation's folder, and the folder that each partner gets of it.

DIR/server/          stays with whoever runs the server
  federation.toml    address, port and partners
  ca.crt ca.key      the federation's certificate authority
  server.pem server.key
  keys/NAME.pub      each partner's public key
  app/               the Flower app: fullfed's, in three small files
  flower/            Flower's own home: its configuration, database and log
  runs/              one folder a run
DIR/partners/NAME/   goes to partner NAME, whole and by a private way
  node.toml          server, name and model
  ca.crt node.key
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fullfed.deployment.identities import (
    certify_server,
    create_authority,
    create_node_key,
    public_key_pem,
)
from fullfed.deployment.run_files import Member
from fullfed.errors import UserError
from fullfed.federation.recipe import describe_validation
from fullfed.files import write_atomically

_PARTNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

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


class ServerFolder:
    """DIR/server.

    Args:
        federation: DIR.
    """

    def __init__(self, federation: Path) -> None:
        self.federation = federation.absolute()
        self.path = self.federation / "server"
        self.settings_file = self.path / "federation.toml"
        self.authority = self.path / "ca.crt"
        self.authority_key = self.path / "ca.key"
        self.certificate = self.path / "server.pem"
        self.key = self.path / "server.key"
        self.app = self.path / "app"
        self.flower = self.path / "flower"
        self.runs = self.path / "runs"

    def settings(self) -> FederationFile:
        """
        Raises:
            UserError: there is no federation here, or federation.toml is not as it should be.
        """
        if not self.settings_file.is_file():
            raise UserError(
                f"{self.federation}: there is no federation here; make one with "
                "`fullfed federation init`."
            )
        return _read(self.settings_file, FederationFile)

    def public_key(self, partner: str) -> Path:
        return self.path / "keys" / f"{partner}.pub"

    def members(self) -> list[Member]:
        """The partners of the runs that begin now, in the order of their client numbers."""
        names = self.settings().partners
        return [Member(name, public_key_pem(self.public_key(name))) for name in names]

    def renew_certificate(self) -> None:
        """Give the server a new certificate; partners need nothing new."""
        settings = self.settings()
        hosts = list(dict.fromkeys([settings.address, "localhost", "127.0.0.1"]))
        certify_server(self.authority, self.authority_key, self.certificate, self.key, hosts)

    def add(self, partner: str, model: str, public_key: Path | None = None) -> Path:
        """Make a partner's folder and take the partner in; return the folder.

        Args:
            public_key: of a key pair that the partner made; without one, a pair is made here.

        Raises:
            UserError: the name is taken or no name, or the key is no key.
        """
        settings = self.settings()
        if not _PARTNER.fullmatch(partner):
            raise UserError(f"{partner!r}: a partner's name is letters, digits, '.', '_' and '-'.")
        if partner in settings.partners:
            raise UserError(f"{partner}: there is a partner of this name already; take another.")
        folder = NodeFolder(self.federation / "partners" / partner)
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.public_key(partner).parent.mkdir(exist_ok=True)
        if public_key is None:
            create_node_key(folder.key, self.public_key(partner))
        else:
            public_key_pem(public_key)
            write_atomically(self.public_key(partner), public_key.read_bytes())
        write_atomically(folder.authority, self.authority.read_bytes())
        server = f"{settings.address}:{settings.port}"
        folder.write(NodeFile(server=server, name=partner, model=model))
        self._write(settings.model_copy(update={"partners": (*settings.partners, partner)}))
        return folder.path

    def remove(self, partner: str) -> None:
        """Take a partner out.

        Raises:
            UserError: there is no such partner.
        """
        settings = self.settings()
        if partner not in settings.partners:
            known = ", ".join(settings.partners)
            raise UserError(f"{partner}: there is no such partner; there are {known}.")
        self.public_key(partner).unlink(missing_ok=True)
        rest = tuple(name for name in settings.partners if name != partner)
        self._write(settings.model_copy(update={"partners": rest}))

    def _write(self, settings: FederationFile) -> None:
        write_atomically(self.settings_file, tomli_w.dumps(settings.model_dump()).encode())

    @staticmethod
    def create(
        federation: Path,
        partners: Sequence[str],
        address: str,
        port: int,
        listen: str,
        model: str,
    ) -> ServerFolder:
        """Make a new federation's folder, partners' folders included.

        Raises:
            UserError: there is something here already, or an argument is out of range.
        """
        folder = ServerFolder(federation)
        if folder.path.exists():
            raise UserError(f"{federation}: there is a federation here already; name a new folder.")
        folder.path.mkdir(parents=True, mode=0o700)
        folder._write(FederationFile(address=address, port=port, listen=listen, partners=()))
        create_authority(folder.authority, folder.authority_key)
        folder.renew_certificate()
        _write_app(folder.app)
        for partner in partners:
            folder.add(partner, model)
        return folder


@dataclass(frozen=True)
class NodeFolder:
    """A partner's folder.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "node.toml"

    @property
    def authority(self) -> Path:
        return self.path / "ca.crt"

    @property
    def key(self) -> Path:
        return self.path / "node.key"

    @property
    def worker_address(self) -> Path:
        """Where the resident worker says how to reach it."""
        return self.path / "worker.json"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def flower(self) -> Path:
        return self.path / "flower"

    def settings(self) -> NodeFile:
        """
        Raises:
            UserError: this is no partner's folder, or node.toml is not as it should be.
        """
        if not self.settings_file.is_file():
            raise UserError(
                f"{self.path}: there is no node.toml here; name the folder that the "
                "federation's server gave you."
            )
        if not self.key.is_file():
            raise UserError(f"{self.key}: the node's private key is missing; put it there.")
        return _read(self.settings_file, NodeFile)

    def write(self, settings: NodeFile) -> None:
        tables = settings.model_dump(exclude_none=True)
        write_atomically(self.settings_file, tomli_w.dumps(tables).encode())


def _read(path: Path, kind: type[Settings]) -> Settings:
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return kind.model_validate(tables)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is not valid TOML ({error}).") from error
    except ValidationError as error:
        raise UserError(f"{path}: {describe_validation(error)}.") from error


_APP = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fullfed-app"
version = "1.0.0"
description = "fullfed on Flower: the app is the installed fullfed"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fullfed"

[tool.flwr.app.components]
serverapp = "fullfed_app.server:app"
clientapp = "fullfed_app.client:app"

[tool.flwr.app.config]
run = ""
"""


def _write_app(folder: Path) -> None:
    """The Flower app: it names what is installed, and brings no code of its own."""
    package = folder / "fullfed_app"
    package.mkdir(parents=True)
    write_atomically(folder / "pyproject.toml", _APP.encode())
    write_atomically(package / "__init__.py", b"")
    for side, home in (("server", "deployment"), ("client", "engines.flower")):
        # An assignment, because Flower looks for one without importing the module.
        code = f"from fullfed.{home} import {side}_app\n\napp = {side}_app.app\n"
        write_atomically(package / f"{side}.py", code.encode())
