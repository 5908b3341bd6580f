"""The folder that a partner gets of a federation.

DIR/partners/NAME/   goes to partner NAME, whole and by a private way
  node.toml          server, name and model
  ca.crt node.key
  worker.log node.log, flower/, state/   what its node makes there
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fullfed.deployment.settings import NodeFile, read_settings, write_settings
from fullfed.errors import UserError


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
        return read_settings(self.settings_file, NodeFile)

    def write(self, settings: NodeFile) -> None:
        write_settings(self.settings_file, settings)
