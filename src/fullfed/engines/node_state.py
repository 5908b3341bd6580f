"""What a node keeps on its disk of a run: how far its replica is, and what it takes to rebuild it.

settings.json               the task's settings, sealed, and the SHA-256 of what follows
scales.bin                  the codec's scales, where it has some
client.json                 the node's number in the run
static_weights.safetensors  of a node without a replica, which has no snapshot and no updates
snapshot.safetensors        the replica at some version
updates.log                 the updates since, and the one that led to the snapshot
../RUN.given.json           the rounds whose masked numbers went out (secure sums)
../RUN.ledger.json          the noisy steps that were made (record-level differential privacy)
rollbacks.json              the versions that the run was taken back to, as far as the node followed
states/                     the client's state between visits, where the method has one

Each file is bound to the run, so that a damaged file, or another run's, is found. Then the server
is asked for everything anew, but for the client's state, which only its operator can restore.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.federation.log import Log
from fullfed.federation.messages import MessageError, Update, decode
from fullfed.federation.replica import snapshot_version
from fullfed.federation.states import StatesOnDisk
from fullfed.files import read_sealed, write_atomically, write_sealed
from fullfed.payloads import Payload

_GIVEN, _LEDGER = ".given.json", ".ledger.json"


class GivenOnDisk:
    """The rounds of a run whose masked numbers a node has sent, on its disk.

    Args:
        file: where they are.
        run: names the run.
    """

    def __init__(self, file: Path, run: str) -> None:
        self._file, self._run = file, run

    def __len__(self) -> int:
        return len(self._read())

    def __contains__(self, round: object) -> bool:
        return round in self._read()

    def add(self, round: int, /) -> None:
        """Remember a round, for good."""
        write_sealed(self._file, {"rounds": sorted({*self._read(), round})}, self._run)

    def _read(self) -> list[int]:
        if not self._file.exists():
            return []
        return list(read_sealed(self._file, "", self._run)["rounds"])


class LedgerOnDisk:
    """The noisy steps that a node has made in a run, on its disk; see ``privacy.records.Ledger``.

    Whatever settings the run came with: each kind of step counts by itself.

    Args:
        file: where they are.
        run: names the run.
    """

    def __init__(self, file: Path, run: str) -> None:
        self._file, self._run = file, run

    def before(self, round: int) -> dict[tuple[float, float], int]:
        """The steps so far, in whatever rounds, by their noise and rate."""
        if not self._file.exists():
            return {}
        made = read_sealed(self._file, "", self._run)["steps"]
        return {(noise, rate): steps for noise, rate, steps in made}

    def add(self, noise: float, rate: float, steps: int) -> None:
        """Remember a visit's steps, for good."""
        spent = self.before(0)
        spent[noise, rate] = spent.get((noise, rate), 0) + steps
        made = [[*kind, count] for kind, count in sorted(spent.items())]
        write_sealed(self._file, {"steps": made}, self._run)


