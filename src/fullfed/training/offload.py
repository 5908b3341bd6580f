"""Offloading: tensors that wait where they cost no memory of the device that computes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.payloads import is_large, joined

_ALIGNED = 64  # bytes: a tensor's memory begins at a multiple


class Offload:
    """Keeps values: an accelerator's in the host's memory, a CPU's in a temporary file.

    The file has no name: it goes when this does, or with the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as this is)

    def put(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Keep a tensor's values.

        Returns:
            what brings them back, bit for bit: a tensor of the same shape and dtype, on the CPU.

        Raises:
            UserError: there is no room in the folder of temporary files.
        """
        if tensor.device.type != "cpu":
            away = tensor.detach().cpu()
            return lambda: away
        start = self._file.seek(0, 2)
        try:
            self._file.write(_bytes(tensor.detach().contiguous()))
            self._file.flush()
        except OSError as error:
            raise UserError(
                "offloaded weights could not be written to the folder of temporary files "
                f"({error.strerror}); let TMPDIR name one with room for the model."
            ) from error
        dtype, shape = tensor.dtype, tensor.shape

        def fetch() -> Tensor:
            values = torch.empty(shape, dtype=dtype)
            self._file.seek(start)
            self._file.readinto(_bytes(values))
            return values

        return fetch

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, to be read. Where a CPU's are large they are in a file that is mapped into
    memory: the system drops their pages and reads them again when it needs the room.

    Raises:
        UserError: there is no room in the folder of temporary files.
    """
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    plain = all(type(t) is Tensor and t.device.type == "cpu" for t in tensors.values())
    if not plain or not is_large(nbytes):
        return {name: tensor.clone() for name, tensor in tensors.items()}
    sizes = [t.numel() * t.element_size() for t in tensors.values()]
    room = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
    padded = (
        part
        for tensor, size, most in zip(tensors.values(), sizes, room, strict=True)
        for part in (_bytes(tensor.contiguous()), bytes(most - size))
    )
    whole = torch.frombuffer(joined(padded, sum(room)), dtype=torch.uint8)
    parts = zip(tensors.items(), sizes, torch.split(whole, room), strict=True)
    return {name: own[:size].view(t.dtype).view(t.shape) for (name, t), size, own in parts}


@contextmanager
def restored(
    parameters: Mapping[str, Tensor], exact: Mapping[str, Tensor], offload: bool
) -> Iterator[Mapping[str, Tensor]]:
    """Inside, parameters may change; afterwards they are what they were, bit for bit.

    Args:
        exact: float32, by name: what some parameters are the nearest numbers in 16 bits to. They
            stay as they are, and nothing else is kept of these parameters.
        offload: whether values wait in an ``Offload``, and are not at hand.

    Yields:
        the values, by name: exact ones where there are, else ``copies``; none where they are
        offloaded.

    Raises:
        UserError: there is no room in the folder of temporary files.
    """
    with Offload() if offload else nullcontext() as store:
        kept = {name: p.detach() for name, p in parameters.items() if name not in exact}
        fetches = {name: store.put(p) for name, p in kept.items()} if store else {}
        values = dict(exact) if store else {**exact, **copies(kept)}
        try:
            yield {} if store else {name: values[name] for name in parameters}
        finally:
            for name, parameter in parameters.items():
                parameter.detach().copy_(fetches[name]() if name in fetches else values[name])


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's own bytes."""
    return tensor.view(-1).view(torch.uint8).numpy().data
