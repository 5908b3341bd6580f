"""A replica: the base model plus the first n updates, bit for bit.

Replicas in 16 bits keep updates that are smaller than their precision (``Rounding``). An update of
1e-5 to a weight of 0.02 is a twelfth of what bfloat16 can tell apart there. Rounded to nearest it
would be lost, and so would the next one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Update
from fullfed.federation.method import Method
from fullfed.files import write_atomically
from fullfed.payloads import Payload, joined
from fullfed.sketch import Purpose, Stream, round_
from fullfed.sketch.checks import is_finite
from fullfed.sketch.shards import hold_, whole
from fullfed.strict_json import check_keys, parse_json
from fullfed.training.exact import dithered
from fullfed.training.offload import Offload

# The types that a snapshot may hold, in the order in which the safetensors format puts them.
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_HEADER_LIMIT = 16 << 20  # bytes of a snapshot's header

SHORT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rounding:
    """What a replica does beyond its precision; nothing where the model is float32.

    Attributes:
        kind: "master" keeps exact weights beside those in 16 bits, 4 more bytes a parameter; at
            version 0 they are spread over what rounds to the checkpoint (training/exact.py).
            "stochastic" rounds bfloat16 up or down by shared randomness, right on average and
            alike on every device, in no more memory but while an update is applied.
        seed: the recipe's.
    """

    kind: Literal["master", "stochastic"] = "master"
    seed: int = 0

    def masters(
        self, model: PreTrainedModel, replicated: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The exact weights to keep, float32, by name: of what updates change in 16 bits."""
        if self.kind == "stochastic":
            return {}
        # Of no seed: whatever the run, a base model has one content hash, which owners may ask for.
        return dithered(_short(model, replicated), Stream(0, Purpose.DITHER))

    @contextmanager
    def widened(
        self,
        model: PreTrainedModel,
        replicated: Mapping[str, Tensor],
        masters: Mapping[str, Tensor],
        round: int,
    ) -> Iterator[None]:
        """Inside, what updates change is float32; afterwards it is rounded.

        Args:
            masters: from ``masters``; updated in place.
            round: of the update that is applied.
        """
        short = _short(model, replicated)
        stored = {name: p.data for name, p in short.items()}
        for name, parameter in short.items():
            parameter.data = masters[name] if masters else parameter.data.float()
        try:
            yield
            exact = [p.data for p in short.values()]
            if masters or not exact:
                for rounded, own in zip(stored.values(), exact, strict=True):
                    rounded.copy_(own)
            else:
                stream = Stream(self.seed, Purpose.ROUNDING, round)
                round_(list(stored.values()), exact, stream)
        finally:
            for name, parameter in short.items():
                parameter.data = stored[name]


def _short(model: PreTrainedModel, replicated: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: p for name, p in model.named_parameters() if name in replicated and p.dtype in SHORT
    }


class UnfitUpdateError(UserError):
    """An update that is not for this version, model or method; names no file."""


