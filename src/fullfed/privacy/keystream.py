"""Random numbers that only who holds a key can make: ChaCha20's keystream (RFC 8439).

Masks, rounding and noise come from here and never from the generator of random directions, whose
seed is in the recipe and which is not made to withstand anybody.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
_NONCE = bytes(16)  # every key is used for one stream
_AT_ONCE = 1 << 22  # bytes, of zeros that are encrypted


def derived(secret: bytes, purpose: str, length: int = KEY_BYTES) -> bytes:
    """A key for one purpose from a secret (HKDF-SHA256, RFC 5869).

    Args:
        secret: at least 16 bytes nobody else can guess.
        purpose: what the key is for; other purposes have other keys.
    """
    return HKDF(SHA256(), length, None, f"fullfed {purpose}".encode()).derive(secret)


class KeyStream:
    """The bytes that follow from a key, one after another.

    Args:
        key: 32 bytes, used for this stream alone.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
        self._zeros = bytes(_AT_ONCE)

    def bytes(self, count: int) -> bytes:
        """The next ``count``."""
        made = bytearray(count)
        for start in range(0, count, _AT_ONCE):
            length = min(_AT_ONCE, count - start)
            made[start : start + length] = self._cipher.update(self._zeros[:length])
        return bytes(made)

    def words(self, count: int) -> NDArray[np.uint32]:
        """The next ``count`` words of 32 bits."""
        return np.frombuffer(self.bytes(4 * count), dtype="<u4")

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """The next ``count`` numbers, uniform in [0, 1), of 53 bits."""
        words = np.frombuffer(self.bytes(8 * count), dtype="<u8")
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