class NodeState:
    """The folder of one run on a node.

    Args:
        folder: of all runs' states.
        run: names the run.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.path = folder / run
        self._run = run
        self._settings_file = self.path / "settings.json"
        self._scales_file = self.path / "scales.bin"
        self._static_weights_file = self.path / "static_weights.safetensors"
        self._snapshot_file = self.path / "snapshot.safetensors"
        self._log_file = self.path / "updates.log"
        self._client_file = self.path / "client.json"
        self._log: Log | None = None
        self._rollbacks_file = self.path / "rollbacks.json"
        self.states = StatesOnDisk(self.path / "states", run)

    @property
    def begun(self) -> bool:
        """Whether the node knows the run."""
        return self._settings_file.exists()

    def read(self) -> tuple[bytes, bytes, bytes]:
        """The task's settings, the codec's scales, and the static weights; these are empty where
        there is a replica, and the scales where the codec has none.

        Raises:
            UserError: a file is missing, was damaged, or is of an earlier version.
        """
        absent = f"{self._settings_file}: the file is missing."
        sealed = read_sealed(self._settings_file, absent, self._run)
        if "scales" not in sealed:
            raise UserError(f"{self._settings_file}: this is of an earlier version of fullfed.")
        scales = _read(self._scales_file, sealed["scales"])
        weights = _read(self._static_weights_file, sealed["static_weights"])
        if self._client_file.exists():
            self._client()
        return sealed["settings"].encode("latin-1"), scales, weights

    def create(self, settings: bytes, scales: bytes, static_weights: Payload) -> None:
        """Begin the state of a new run, whose settings have been accepted.

        Args:
            scales: empty where the codec has none.
            static_weights: empty where the node is to hold a replica.
        """
        self.path.mkdir(parents=True, mode=0o700, exist_ok=True)
        for file, data in (
            (self._scales_file, scales),
            (self._static_weights_file, static_weights),
        ):
            if data:
                write_atomically(file, data)
        sealed = {
            "settings": settings.decode("latin-1"),  # any bytes have a text
            "scales": _sha256(scales),
            "static_weights": _sha256(static_weights),
        }
        write_sealed(self._settings_file, sealed, self._run)

    def use(self, most: int) -> None:
        """Keep this run's state and those of the others that were used last, ``most`` in all."""
        os.utime(self.path)
        others = [o for o in self.path.parent.iterdir() if o.is_dir() and o != self.path]
        others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
        for other in others[most - 1 :]:
            shutil.rmtree(other)

    @property
    def given(self) -> GivenOnDisk:
        """The rounds whose masked numbers the node has sent; kept when the run's state goes."""
        return GivenOnDisk(self.path.with_name(f"{self._run}{_GIVEN}"), self._run)

    @property
    def ledger(self) -> LedgerOnDisk:
        """The noisy steps that the node has made in the run; kept when the run's state goes."""
        return LedgerOnDisk(self.path.with_name(f"{self._run}{_LEDGER}"), self._run)

    def belongs_to(self, client: int) -> bool:
        """Whether the node is this client of the run; its first plan says which it is."""
        if not self._client_file.exists():
            write_sealed(self._client_file, {"client": client}, self._run)
        return self._client() == client

    def _client(self) -> int:
        return int(read_sealed(self._client_file, "", self._run)["client"])

    def remove(self) -> None:
        """Forget the task's settings and the replica; not the client's state, nor which rollbacks
        it has followed."""
        self.close()
        about = self._settings_file, self._scales_file, self._client_file
        for file in (*about, self._snapshot_file, self._log_file):
            file.unlink(missing_ok=True)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def restore(self, worker: Worker) -> None:
        """Take a worker that holds the base model to where the disk says the replica was.

        Raises:
            UserError: a file was damaged, or another process uses it.
        """
        if self._snapshot_file.exists():
            worker.replica.load_snapshot(self._snapshot_file, self._run)
        log = self._opened()
        for number in range(len(log)):
            update = self._update(log.read(number))
            if update.round >= worker.replica.version:
                worker.replica.apply(update)
            worker.last = update
        version = worker.replica.version
        if version > 0 and (worker.last is None or worker.last.round + 1 != version):
            raise UserError(f"{self._log_file}: the update that led to the snapshot is missing.")

    def _update(self, payload: Payload) -> Update:
        """The update in a record of the log."""
        try:
            return decode(payload, Update)
        except MessageError as error:
            raise UserError(f"{self._log_file}: this is not an update ({error}).") from error

    def follow_rollbacks(self, targets: tuple[int, ...]) -> bool:
        """Drop what the run no longer holds, where it was taken back since the node last heard.

        Args:
            targets: the versions that the run was taken back to, in their order.

        Returns:
            whether the node goes on from what is on its disk now, or from the base model.

        Raises:
            MessageError: the node knows of more.
            UserError: a file was damaged.
        """
        followed = self._followed()
        if targets == followed:
            return False
        if targets[: len(followed)] != followed:
            raise MessageError("it is from before the run was taken back to an earlier version")
        self._drop(min(targets[len(followed) :]))
        write_sealed(self._rollbacks_file, {"versions": list(targets)}, self._run)
        return True

    def _followed(self) -> tuple[int, ...]:
        file = self._rollbacks_file
        if not file.exists() and not self.states.has_forgotten:
            return ()
        absent = f"{file}: the file is missing; restore a copy of it."
        return tuple(read_sealed(file, absent, self._run)["versions"])

    def _drop(self, version: int) -> None:
        """Forget the updates from ``version`` on; and the snapshot if any of them is in it, so that
        the replica begins at the base model."""
        self.states.forget(version)
        if self._snapshot_file.exists() and snapshot_version(self._snapshot_file) > version:
            self.close()
            self._log_file.unlink(missing_ok=True)
            self._snapshot_file.unlink()
            return
        if not self._log_file.exists():
            return
        log = self._opened()
        payloads = [log.read(number) for number in range(len(log))]
        self._rewrite([p for p in payloads if self._update(p).round < version])

    def _rewrite(self, payloads: Iterable[Payload]) -> None:
        """Replace the log at once."""
        self.close()
        fresh = self._log_file.with_suffix(".partial")
        fresh.unlink(missing_ok=True)
        with Log(fresh, begin=self._run.encode()) as log:
            for payload in payloads:
                log.append(payload)
        fresh.replace(self._log_file)

    @property
    def log_bytes(self) -> int:
        """Of the updates since the snapshot."""
        return sum(self._opened().sizes)

    def append(self, update: Payload) -> None:
        """Keep an update that the replica has applied."""
        self._opened().append(update)

    def take_snapshot(self, worker: Worker, last: Payload) -> None:
        """Keep the replica as it is, and of the updates only ``last``, which led to it.

        A crash in between leaves more updates than are needed, which ``restore`` passes over.
        """
        worker.replica.save_snapshot(self._snapshot_file, self._run)
        self._rewrite([last])

    def receive_snapshot(self, worker: Worker, snapshot: Payload, last: Payload) -> None:
        """Take the replica to a snapshot that the server sent; ``take_snapshot`` keeps it.

        Raises:
            MessageError: ``last`` is not an update of the run's method, or not the one that led to
                the snapshot, or this is not a snapshot of the model.
        """
        update = decode(last, Update)
        if update.tensors:
            raise MessageError("the update that led to the snapshot brings tensors")
        worker.replica.method.check_values(update)
        received = self.path / "received.safetensors"
        write_atomically(received, snapshot)
        try:
            worker.replica.load_snapshot(received, due=update.round + 1)
        except UserError as error:
            raise MessageError("this is no snapshot of the run's model and version") from error
        finally:
            received.unlink(missing_ok=True)
        worker.last = update

    def _opened(self) -> Log:
        if self._log is None:
            self._log = Log(self._log_file, begin=self._run.encode())
        return self._log


def _read(file: Path, sha256: str) -> bytes:
    """What a file holds; empty where the hash is.

    Raises:
        UserError: it is missing, or was changed.
    """
    data = file.read_bytes() if sha256 and file.exists() else b""
    if _sha256(data) != sha256:
        raise UserError(f"{file}: this is not what the node wrote.")
    return data


def _sha256(data: Payload) -> str:
    """In hexadecimal; empty of nothing."""
    return hashlib.sha256(data).hexdigest() if data else ""