class Replica:
    """One holder's copy of the model.

    Args:
        model: the base model; updated in place.
        method: says how an update is applied.
        rounding: what becomes of updates beyond the precision of a model in 16 bits.
    """

    def __init__(
        self, model: PreTrainedModel, method: Method, rounding: Rounding | None = None
    ) -> None:
        self.model = model
        self.version = 0
        self.method = method
        self._rounding = rounding or Rounding()
        self._masters = self._rounding.masters(model, method.replicated(model))
        self._moments = method.moments(model)
        # What cumulative updates start from: a second copy of the model, not in its memory.
        base = {**method.replicated(model), **self._masters} if method.cumulative else {}
        store = Offload()
        self._base = {name: store.put(p) for name, p in base.items()}

    def apply(self, update: Update) -> None:
        """Go from version ``update.round``, or from any before it if updates are cumulative, to
        the next.

        Raises:
            UnfitUpdateError: the update is for another version, another model or another method.
        """
        behind = update.round - self.version
        if behind < 0 or (behind > 0 and not self.method.cumulative):
            raise UnfitUpdateError(
                f"update {update.round} does not follow model version {self.version}; "
                "replay the log from the base model."
            )
        try:
            self.method.check_update(update)  # before anything is changed
            with torch.no_grad(), self._widened(update.round):
                self._return_to_base()
                self.method.apply(self.model, update, self._moments)
        except (KeyError, RuntimeError, MessageError) as error:
            raise UnfitUpdateError(
                f"update {update.round} does not fit the model and the method; "
                "restore the log and the recipe that belong together."
            ) from error
        self.version = update.round + 1

    @contextmanager
    def trial(self, update: Update) -> Iterator[None]:
        """Inside, the model is as one more change of this version makes it, without the server's
        optimizer; afterwards it is as it was, bit for bit. Another copy of what updates change is
        held meanwhile.

        Args:
            update: of ``Method.alone``.
        """
        mine = self.parameters()
        kept = {name: p.detach().clone() for name, p in mine.items()}
        try:
            with torch.no_grad(), self._widened(update.round):
                self.method.apply(self.model, update)
            yield
        finally:
            with torch.no_grad():
                _copy(kept, mine)
                with self._widened(update.round):
                    pass  # the model itself is what its masters round to

    def _return_to_base(self) -> None:
        parameters = self.method.replicated(self.model)
        for name, fetch in self._base.items():
            parameters[name].copy_(fetch())

    @property
    def is_finite(self) -> bool:
        """Whether all that updates change is, as it is held: an update of finite numbers may be
        more than weights in 16 bits can hold."""
        held = [*self.method.replicated(self.model).values(), *self._masters.values()]
        return all(is_finite(tensor.detach()) for tensor in [*held, *self._moments.values()])

    @property
    def exact(self) -> Mapping[str, Tensor]:
        """What weights in 16 bits are rounded from, float32, by name; not to be changed."""
        return self._masters

    @property
    def moments(self) -> Mapping[str, Tensor]:
        """What is kept for the server's optimizer, by name; not to be changed."""
        return self._moments

    def state(self) -> dict[str, Tensor]:
        """The parameters by name, each once (tied ones under their first name), and exact; and the
        moments of the server's optimizer."""
        return {**dict(self.model.named_parameters()), **self._masters, **self._moments}

    def content_hash(self) -> str:
        """SHA-256, in hex, of every name, dtype, shape and bytes of ``state``."""
        return content_hash(self.state())

    @property
    def nbytes(self) -> int:
        """Bytes of what updates change."""
        return sum(p.numel() * p.element_size() for p in self.parameters().values())

    @property
    def snapshot_bytes(self) -> int:
        """How long ``snapshot`` is, from names, shapes and types alone."""
        return len(self._snapshot_header("0" * 64)) + self.nbytes

    def _snapshot_header(self, digest: str) -> bytes:
        """What stands before the tensors in the safetensors format."""
        about = json.dumps({"version": self.version, "hash": digest})
        header: dict[str, Any] = {"__metadata__": {"fullfed": about}}
        end = 0
        for name, p in self.in_file_order():
            begin, end = end, end + p.numel() * p.element_size()
            offsets = {"data_offsets": [begin, end]}
            header[name] = {"dtype": _TYPES[p.dtype], "shape": [*p.shape], **offsets}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def in_file_order(self) -> list[tuple[str, Tensor]]:
        """What updates change, by type and name, as safetensors itself orders it."""
        ranks = list(_TYPES)
        parameters = self.parameters().items()
        return sorted(parameters, key=lambda item: (ranks.index(item[1].dtype), item[0]))

    def save_snapshot(self, path: Path, run: str = "") -> None:
        """Write a snapshot to a file, atomically and without a second copy; see ``snapshot``."""
        write_atomically(path, self._snapshot_parts(run))

    def snapshot(self, run: str = "") -> Payload:
        """Version and what updates change, in the safetensors format.

        Args:
            run: must be the same when it is loaded.
        """
        return joined(self._snapshot_parts(run), self.snapshot_bytes)

    def _snapshot_parts(self, run: str) -> Iterator[Payload]:
        yield self._snapshot_header(_snapshot_hash(run, self.version, self.parameters()))
        for _, tensor in self.in_file_order():
            yield _bytes_of(tensor)

    def load_snapshot(self, path: Path, run: str = "", due: int | None = None) -> None:
        """Take over the parameters and version of a snapshot.

        Args:
            run: what the snapshot was made with.
            due: the version that it must be of; None for any.

        Raises:
            UserError: the file is not a snapshot of this model or its content was changed.
        """
        try:
            version, recorded = _about(path)
            with safetensors.safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError, ValueError) as error:
            raise UserError(f"{path}: this is not a snapshot; delete it and resume.") from error
        if due is not None and version != due:
            raise UserError(f"{path}: the snapshot is of version {version}, not {due}.")
        mine = self.parameters()
        if _kinds(mine) != _kinds(state):
            raise UserError(f"{path}: the snapshot is of another model; delete it and resume.")
        ordered = {name: state[name] for name in mine}
        if _snapshot_hash(run, version, ordered) != recorded:
            raise UserError(
                f"{path}: the snapshot's content was changed, or is another run's; delete it and "
                "resume."
            )
        self.hold(ordered, version)

    def hold(self, state: Mapping[str, Tensor], version: int) -> None:
        """Take over whole tensors, which are ``parameters`` at a version, in their order."""
        mine = self.parameters()
        for name, values in state.items():
            hold_(mine[name], values)
        with torch.no_grad(), self._widened(version):
            pass  # the model itself is what its masters round to
        self.version = version

    def _widened(self, round: int) -> AbstractContextManager[None]:
        replicated = self.method.replicated(self.model)
        return self._rounding.widened(self.model, replicated, self._masters, round)

    def parameters(self) -> Mapping[str, Tensor]:
        """What updates change, exact, and the moments of the server's optimizer."""
        return {**self.method.replicated(self.model), **self._masters, **self._moments}


