"""Coordinates in a few bits each: what a byte budget is best spent on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.generator import Stream
from fullfed.sketch.hadamard import block_size, rotate_, rotate_back_

# Levels above zero of the quantisers of a standard normal variable with the least squared error,
# and that error (Max, "Quantizing for minimum distortion", 1960, table I).
_LEVELS = {
    1: (0.7979,),
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
_DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
BITS = tuple(_LEVELS)


@dataclass(frozen=True)
class Code:
    """K float32 numbers in ``bits`` bits each and one scale.

    The numbers, and zeros up to a multiple of ``block_size(K)``, are rotated at random
    (hadamard.py), so that whatever they were they look like draws of one normal law, each is
    replaced by the nearest level of the best quantiser for it, and the scale is chosen such that
    what is decoded is the truth on average over rotations (Vargaftik et al., EDEN, arXiv
    2108.08842, section 3): ||y||**2 / <rotated y, levels>.

    Attributes:
        bits: 1 to 4.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(f"{self.bits} bits a coordinate: choose from 1 to {BITS[-1]}, or 32.")

    @property
    def fidelity(self) -> float:
        """1 - D: K coded numbers are worth this share of K exact ones.

        Decoded numbers have 1 / (1 - D) times the energy of the true ones, and a sketch's
        noise is its energy over K.
        """
        return 1 - _DISTORTION[self.bits]

    def nbytes(self, count: int) -> int:
        """Bytes of the codes of ``count`` numbers."""
        return -(-_padded(count) * self.bits // 8)

    def encode(self, coordinates: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """Codes, uint8, shape (nbytes,), and scale, float32, shape (1,).

        Args:
            coordinates: float32, shape (K,), on the CPU.
            stream: of the rotation; the same decodes.
        """
        from fullfed.sketch import codes_cpu  # imports numba

        count = len(coordinates)
        rotated = torch.zeros(_padded(count))
        rotated[:count] = coordinates
        rotate_(rotated, stream)
        energy = float(torch.linalg.vector_norm(coordinates, dtype=torch.float64)) ** 2
        levels = self._levels()
        codes = torch.zeros(self.nbytes(count), dtype=torch.uint8)
        if self.bits == 1:
            along = float(levels[1]) * codes_cpu.pack_signs(rotated.numpy(), codes.numpy())
        else:
            spread = (energy / len(rotated)) ** 0.5
            bounds = ((levels[1:] + levels[:-1]) / 2 * spread).numpy()
            along = codes_cpu.pack(
                rotated.numpy(), bounds, levels.numpy(), self.bits, codes.numpy()
            )
        scale = energy / along if along > 0 else 0.0
        return codes, torch.tensor([scale], dtype=torch.float32)

    def decode(self, codes: Tensor, scale: Tensor, count: int, stream: Stream) -> Tensor:
        """The numbers, float32, shape (count,), of the same bits everywhere."""
        from fullfed.sketch import codes_cpu  # imports numba

        numbers = torch.empty(_padded(count))
        levels = self._levels() * scale
        codes_cpu.unpack(codes.numpy(), self.bits, levels.numpy(), numbers.numpy())
        rotate_back_(numbers, stream)
        return numbers[:count]

    def _levels(self) -> Tensor:
        above = torch.tensor(_LEVELS[self.bits], dtype=torch.float32)
        return torch.cat([-above.flip(0), above])


def affordable(nbytes: int, most: int) -> tuple[int, int]:
    """The K <= ``most`` and the bits that make the best of ``nbytes``: (K, bits), bits 32 if exact.

    K (1 - D) is what counts, so it is as many numbers as there is room for in one bit each, and
    more bits where there are no more numbers.
    """
    choices = [(_fitting(nbytes, most, bits), bits, Code(bits).fidelity) for bits in BITS]
    choices.append((min(most, nbytes // 4), 32, 1.0))
    count, bits, _ = max(choices, key=lambda choice: choice[0] * choice[2])
    return count, bits


def _padded(count: int) -> int:
    """How many numbers are coded for ``count``."""
    size = block_size(count)
    return -(-count // size) * size


def _fitting(nbytes: int, most: int, bits: int) -> int:
    """The most numbers, ``most`` at most, whose codes have ``nbytes`` at most."""
    count = 8 * nbytes // bits
    if count < most:
        return count - count % block_size(count) if count else 0
    return most if Code(bits).nbytes(most) <= nbytes else most - most % block_size(most)
