"""A new key for a partner's node: the partner asks, the operator admits, and the node changes over.

The request is a small JSON file without secrets: the partner's name, the new public key, and
signatures of both by the old key and by the new one. So only who has the old key can ask, and only
for a key that is theirs. As long as a node has two keys it tries the new one first, and it forgets
the old one once the server has let the new one in.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fullfed.deployment.folders import NodeFolder, ServerFolder
from fullfed.deployment.identities import create_node_key, key_fingerprint, load_public_key
from fullfed.errors import UserError
from fullfed.files import private_files, write_json
from fullfed.strict_json import parse_json
from fullfed.validation import describe_validation

_SIGNING = ec.ECDSA(hashes.SHA384())
_LONGEST = 16 << 10  # bytes of a request's file
_Text = Annotated[str, Field(max_length=4096)]


class KeyRequest(BaseModel):
    """What a request's file says.

    partner: its name. key: the new public key, in OpenSSH's format. by_old, by_new: signatures of
    the two by the old and by the new key, in base64.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    partner: _Text
    key: _Text
    by_old: _Text
    by_new: _Text

    @classmethod
    def read(cls, file: Path) -> KeyRequest:
        """
        Raises:
            UserError: the file is no request.
        """
        try:
            with file.open("rb") as opened:
                return cls.model_validate(parse_json(opened.read(_LONGEST)))
        except (OSError, ValueError) as error:
            said = describe_validation(error) if isinstance(error, ValidationError) else error
            raise UserError(f"{file}: this is no request for a new key ({said}).") from error


@private_files()
def request_key(folder: NodeFolder) -> tuple[Path, str]:
    """Make a node's next key pair; return the file of the request, and the new key's fingerprint.

    Raises:
        UserError: this is no partner's folder, or an earlier request has not been admitted.
    """
    partner = folder.settings().name
    request = folder.path / f"{partner}.key-request.json"
    if folder.next_key.exists():
        raise UserError(
            f"{folder.next_key}: a new key waits for the operator to admit {request.name}; delete "
            "the key if that was not sent."
        )
    public = folder.path / "node.key.next.pub"
    made = folder.path / "node.key.made"
    create_node_key(made, public)
    key = public.read_text(encoding="ascii").strip()
    old, new = (_private(file) for file in (folder.key, made))
    write_json(
        request,
        KeyRequest(
            partner=partner,
            key=key,
            by_old=_sign(old, partner, key),
            by_new=_sign(new, partner, key),
        ).model_dump(),
    )
    made.replace(folder.next_key)
    public.unlink()
    return request, key_fingerprint(key.encode())


@private_files()
def admit_key(folder: ServerFolder, file: Path) -> tuple[str, str]:
    """Let a partner's new key in, in the place of the old one; return the partner and the key's
    fingerprint. Where that was done before, nothing changes.

    Raises:
        UserError: it is not a request of the partner's, or the key is or was somebody's already.
    """
    request = KeyRequest.read(file)
    name, new = request.partner, request.key.encode()
    registered = folder.public_key(folder.partner(name))
    if load_public_key(new, file) != load_public_key(registered.read_bytes(), registered):
        for whose, key, signature in (
            ("registered", registered.read_bytes(), request.by_old),
            ("new", new, request.by_new),
        ):
            _check(request, file, whose, load_public_key(key, file), signature)
        folder.replace_key(name, new, file)
    return name, key_fingerprint(new)


def _check(
    request: KeyRequest,
    file: Path,
    whose: str,
    key: ec.EllipticCurvePublicKey,
    signature: str,
) -> None:
    try:
        decoded = base64.b64decode(signature, validate=True)
        key.verify(decoded, _signed(request.partner, request.key), _SIGNING)
    except (InvalidSignature, binascii.Error) as error:
        raise UserError(
            f"{file}: the request is not signed by the {whose} key of {request.partner}; have the "
            "partner ask again by `fullfed federation keys rotate`."
        ) from error


def _sign(key: ec.EllipticCurvePrivateKey, partner: str, public: str) -> str:
    return base64.b64encode(key.sign(_signed(partner, public), _SIGNING)).decode("ascii")


def _signed(partner: str, public: str) -> bytes:
    return f"fullfed: a new key for {partner}\n{public}\n".encode()


def _private(file: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_ssh_private_key(file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
