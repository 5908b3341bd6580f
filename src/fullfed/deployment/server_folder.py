"""The folder of a federation's server.

DIR/server/          stays with whoever runs the server
  federation.toml    address, port and partners
  ca.crt ca.key      the federation's certificate authority
  server.pem server.key
  keys/NAME.pub      each partner's public key
  app/               the Flower app: fullfed's, in three small files
  flower/            Flower's own home: its configuration, database and log
  runs/              one folder a run
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fullfed.deployment.app_folder import write_app
from fullfed.deployment.identities import (
    certify_server,
    create_authority,
    create_node_key,
    public_key_pem,
)
from fullfed.deployment.node_folder import NodeFolder
from fullfed.deployment.run_files import Member
from fullfed.deployment.settings import FederationFile, NodeFile, read_settings, write_settings
from fullfed.errors import UserError
from fullfed.files import write_atomically

_PARTNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


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
        return read_settings(self.settings_file, FederationFile)

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
        write_settings(self.settings_file, settings)

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
        write_app(folder.app)
        for partner in partners:
            folder.add(partner, model)
        return folder
