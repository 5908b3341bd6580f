"""Who is who: the federation's certificate authority, the server's certificate, the nodes' keys."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fullfed.errors import UserError
from fullfed.files import write_atomically

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_CLOCK_SKEW = datetime.timedelta(hours=1)


def create_authority(certificate: Path, key: Path) -> None:
    """Write a new certificate authority: everybody gets the certificate, the key stays put."""
    private = ec.generate_private_key(ec.SECP384R1())
    name = _name("fullfed federation")
    built = (
        _builder(name, name, private.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False)
        .sign(private, hashes.SHA384())
    )
    write_atomically(key, _pem(private), mode=0o600)
    write_atomically(certificate, built.public_bytes(serialization.Encoding.PEM))


def certify_server(
    authority: Path,
    authority_key: Path,
    certificate: Path,
    key: Path,
    hosts: Sequence[str],
    days: int = CERTIFICATE_DAYS,
) -> None:
    """Write a new key and certificate for the server, signed by the authority.

    Args:
        hosts: names and addresses that the server is reached by.
    """
    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    private = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    server_use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    built = (
        _builder(_name(hosts[0]), issuer.subject, private.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(server_use, critical=False)
        .add_extension(names, critical=False)
        .add_extension(identifier, critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_atomically(key, _pem(private), mode=0o600)
    write_atomically(certificate, built.public_bytes(serialization.Encoding.PEM))


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate (PEM), in hexadecimal, as ``openssl x509 -fingerprint`` has it."""
    loaded = x509.load_pem_x509_certificate(certificate.encode("ascii"))
    return loaded.fingerprint(hashes.SHA256()).hex()


@lru_cache(maxsize=8)
def certified_key(certificate: str, authority: str) -> ec.EllipticCurvePublicKey:
    """The public key in a certificate that an authority has signed; both PEM.

    Raises:
        ValueError: it has not, or these are no certificates.
    """
    loaded = x509.load_pem_x509_certificate(certificate.encode("ascii"))
    try:
        loaded.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.encode("ascii")))
    except (InvalidSignature, TypeError) as error:
        raise ValueError("the authority has not signed this certificate") from error
    key = loaded.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("this is not a certificate of a federation's server")
    return key


def check_host(host: str) -> None:
    """Raise a UserError unless a certificate can be for this: an IP address or a DNS name."""
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        if not _DNS_NAME.fullmatch(host) or len(host) > 253:
            raise UserError(
                f"{host!r}: this is neither an IP address nor a host's name; give it alone, and "
                "the port with --port."
            ) from error


def check_not_expired(certificate: Path, remedy: str) -> None:
    """Raise a UserError if the certificate is not valid yet, or expired; then say ``remedy``."""
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    if now > loaded.not_valid_after_utc:
        day = loaded.not_valid_after_utc.date().isoformat()
        raise UserError(f"{certificate}: the certificate expired on {day}; {remedy}.")
    if now < loaded.not_valid_before_utc:
        raise UserError(f"{certificate}: the certificate is not valid yet; set the clock right.")


def create_node_key(key: Path, public_key: Path) -> None:
    """Write a node's key pair: the private one for the node, the public one for the server."""
    private = ec.generate_private_key(ec.SECP384R1())
    write_atomically(key, _pem(private, serialization.PrivateFormat.OpenSSH), mode=0o600)
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_atomically(public_key, public + b"\n")


def load_public_key(content: bytes, file: Path) -> ec.EllipticCurvePublicKey:
    """A node's public key, in OpenSSH's format.

    Args:
        file: where it was read, for the error.

    Raises:
        UserError: it is not a public key that Flower takes.
    """
    try:
        loaded = serialization.load_ssh_public_key(content)
    except ValueError as error:
        raise UserError(f"{file}: this is not a public key in OpenSSH's format.") from error
    if not isinstance(loaded, ec.EllipticCurvePublicKey):
        raise UserError(f"{file}: make the key with `ssh-keygen -t ecdsa -b 384`.")
    return loaded


def public_key_pem(public_key: Path) -> str:
    """A node's public key, of a file, in PEM.

    Raises:
        UserError: the file is not a public key that Flower takes.
    """
    try:
        content = public_key.read_bytes()
    except OSError as error:
        raise UserError(f"{public_key}: the key cannot be read ({error.strerror}).") from error
    return in_pem(load_public_key(content, public_key))


def in_pem(key: ec.EllipticCurvePublicKey) -> str:
    """A node's public key in the form in which the SuperLink knows it."""
    pem, info = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_bytes(pem, info), "ascii")


def key_fingerprint(public_key: bytes) -> str:
    """Of a public key in OpenSSH's format, as ``ssh-keygen -l`` has it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    begins = datetime.datetime.now(datetime.UTC) - _CLOCK_SKEW
    ends = begins + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    number = x509.random_serial_number()
    return builder.serial_number(number).not_valid_before(begins).not_valid_after(ends)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
