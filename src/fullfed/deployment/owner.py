"""What a node brings into sums that nobody else has: its secret, its identity, whom it trusts."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fullfed.deployment.folders import NodeFile, NodeFolder
from fullfed.errors import UserError
from fullfed.files import write_atomically

if TYPE_CHECKING:
    from fullfed.privacy.summing import Owner

_SECRET_BYTES = 32


def owner_of(folder: NodeFolder, settings: NodeFile) -> Owner:
    """A node's own; its secret is made when it is first asked for.

    Raises:
        UserError: a file is no key, or no secret.
    """
    from fullfed.privacy.participant import Trust
    from fullfed.privacy.summing import Owner

    if not folder.secret.exists():
        write_atomically(folder.secret, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
    secret = folder.secret.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise UserError(
            f"{folder.secret}: this is not the secret that the node made; restore a copy of it, or "
            "delete it and take part in new runs only."
        )
    trusted = None
    if settings.partners != "all":
        trusted = frozenset(_public(folder.path / file) for file in settings.partners)
    return Owner(secret, _identity(folder.key), Trust(trusted))


def _identity(key: Path) -> ec.EllipticCurvePrivateKey:
    try:
        loaded = load_ssh_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:  # TypeError: it has a passphrase
        raise UserError(f"{key}: this is not a private key in OpenSSH's format.") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.curve.name != "secp384r1":
        raise UserError(f"{key}: make the key with `ssh-keygen -t ecdsa -b 384`.")
    return loaded


def _public(file: Path) -> bytes:
    from fullfed.privacy.identities import public_bytes

    try:
        loaded = load_ssh_public_key(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: partners of node.toml names no public key in OpenSSH's format; correct it."
        ) from error
    if not isinstance(loaded, ec.EllipticCurvePublicKey) or loaded.curve.name != "secp384r1":
        raise UserError(f"{file}: partners of node.toml names a key of another kind; correct it.")
    return public_bytes(loaded)
