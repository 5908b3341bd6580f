"""The operator's audit file: who did what, and when, with a federation; a signed line for each act.

DIR/server/audit.jsonl. A line is a JSON object with its keys in order and no spaces:

  number       counts lines, from 0
  time         wall-clock, UTC, in ISO 8601
  who          the account whose process wrote the line
  act          what was done: one of ACTS
  about        to what, by name
  key          the fingerprint of the server's certificate whose key signs the line
  authority, certificate
               PEM, of the federation's authority and of the server; in the first line, and in
               each line before which one of them has changed
  previous     SHA-256 of the line before, in hexadecimal; of nothing in the first line
  signature    of all else in the line, by the server's key (ECDSA with SHA-256), in base64

So a line can be neither changed, nor taken out, nor moved without the server's key, and whoever has
the federation's ``ca.crt`` can see that. Whoever has the server's key can write another file; who
has noted a line's hash can see that, too. A line is durable when ``record`` returns. Beside the
file, audit.head says how many lines were written, which tells a line that a crash cut short from
lines that were removed at the end. Nothing of this enters a run's log.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from fullfed.account import account
from fullfed.deployment.identities import certified_key, fingerprint
from fullfed.errors import UserError
from fullfed.files import (
    locked,
    private_files,
    read_sealed,
    sync_folder,
    write_sealed,
)
from fullfed.strict_json import parse_json

Act = Literal[
    "create",  # the federation
    "add",  # a partner
    "remove",  # a partner
    "rotate",  # a key: a partner's, the server's or the authority's
    "serve",  # the server begins to answer
    "close",  # the server ends
    "join",  # a partner's node connects
    "leave",  # a partner's node is gone
    "start",  # a run begins
    "resume",  # a run goes on
    "refuse",  # a client's report, or a client that refuses its order
    "stop",  # a run ends before its last round
    "end",  # a run is over
    "rollback",  # a run is taken back
]
ACTS: tuple[str, ...] = get_args(Act)
_SIGNING = ec.ECDSA(hashes.SHA256())
_PEM = ("authority", "certificate")


@dataclass(frozen=True)
class AuditLine:
    """A line that was verified; the fields are its keys, ``digest`` is its SHA-256."""

    number: int
    time: str
    who: str
    act: str
    about: Mapping[str, Any]
    digest: str


class Audit:
    """A federation's audit file.

    Args:
        file: it; made by the first line.
        authority, certificate, key: files; of the federation's authority, and of the server.
    """

    def __init__(self, file: Path, authority: Path, certificate: Path, key: Path) -> None:
        self.file = file
        self._authority, self._certificate, self._key = authority, certificate, key
        self._head_file = file.with_suffix(".head")
        self._lock_file = file.with_suffix(".lock")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, no process adds a line: for who changes the server's key and certificate."""
        with locked(self._lock_file, otherwise=None):
            yield

    @private_files()
    def record(self, act: Act, **about: Any) -> None:
        """Add a line; when this returns it survives a power cut.

        Raises:
            UserError: it cannot be written, or lines are missing at the end of the file.
        """
        with locked(self._lock_file, otherwise=None):
            content = self._whole_lines()
            last = content[:-1].rpartition(b"\n")[2]
            body = self._body(act, about, json.loads(last) if last else None, last)
            signature = self._signing_key().sign(_encode(body), _SIGNING)
            line = _encode({**body, "signature": base64.b64encode(signature).decode("ascii")})
            self._append(len(content), line + b"\n")
            write_sealed(self._head_file, {"lines": body["number"] + 1})

    def _signing_key(self) -> ec.EllipticCurvePrivateKey:
        private = load_pem_private_key(self._key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        certificate = load_pem_x509_certificate(self._certificate.read_bytes())
        if private.public_key() != certificate.public_key():
            raise UserError(
                f"{self._key} and {self._certificate} do not belong together; make both anew by "
                "`fullfed federation keys rotate`."
            )
        return private

    def _body(
        self, act: Act, about: Mapping[str, Any], last: dict[str, Any] | None, line: bytes
    ) -> dict[str, Any]:
        """The next line without its signature.

        Args:
            last, line: the one before, read and as it is.
        """
        certificate, authority = self._certificate.read_text(), self._authority.read_text()
        key = fingerprint(certificate)
        body: dict[str, Any] = {
            "number": last["number"] + 1 if last else 0,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "who": account(),
            "act": act,
            "about": dict(about),
            "key": key,
            "previous": hashlib.sha256(line).hexdigest(),
        }
        if last is None or last["key"] != key:
            body |= {"authority": authority, "certificate": certificate}
        return body

    def _whole_lines(self) -> bytes:
        """What the file has, without a last line that a crash cut short.

        Raises:
            UserError: lines that were whole are missing.
        """
        content = self.file.read_bytes() if self.file.exists() else b""
        content = content[: content.rfind(b"\n") + 1]
        written = written_lines(self._head_file)
        if content.count(b"\n") < written:
            raise _shortened(self.file, content.count(b"\n"), written)
        return content

    def _append(self, end: int, line: bytes) -> None:
        try:
            with self.file.open("r+b" if self.file.exists() else "w+b") as file:
                file.truncate(end)
                file.seek(end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.file.parent)
        except OSError as error:
            raise UserError(
                f"{self.file}: a line could not be written ({error.strerror}); free some space, "
                "and try again."
            ) from error


def written_lines(head_file: Path) -> int:
    """How many lines audit.head says were written; 0 where there is none."""
    return read_sealed(head_file, "")["lines"] if head_file.exists() else 0


def read_audit(file: Path, authority: Path, known: str | None = None) -> list[AuditLine]:
    """The lines of an audit file, verified; a last one that a crash cut short is passed over.

    Args:
        authority: ca.crt, as a partner has it.
        known: the hash of a line that was noted earlier, which must be there.

    Raises:
        UserError: there is no file, or it is not what the federation's server wrote.
    """
    try:
        *lines, _ = file.read_bytes().split(b"\n")
        trusted = authority.read_text()
    except OSError as error:
        raise UserError(
            f"{error.filename}: the file cannot be read ({error.strerror}); an audit file begins "
            "with the first act of the server's operator."
        ) from error
    written = written_lines(file.with_suffix(".head"))
    if len(lines) < written:
        raise _shortened(file, len(lines), written)
    read, previous, pem = list[AuditLine](), b"", dict[str, str]()
    for number, line in enumerate(lines):
        try:
            body = _verified(line, number, previous, pem)
        except ValueError as error:
            raise UserError(f"{file}: line {number + 1} {error}; restore a copy of it.") from error
        pem |= {name: body[name] for name in _PEM if name in body}
        shown = {name: body[name] for name in ("number", "time", "who", "act", "about")}
        read.append(AuditLine(**shown, digest=hashlib.sha256(line).hexdigest()))
        previous = line
    if not lines or pem["authority"].strip() != trusted.strip():
        raise UserError(f"{file}: this is not of the federation whose authority is {authority}.")
    if known is not None and known not in {line.digest for line in read}:
        raise UserError(
            f"{file}: no line has the hash {known}; lines that were there have been removed or "
            "written anew."
        )
    return read


def described(about: Mapping[str, Any]) -> str:
    """What a line is about, for people."""
    return ", ".join(f"{name} {_said(value)}" for name, value in about.items() if value != [])


def _said(value: Any) -> str:
    """A value on one line, whatever a partner has sent that is quoted in it."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def _verified(line: bytes, number: int, previous: bytes, pem: Mapping[str, str]) -> dict[str, Any]:
    """What a line says.

    Args:
        previous: the line before.
        pem: the authority and the certificate before it.

    Raises:
        ValueError: it is not what the server wrote after that line; says how, of "line n".
    """
    try:
        value = parse_json(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or _encode(value) != line:
        raise ValueError("is not written as the server writes")
    body = {name: item for name, item in value.items() if name != "signature"}
    if body.get("previous") != hashlib.sha256(previous).hexdigest():
        raise ValueError("does not follow the line before it: one was changed, removed or moved")
    now = {name: str(body.get(name, pem.get(name))) for name in _PEM}
    try:
        key = certified_key(now["certificate"], now["authority"])
    except ValueError as error:
        raise ValueError("brings a certificate that the authority has not signed") from error
    try:
        signature = base64.b64decode(value["signature"], validate=True)
        key.verify(signature, _encode(body), _SIGNING)
        if base64.b64encode(signature).decode("ascii") != value["signature"]:
            raise ValueError("base64 has bits to spare")  # in its last character
    except (InvalidSignature, KeyError, TypeError, ValueError) as error:
        raise ValueError("was changed: its signature is not the server's") from error
    if body["number"] != number or body["act"] not in ACTS:
        raise ValueError("was written by another version of fullfed")
    return body


def _encode(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _shortened(file: Path, found: int, written: int) -> UserError:
    return UserError(
        f"{file}: {written} lines were written and {found} are there; restore a copy of the file."
    )
