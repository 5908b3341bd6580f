"""What each client holds of a run, and so what it has to be sent: the log itself is the traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fullfed.federation.log import Log


class Traffic:
    """Knows which model version each client holds.

    Everybody holds the base model, version 0. A client that missed several updates is sent them,
    or a snapshot of the model where that is fewer bytes. A client without a replica is sent its
    static weights with its first plan.

    Args:
        log: of the run.
        snapshot_bytes: what sending the newest version whole costs.
        cumulative: the newest update replaces all earlier ones.
    """

    def __init__(
        self, log: Log, snapshot_bytes: Callable[[], int], cumulative: bool = False
    ) -> None:
        self._log = log
        self._snapshot_bytes = snapshot_bytes
        self._cumulative = cumulative
        self._versions: dict[int, int] = {}  # of each client that has been sent something

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take over what the lines of the run's metrics.jsonl say was sent to whom."""
        for record in records:
            for client, down in record["bytes"]["down_by_client"].items():
                if down > 0:
                    self._versions[int(client)] = record["round"]

    def found(self, client: int, version: int) -> None:
        """The client itself says which version it holds; -1 if it knows nothing of the run."""
        if version < 0:
            self._versions.pop(client, None)
        else:
            self._versions[client] = version

    def is_new(self, client: int) -> bool:
        """Whether ``client`` has been sent nothing yet."""
        return client not in self._versions

    def missed(self, client: int, version: int) -> range:
        """The versions whose updates ``client`` needs to get to ``version``."""
        missed = range(self._versions.get(client, 0), version)
        return missed[-1:] if self._cumulative else missed

    def by_snapshot(self, client: int, version: int) -> bool:
        """Whether several updates that ``client`` missed are more bytes than a snapshot."""
        missed = self.missed(client, version)
        return len(missed) > 1 and self._snapshot_bytes() < self._bytes(missed)

    def catch_up(self, client: int, version: int) -> int:
        """Bytes that take ``client`` to ``version``, which it holds from now on."""
        by_snapshot, missed = self.by_snapshot(client, version), self.missed(client, version)
        self._versions[client] = version
        return self._snapshot_bytes() if by_snapshot else self._bytes(missed)

    def _bytes(self, versions: Iterable[int]) -> int:
        """Of the updates that start from these versions."""
        sizes = self._log.sizes
        return sum(sizes[version] for version in versions)
