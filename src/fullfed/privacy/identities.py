"""Who a client is to the other clients: the key that its node is registered with.

A server that could invent clients could take a sum apart. So each signs its keys of a round, and
the list of those whose numbers are in the sum, with the key by which its partners know it.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_NUMBER_BYTES = 48  # of a number of the curve P-384
IDENTITY_BYTES = 1 + _NUMBER_BYTES  # a compressed point
SIGNATURE_BYTES = 2 * _NUMBER_BYTES

Identity = ec.EllipticCurvePrivateKey  # on the curve P-384, as Flower's nodes have


def new_identity() -> Identity:
    """One for a client in this process."""
    return ec.generate_private_key(ec.SECP384R1())


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public identity in 49 bytes."""
    return bytes(key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint))


def sign(identity: Identity, text: bytes) -> bytes:
    """96 bytes that only this identity can make of the text."""
    r, s = decode_dss_signature(identity.sign(text, ec.ECDSA(SHA384())))
    return b"".join(number.to_bytes(_NUMBER_BYTES, "big") for number in (r, s))


def is_signed(public: bytes, text: bytes, signature: bytes) -> bool:
    """Whether the identity made the signature of the text."""
    r, s = (int.from_bytes(signature[n : n + _NUMBER_BYTES], "big") for n in (0, _NUMBER_BYTES))
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), public)
        key.verify(encode_dss_signature(r, s), text, ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True
