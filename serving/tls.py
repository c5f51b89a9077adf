"""Certificates and keys of gRPC: who a server is, and who may call it.

Files are looked at when an object is made, and not when a handshake fails: gRPC and Triton say of a certificate that
has expired, or of a key that is another's, only that no connection came about.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from serving.errors import TlsError
from serving.variables import TLS_CA_VARIABLE, TLS_CERT_VARIABLE, TLS_KEY_VARIABLE


@dataclass(frozen=True)
class ServerTls:
    """What a server shows, and whom it lets in.

    Attributes:
        cert: Its certificate, and those between it and its root, as PEM; its own first.
        key: The private key of `cert` as PEM, without a passphrase: Triton asks for none.
        client_ca: Certificates as PEM, one of which must have signed a client's; None lets in every client.

    Raises:
        TlsError: If a file can not be read, is no PEM, is out of its time, or the key is another's.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        _check_pair(self.cert, self.key)
        if self.client_ca is not None:
            _check_authorities(self.client_ca)


@dataclass(frozen=True)
class ClientTls:
    """What a client trusts, and what it shows.

    Attributes:
        ca: Certificates as PEM, one of which must have signed the server's; None is gRPC's own list of public ones.
        cert: The client's certificate as PEM, for a server that asks for one.
        key: Its private key as PEM, without a passphrase.

    Raises:
        TlsError: As `ServerTls`, or if there is a certificate without its key or the other way round.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if self.ca is not None:
            _check_authorities(self.ca)
        if self.cert is not None and self.key is not None:
            _check_pair(self.cert, self.key)
        elif self.cert is not None or self.key is not None:
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise TlsError(f"expected a client's certificate and its key, got a {given} without a {missing}")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> ClientTls | None:
        """As `serving.variables` say; None if none of them is set.

        Raises:
            TlsError: As the class itself.
        """
        values = (environment.get(name) for name in (TLS_CA_VARIABLE, TLS_CERT_VARIABLE, TLS_KEY_VARIABLE))
        files = [Path(value) if value else None for value in values]
        return cls(*files) if any(files) else None

    def to_environment(self) -> dict[str, str]:
        """What `of_environment` reads."""
        files = {TLS_CA_VARIABLE: self.ca, TLS_CERT_VARIABLE: self.cert, TLS_KEY_VARIABLE: self.key}
        return {name: str(path.resolve()) for name, path in files.items() if path is not None}

    def credentials(self) -> Any:
        """The files as `grpc.ChannelCredentials`, read again: a renewed certificate counts from the next connection."""
        ca, key, cert = (None if path is None else _read(path) for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: expected a readable PEM file, got: {error.strerror or error}") from error


def _read_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise TlsError(f"{path}: expected a certificate as PEM, got none") from error


def _is_valid_now(certificate: x509.Certificate) -> bool:
    now = datetime.datetime.now(datetime.timezone.utc)
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _check_time(path: Path, certificate: x509.Certificate) -> None:
    if not _is_valid_now(certificate):
        starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        raise TlsError(
            f"{path}: expected a certificate that is valid now, got one from {starts:%Y-%m-%d} to {ends:%Y-%m-%d}"
        )


def _check_authorities(path: Path) -> None:
    authorities = _read_certificates(path)
    # A system's bundle may hold one that has expired; the others still count.
    if not any(map(_is_valid_now, authorities)):
        _check_time(path, authorities[0])


def _check_pair(cert: Path, key: Path) -> None:
    certificate = _read_certificates(cert)[0]
    _check_time(cert, certificate)
    try:
        private = serialization.load_pem_private_key(_read(key), password=None)
    except TypeError as error:
        raise TlsError(f"{key}: expected a private key without a passphrase, got one with") from error
    except ValueError as error:
        raise TlsError(f"{key}: expected a private key as PEM, got none") from error
    if _public_bytes(private.public_key()) != _public_bytes(certificate.public_key()):
        raise TlsError(f"{key}: expected the private key of {cert}, got another's")


def _public_bytes(key: Any) -> bytes:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(serialization.Encoding.DER, spki))
