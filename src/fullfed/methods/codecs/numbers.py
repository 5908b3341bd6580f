"""How K float32 numbers are in a message: as they are, or in a few bits each, with scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.messages import Report, Update
from fullfed.methods.codecs.codec import check_tensors
from fullfed.sketch import LARGEST_SCALE, SHARED, Code, Coded, Purpose, Stream, scales_fit


@dataclass(frozen=True)
class Numbers:
    """How K float32 numbers are sent: as they are, or in a few bits each, and scales.

    ``round`` and ``owner`` say whose numbers they are; the code's randomness follows from them.

    Attributes:
        seed: the recipe's.
        code: None for float32.
        votes: whether all code with the same randomness, so that bits can be counted.
    """

    seed: int
    code: Code | None
    votes: bool = False

    @property
    def fidelity(self) -> float:
        """How many exact numbers a sent one is worth, at most 1."""
        return self.code.fidelity if self.code else 1.0

    def nbytes(self, count: int) -> int:
        """Bytes of the tensors of ``count`` numbers."""
        if self.code is None:
            return 4 * count
        return self.code.nbytes(count) + 4 * self.code.blocks(count)

    def encode(self, numbers: Tensor, round: int, owner: int) -> dict[str, Tensor]:
        """The tensors; their mean over the code's own randomness is decoded as the numbers."""
        if self.code is None:
            return {"coordinates": numbers}
        coded = self.code.encode(numbers, self._stream(round, owner))
        return {"codes": coded.codes.cpu(), "scales": coded.scales.cpu()}

    def check(self, message: Report | Update, count: int) -> None:
        """
        Raises:
            MessageError: the message's tensors cannot be those of ``count`` numbers.
        """
        check_tensors(message, self._kinds(count))
        self._check_scales(message)

    def check_stacked(self, update: Update, count: int) -> None:
        """The same of an update that holds every client's, one beside another."""
        clients = update.tensors.get("clients", torch.zeros(0))
        each = {
            name: ((clients.numel(), *shape), dtype)
            for name, (shape, dtype) in self._kinds(count).items()
        }
        each["clients"] = (clients.numel(),), torch.int64
        each["weights"] = (clients.numel(),), torch.float32
        check_tensors(update, each)
        if bool(((clients < 0) | (clients >= SHARED)).any()):
            raise MessageError("the update names clients that cannot be")
        self._check_scales(update)

    def _kinds(self, count: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        if self.code is None:
            return {"coordinates": ((count,), torch.float32)}
        codes = (self.code.nbytes(count),), torch.uint8
        return {"codes": codes, "scales": ((self.code.blocks(count),), torch.float32)}

    def _check_scales(self, message: Report | Update) -> None:
        if self.code is not None and not scales_fit(message.tensors["scales"]):
            raise MessageError(
                f"the {message.kind}'s scales are not between 0 and {LARGEST_SCALE:g}"
            )

    def room(self, count: int, device: torch.device) -> Tensor | None:
        """A buffer to decode several sets of ``count`` numbers in, one after another: new memory
        is slower than decoding is."""
        return torch.empty(self.code.padded(count), device=device) if self.code else None

    def decode(
        self,
        tensors: Mapping[str, Tensor],
        count: int,
        round: int,
        owner: int,
        device: torch.device | str = "cpu",
        room: Tensor | None = None,
    ) -> Tensor | Coded:
        """The numbers, float32, shape (count,), on the device, where codes come as bytes.

        They are valid until ``room``, on that device too, is used again.
        """
        if self.code is None:
            return tensors["coordinates"].to(device)
        codes, scales = tensors["codes"].to(device), tensors["scales"].to(device)
        return Coded(self.code, codes, scales, count, self._stream(round, owner), room)

    def _stream(self, round: int, owner: int) -> Stream:
        return Stream(self.seed, Purpose.CODES, round, SHARED if self.votes else owner)
