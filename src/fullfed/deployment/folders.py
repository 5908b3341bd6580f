"""The folders of a federation and what is where in them: the server's, a partner's, and a run's.

DIR/server/          stays with whoever runs the server
  federation.toml    address, port and partners
  ca.crt ca.key      the federation's certificate authority
  server.pem server.key
  keys/NAME.pub      each partner's public key
  app/               the Flower app of the newest run: fullfed's, in three small files
  flower/            Flower's own home: its configuration, database and log
  runs/              one folder a run
    members.json     the run's name, and which partner is which client; fixed when the run begins
    server.json      why the ServerApp gave up, if it did
    server.lock      locked as long as a ServerApp is at work
DIR/partners/NAME/   goes to partner NAME, whole and by a private way
  node.toml          server, name and model
  ca.crt node.key
  worker.log node.log, flower/, state/   what its node makes there
"""

from __future__ import annotations

import json
import re
import secrets
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fullfed.config import describe_validation
from fullfed.deployment.identities import (
    certify_server,
    create_authority,
    create_node_key,
    public_key_pem,
)
from fullfed.errors import UserError
from fullfed.files import locked, write_atomically, write_json

Port = Annotated[int, Field(gt=0, lt=65536)]
Settings = TypeVar("Settings", bound=BaseModel)
_PARTNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


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


def _read(path: Path, kind: type[Settings]) -> Settings:
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


def _write(path: Path, settings: BaseModel) -> None:
    write_atomically(path, tomli_w.dumps(settings.model_dump(exclude_none=True)).encode())


@dataclass(frozen=True)
class Partner:
    """Who takes part.

    Attributes:
        name: the partner's.
        key: its node's public key, PEM.
    """

    name: str
    key: str


class NodeFolder:
    """DIR/partners/NAME.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "node.toml"
        self.authority = path / "ca.crt"
        self.key = path / "node.key"
        self.worker_address = path / "worker.json"  # where the worker says how to reach it
        self.state = path / "state"
        self.flower = path / "flower"

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
        _write(self.settings_file, settings)


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

    @property
    def local_address(self) -> str:
        """What the server is reached by on its own machine."""
        return f"127.0.0.1:{self.settings().port}"

    def public_key(self, partner: str) -> Path:
        return self.path / "keys" / f"{partner}.pub"

    def partners(self) -> list[Partner]:
        """Those of the runs that begin now, in the order of their client numbers."""
        names = self.settings().partners
        return [Partner(name, public_key_pem(self.public_key(name))) for name in names]

    def renew_certificate(self) -> None:
        """Give the server a new certificate; partners need nothing new."""
        hosts = list(dict.fromkeys([self.settings().address, "localhost", "127.0.0.1"]))
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
        self._set_partners((*settings.partners, partner))
        return folder.path

    def remove(self, partner: str) -> None:
        """Take a partner out.

        Raises:
            UserError: there is no such partner.
        """
        partners = self.settings().partners
        if partner not in partners:
            raise UserError(
                f"{partner}: there is no such partner; there are {', '.join(partners)}."
            )
        self.public_key(partner).unlink(missing_ok=True)
        self._set_partners(tuple(name for name in partners if name != partner))

    def _set_partners(self, names: tuple[str, ...]) -> None:
        _write(self.settings_file, self.settings().model_copy(update={"partners": names}))

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
        settings = FederationFile(address=address, port=port, listen=listen, partners=())
        _write(folder.settings_file, settings)
        create_authority(folder.authority, folder.authority_key)
        folder.renew_certificate()
        for partner in partners:
            folder.add(partner, model)
        return folder


@dataclass(frozen=True)
class Members:
    """
    Attributes:
        run: names the run, 16 random hexadecimal digits.
        clients: in the order of their numbers.
    """

    run: str
    clients: Sequence[Partner]


class MembersFile:
    """members.json in a run's folder; a run in Flower's simulation has none."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / "members.json"

    def create(self, clients: Sequence[Partner]) -> None:
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
            clients = [Partner(**partner) for partner in content["clients"]]
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
