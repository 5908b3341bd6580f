"""The folders of a federation and what is where in them: the server's, a partner's, and a run's.

DIR/server/          stays with whoever runs the server
  federation.toml    address, port and partners
  ca.crt ca.key      the federation's certificate authority
  server.pem server.key
  keys/NAME.pub      each partner's public key
  keys/replaced.json the key (PEM) that took each replaced key's place
  audit.jsonl        who did what when; audit.head beside it says how many lines there are
  app/               the Flower app of the newest run: fullfed's, in three small files
  flower/            Flower's own home: its configuration, database and log
    control.key      what the operator's commands bear, new whenever the server is started
    nodes.json       the Flower node id of each registered key (PEM)
  runs/              one folder a run
    members.json     the run's name, and which partner is which client; fixed when the run begins
    federation.json  where the federation is
    server.json      why the ServerApp gave up, if it did
    server.lock      locked as long as a ServerApp is at work
DIR/partners/NAME/   goes to partner NAME, whole and by a private way
  node.toml          server, name and model
  ca.crt node.key
  node.key.next      the node's next key, from when it was asked for to when the server lets it in
  worker.log node.log, flower/, state/   what its node makes there
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fullfed.config_data import ColumnsTable
from fullfed.config_values import Positive
from fullfed.deployment.audit import Audit
from fullfed.deployment.identities import (
    certify_server,
    check_host,
    create_authority,
    create_node_key,
    in_pem,
    key_fingerprint,
    load_public_key,
    public_key_pem,
)
from fullfed.deployment.members import Partner
from fullfed.deployment.meter import PartnerLimits
from fullfed.engines.node_limits import Limits
from fullfed.errors import UserError
from fullfed.files import private_files, write_atomically, write_json
from fullfed.validation import describe_validation, keys_of

CONTROL_KEY = "control.key"  # in Flower's home
CONNECTION = "federation"  # what Flower's configuration calls the server
_PARTNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class _Settings(BaseModel):
    """What a TOML file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What the file says; a UserError if it is not as it should be."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}: this is not valid TOML ({error}).") from error
        except ValidationError as error:
            raise UserError(f"{path}: {describe_validation(error, keys=keys_of(cls))}.") from error

    def write(self, path: Path) -> None:
        tables = tomli_w.dumps(self.model_dump(exclude_none=True))
        write_atomically(path, tables.encode(), mode=0o600)


class FederationFile(_Settings):
    """federation.toml.

    address: what partners reach the server by; listen: the interface the server listens on.
    model: the base model, as partners have it unless they say otherwise. partners: their names; a
    partner's place is its client number in the runs that begin. limits: what a partner's node may
    ask of the server; limits_of: the same of single partners, by name. samples: of each partner, by
    name, the most that a report counts as; a partner that is not named counts as at most four times
    the cohort's median.
    """

    address: str
    port: Annotated[int, Field(gt=0, lt=65536)]
    listen: str
    model: str = "builtin"
    partners: tuple[str, ...]
    limits: PartnerLimits = PartnerLimits()
    limits_of: dict[str, PartnerLimits] = {}
    samples: dict[str, Positive] = {}

    @model_validator(mode="after")
    def _of_partners(self) -> FederationFile:
        for table in ("limits_of", "samples"):
            for name in getattr(self, table):
                if name not in self.partners:
                    raise ValueError(f"{table}.{name}: there is no partner {name!r}")
        return self


class NodeFile(_Settings):
    """node.toml.

    server: host:port. name: the partner's. model: the node's copy of the base model, a folder,
    a hub name or "builtin". data: the node's training data where ``join`` is given no --data, a
    file, a folder, a pattern of file names or a hub name; columns, ignore: what is said of their
    fields, as in a recipe's table ``data``. trainer: a function of the owner's that trains in
    visits in the place of the run's own, as "module:name"; the module is found where Python finds
    others. partners: files with the public keys of those whom the node takes part in secure
    sums with, or "all" whom the server names. devices: over how many GPUs (or, on the CPU, how many
    processes) the model is divided. limits: what the server may ask of the node.
    """

    server: str
    name: str
    model: str = "builtin"
    device: str = "auto"
    data: str | None = None
    columns: ColumnsTable = ColumnsTable()
    ignore: tuple[str, ...] = ()
    trainer: str | None = None
    partners: Literal["all"] | tuple[str, ...] = "all"
    devices: Positive = 1
    limits: Limits = Limits()


