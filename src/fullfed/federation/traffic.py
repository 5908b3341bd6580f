"""What bringing a client up to date costs: the log itself is the traffic."""

from __future__ import annotations

from collections.abc import Sequence


class Traffic:
    """Knows which model version each client holds.

    Everybody holds the base model, version 0. A client that missed updates is sent them, or
    the model itself where that is fewer bytes.

    Args:
        snapshot_bytes: what sending the whole model costs.
        cumulative: the newest update replaces all earlier ones.
    """

    def __init__(self, snapshot_bytes: int, cumulative: bool = False) -> None:
        self._snapshot_bytes = snapshot_bytes
        self._cumulative = cumulative
        self._versions: dict[int, int] = {}

    def found(self, client: int, version: int) -> None:
        """The client itself says which version it holds."""
        self._versions[client] = version

    def missed(self, client: int, version: int) -> range:
        """The versions whose updates ``client`` needs to get to ``version``."""
        missed = range(self._versions.get(client, 0), version)
        return missed[-1:] if self._cumulative else missed

    def by_snapshot(self, client: int, version: int, update_sizes: Sequence[int]) -> bool:
        """Whether several updates that ``client`` missed are more bytes than the model itself."""
        missed = self.missed(client, version)
        return len(missed) > 1 and self._snapshot_bytes < sum(update_sizes[n] for n in missed)

    def catch_up(self, client: int, version: int, update_sizes: Sequence[int]) -> int:
        """Bytes that take ``client`` to ``version``, which it holds from now on.

        ``update_sizes[n]`` are the encoded bytes of the update from version n to n + 1.
        """
        needed = sum(update_sizes[n] for n in self.missed(client, version))
        self._versions[client] = version
        return min(needed, self._snapshot_bytes)
