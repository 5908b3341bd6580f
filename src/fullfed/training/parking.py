"""Putting tensors where they cost no memory of the device that computes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from fullfed.errors import UserError


class Parking:
    """Values that wait: an accelerator's in the host's memory, a CPU's in a temporary file.

    The file has no name: it goes when this does, or with the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as this is)

    def park(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Put a tensor's values away.

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
                f"{tempfile.gettempdir()}: weights that wait could not be written "
                f"({error.strerror}); let TMPDIR name a folder with room for the model."
            ) from error
        dtype, shape = tensor.dtype, tensor.shape

        def fetch() -> Tensor:
            values = torch.empty(shape, dtype=dtype)
            self._file.seek(start)
            self._file.readinto(_bytes(values))
            return values

        return fetch

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Parking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def restored(parameters: Mapping[str, Tensor], aside: bool) -> Iterator[Mapping[str, Tensor]]:
    """Inside, parameters may change; afterwards they are what they were, bit for bit.

    Args:
        aside: whether their values wait in a ``Parking``, and are not at hand.

    Yields:
        copies of their values, by name; none if they wait aside.

    Raises:
        UserError: there is no room in the folder of temporary files.
    """
    if not aside:
        before = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            yield before
        finally:
            for name, parameter in parameters.items():
                parameter.detach().copy_(before[name])
        return
    with Parking() as parking:
        fetches = [parking.park(parameter) for parameter in parameters.values()]
        try:
            yield {}
        finally:
            for fetch, parameter in zip(fetches, parameters.values(), strict=True):
                parameter.detach().copy_(fetch())


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's own bytes."""
    return tensor.view(-1).view(torch.uint8).numpy().data