def snapshot_version(path: Path) -> int:
    """The model version of a snapshot in a file.

    Raises:
        UserError: the file is not a snapshot.
    """
    try:
        return _about(path)[0]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this is not a snapshot; delete it and resume.") from error


def _about(path: Path) -> tuple[int, str]:
    """The version of a snapshot and its hash.

    Raises:
        ValueError: it does not say both, or anything else.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = _metadata(file.read(length) if length <= _HEADER_LIMIT else b"")
    check_keys(about, ("version", "hash"))
    version, recorded = about["version"], about["hash"]
    if type(version) is not int or not 0 <= version < 2**32 or not isinstance(recorded, str):
        raise ValueError("the version is not a 32-bit number")
    return version, recorded


def _metadata(header: bytes) -> dict[str, Any]:
    """What a snapshot says of itself, in the header of its safetensors format.

    Raises:
        ValueError: the header has not the one meaning that it should have.
    """
    entries = parse_json(header)
    if not isinstance(entries, dict) or not isinstance(entries.get("__metadata__"), dict):
        raise ValueError("it is not a safetensors header with metadata")
    metadata = entries.pop("__metadata__")
    check_keys(metadata, ["fullfed"])
    for entry in entries.values():
        if not isinstance(entry, dict):
            raise ValueError("a tensor is not described by a table")
        check_keys(entry, ("dtype", "shape", "data_offsets"))
    if not isinstance(metadata["fullfed"], str):
        raise ValueError("its metadata are not text")
    about = parse_json(metadata["fullfed"])
    if not isinstance(about, dict):
        raise ValueError("its metadata are not a table")
    return about


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)


def norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of all of them together, whatever their size: added up in float64."""
    squares = (float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in tensors)
    with torch.no_grad():
        return math.sqrt(math.fsum(squares))


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of each tensor's name, dtype, shape and bytes, in the mapping's order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, where they are if it is contiguous and on the CPU."""
    flat = whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _snapshot_hash(run: str, version: int, state: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{run} {version} {content_hash(state)}".encode()).hexdigest()


def _kinds(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
