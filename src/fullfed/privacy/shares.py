"""Shares of a seed, of which ``threshold`` tell it and fewer tell nothing (Shamir 1979).

Each client's shares go to the others through the server, encrypted for whom they are meant for.
"""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fullfed.privacy.masks import SEED_BYTES

SEALED_BYTES = 2 * SEED_BYTES + 16  # two shares and the tag that shows whether they were changed
_NONCE = bytes(12)  # every key encrypts one message


def threshold(clients: int) -> int:
    """How many clients' shares it takes: more than two thirds of those who hold some.

    So that no server can have two lists of survivors confirmed, whoever is told which: each client
    confirms one, and two lists of so many have more than a third in common (Bonawitz et al. 2017,
    section 6.2).
    """
    return 2 * clients // 3 + 1


def split(seed: bytes, clients: int) -> list[bytes]:
    """A share of a seed of 16 bytes for each of ``clients``, in their order."""
    shares = Shamir.split(threshold(clients), clients, seed, ssss=False)
    return [bytes(share) for _, share in sorted(shares)]


def combine(shares: Mapping[int, bytes], clients: int) -> bytes:
    """The seed that was split.

    Args:
        shares: by the place in the order of those it was split for, from 0; at least as many as
            the threshold, of which the first are used.
        clients: that it was split for.
    """
    first = sorted(shares.items())[: threshold(clients)]
    return bytes(Shamir.combine([(place + 1, share) for place, share in first], ssss=False))


def seal(key: bytes, shares: tuple[bytes, bytes], about: str) -> bytes:
    """Two shares that only who has the key can read (ChaCha20-Poly1305, RFC 8439)."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, b"".join(shares), about.encode())


def opened(key: bytes, sealed: bytes, about: str) -> tuple[bytes, bytes]:
    """
    Raises:
        ValueError: they were not sealed with this key, or changed.
    """
    try:
        both = ChaCha20Poly1305(key).decrypt(_NONCE, sealed, about.encode())
    except InvalidTag as error:
        raise ValueError("shares were changed on their way") from error
    if len(both) != 2 * SEED_BYTES:
        raise ValueError("shares are of another length")
    return both[:SEED_BYTES], both[SEED_BYTES:]
