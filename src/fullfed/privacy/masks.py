"""Masks that cancel in a sum (Bonawitz et al. 2017, "Practical secure aggregation for
privacy-preserving machine learning", section 4).

Two clients u < v agree on a mask that nobody else knows: u adds it, v subtracts it. Each adds one
more of its own, which is taken out of the sum when it is known who is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from torch import Tensor

from fullfed.privacy.integers import Integers, add, add_scalars, pack, unpack
from fullfed.privacy.keystream import KeyStream, derived

_AT_ONCE = 1 << 20  # integers masked at a time
SEED_BYTES = 16  # of what private keys and masks follow from: 128 bits, as strong as X25519


@dataclass
class Summand:
    """What a client adds to the sum, masked or not; or the sum itself.

    Attributes:
        integers: modulo 2**bits, shape (K,).
        bits: see there.
        scalars: packed.
    """

    integers: Integers
    bits: int
    scalars: bytes

    def tensors(self) -> dict[str, Tensor]:
        """Those of a message that holds it."""
        return {
            "numbers": torch.from_numpy(pack(self.integers, self.bits)),
            "scalars": torch.from_numpy(np.frombuffer(self.scalars, dtype=np.uint8).copy()),
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor], count: int, bits: int) -> Summand:
        """The one in a message that has been checked."""
        integers = unpack(tensors["numbers"].numpy(), count, bits)
        return Summand(integers, bits, bytes(tensors["scalars"].numpy()))

    def copy(self) -> Summand:
        return Summand(self.integers.copy(), self.bits, self.scalars)

    def mask_(self, key: bytes, sign: int = 1) -> None:
        """Add, or subtract, the mask that follows from a key of 32 bytes, in place."""
        stream = KeyStream(key)
        self.scalars = add_scalars(self.scalars, stream.bytes(len(self.scalars)), sign)
        for start in range(0, len(self.integers), _AT_ONCE):
            some = self.integers[start : start + _AT_ONCE]
            add(some, _uniform(stream, len(some), self.bits), self.bits, sign)

    def add_(self, other: Summand) -> None:
        """Add another, in place."""
        add(self.integers, other.integers, self.bits)
        self.scalars = add_scalars(self.scalars, other.scalars)


def _uniform(stream: KeyStream, count: int, bits: int) -> Integers:
    """Integers of which the lowest ``bits`` are uniform; what is above them does not count."""
    if bits <= 16:
        return np.frombuffer(stream.bytes(2 * count), dtype="<u2").astype(np.uint32)
    return stream.words(count)


def private_key(seed: bytes) -> X25519PrivateKey:
    """The private key for agreeing on masks that follows from a seed."""
    return X25519PrivateKey.from_private_bytes(derived(seed, "private key of masks"))


def own_mask(seed: bytes) -> bytes:
    """The key of a client's own mask, from its seed."""
    return derived(seed, "own mask")


def committed(seed: bytes) -> bytes:
    """What a client says of its own mask's seed beforehand: it tells the seed from others, and
    nothing of it."""
    return derived(seed, "commitment to own mask")


def agreed(private: X25519PrivateKey, public: bytes, purpose: str) -> bytes:
    """A key of 32 bytes that two sides derive alike, each from its private and the other's public
    key.

    Raises:
        ValueError: the public key is none.
    """
    secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    return derived(secret, purpose)


def pair_purpose(about: str, one: int, other: int) -> str:
    """What the mask between two clients is called."""
    return f"mask of {min(one, other)} and {max(one, other)} in {about}"