class NodeFolder:
    """DIR/partners/NAME."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "node.toml"
        self.authority = path / "ca.crt"
        self.key = path / "node.key"
        self.next_key = path / "node.key.next"
        self.secret = path / "secret.key"  # of which rounding and noise follow
        self.worker_address = path / "worker.json"  # where the worker says how to reach it
        self.state = path / "state"
        self.flower = path / "flower"

    def settings(self) -> NodeFile:
        """What node.toml says.

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
        return NodeFile.read(self.settings_file)

    def write(self, settings: NodeFile) -> None:
        settings.write(self.settings_file)


class ServerFolder:
    """DIR/server, of the federation in DIR."""

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
        self.superlink_log = self.flower / "superlink.log"
        self.control_key = self.flower / CONTROL_KEY
        self.replaced_keys = self.path / "keys" / "replaced.json"
        self.nodes = self.flower / "nodes.json"
        self.runs = self.path / "runs"
        self.audit_file = self.path / "audit.jsonl"
        self.audit = Audit(self.audit_file, self.authority, self.certificate, self.key)

    def settings(self) -> FederationFile:
        """What federation.toml says.

        Raises:
            UserError: there is no federation here, or federation.toml is not as it should be.
        """
        if not self.settings_file.is_file():
            raise UserError(
                f"{self.federation}: there is no federation here; make one with "
                "`fullfed federation init`."
            )
        return FederationFile.read(self.settings_file)

    @property
    def local_address(self) -> str:
        """What the server is reached by on its own machine, and by its operator alone.

        Empty before it was first started.
        """
        file = self.flower / "config.toml"
        if not file.exists():
            return ""
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        return str(tables["superlink"][CONNECTION]["address"])

    def public_key(self, partner: str) -> Path:
        return self.path / "keys" / f"{partner}.pub"

    def partners(self) -> list[Partner]:
        """Those of the runs that begin now, in the order of their client numbers."""
        settings = self.settings()
        return [
            Partner(
                name=name,
                key=public_key_pem(self.public_key(name)),
                samples=settings.samples.get(name),
            )
            for name in settings.partners
        ]

    def limits(self) -> dict[str, PartnerLimits]:
        """Those of single partners, by their keys (PEM)."""
        limits = self.settings().limits_of
        return {public_key_pem(self.public_key(name)): table for name, table in limits.items()}

    def partner(self, name: str) -> str:
        """The name.

        Raises:
            UserError: it is no partner's.
        """
        partners = self.settings().partners
        if name not in partners:
            raise UserError(f"{name}: there is no such partner; there are {', '.join(partners)}.")
        return name

    def replacements(self) -> dict[str, str]:
        """The key (PEM) that has taken each replaced key's place."""
        if not self.replaced_keys.exists():
            return {}
        replaced: dict[str, str] = json.loads(self.replaced_keys.read_bytes())
        return replaced

    def keys_of(self, members: Sequence[Partner]) -> list[bytes]:
        """The public key of each member of a run as it is now, in PEM."""
        replaced, keys = self.replacements(), [member.key for member in members]
        for n, key in enumerate(keys):
            while key in replaced:
                key = replaced[key]
            keys[n] = key
        return [key.encode() for key in keys]

    @private_files()
    def replace_key(self, partner: str, key: bytes, file: Path) -> None:
        """Give a partner another public key.

        Args:
            key: in OpenSSH's format.
            file: where it was read, for the error.

        Raises:
            UserError: the key is or was somebody's.
        """
        new = in_pem(load_public_key(key, file))
        old, replaced = public_key_pem(self.public_key(partner)), self.replacements()
        if new in {*replaced, *(member.key for member in self.partners())}:
            raise UserError(f"{file}: the key is, or was, in use here; make a new one.")
        self.audit.record("rotate", partner=partner, key=key_fingerprint(key))
        write_json(self.replaced_keys, {**replaced, old: new})
        write_atomically(self.public_key(partner), key + b"\n")

    @private_files()
    def rotate(self, authority: bool = False) -> None:
        """Give the server a new key and certificate, which partners need not know of.

        Args:
            authority: also to the federation's authority; then partners need its new ca.crt.
        """
        with self.audit.paused():
            if authority:
                create_authority(self.authority, self.authority_key)
            self._certify()
        self.audit.record("rotate", keys=["authority", "server"] if authority else ["server"])
        for partner in self.settings().partners if authority else ():
            folder = NodeFolder(self.federation / "partners" / partner)
            if folder.path.is_dir():
                write_atomically(folder.authority, self.authority.read_bytes())

    def _certify(self) -> None:
        hosts = list(dict.fromkeys([self.settings().address, "localhost", "127.0.0.1"]))
        certify_server(self.authority, self.authority_key, self.certificate, self.key, hosts)

    @private_files()
    def add(self, partner: str, model: str | None = None, public_key: Path | None = None) -> Path:
        """Make a partner's folder and take the partner in; return the folder.

        Args:
            model: the base model as the partner has it; None for the federation's.
            public_key: of a key pair that the partner made; without one, a pair is made here.

        Raises:
            UserError: the name is taken or no name, or the key is no key.
        """
        settings = self.settings()
        _check_names([*settings.partners, partner])
        if public_key is not None:
            public_key_pem(public_key)
        self.audit.record("add", partner=partner)
        folder = NodeFolder(self.federation / "partners" / partner)
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.public_key(partner).parent.mkdir(exist_ok=True)
        if public_key is None:
            create_node_key(folder.key, self.public_key(partner))
        else:
            write_atomically(self.public_key(partner), public_key.read_bytes())
        write_atomically(folder.authority, self.authority.read_bytes())
        server = f"{settings.address}:{settings.port}"
        folder.write(NodeFile(server=server, name=partner, model=model or settings.model))
        self._set_partners((*settings.partners, partner))
        return folder.path

    @private_files()
    def remove(self, partner: str) -> None:
        """Take a partner out.

        Raises:
            UserError: there is no such partner.
        """
        self.partner(partner)
        self.audit.record("remove", partner=partner)
        self.public_key(partner).unlink(missing_ok=True)
        others = (name for name in self.settings().partners if name != partner)
        self._set_partners(tuple(others))

    def _set_partners(self, names: tuple[str, ...]) -> None:
        settings = self.settings()
        samples = {name: n for name, n in settings.samples.items() if name in names}
        limits = {name: table for name, table in settings.limits_of.items() if name in names}
        changes = {"partners": names, "samples": samples, "limits_of": limits}
        settings.model_copy(update=changes).write(self.settings_file)

    @staticmethod
    @private_files()
    def create(
        federation: Path, partners: Sequence[str], address: str, port: int, listen: str, model: str
    ) -> ServerFolder:
        """Make a new federation's folder, partners' folders included.

        Raises:
            UserError: there is something here already, or a name or the address is no such thing.
        """
        folder = ServerFolder(federation)
        if folder.path.exists():
            raise UserError(f"{federation}: there is a federation here already; name a new folder.")
        _check_names(partners)
        check_host(address)
        folder.path.mkdir(parents=True, mode=0o700)
        settings = FederationFile(
            address=address, port=port, listen=listen, model=model, partners=()
        )
        settings.write(folder.settings_file)
        create_authority(folder.authority, folder.authority_key)
        folder._certify()
        folder.audit.record("create", address=f"{address}:{port}", partners=list(partners))
        for partner in partners:
            folder.add(partner)
        return folder


def _check_names(partners: Sequence[str]) -> None:
    """Raise a UserError unless these can be the names of a federation's partners."""
    for partner in partners:
        if not _PARTNER.fullmatch(partner):
            raise UserError(f"{partner!r}: a partner's name is letters, digits, '.', '_' and '-'.")
        if partners.count(partner) > 1:
            raise UserError(f"{partner}: there is a partner of this name already; take another.")
