from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import TlsError
from serving.tls import ClientTls, ServerTls
from tests.certificates import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


def test_a_good_pair_is_taken(authority: Authority, pair: Pair) -> None:
    ServerTls(pair.cert, pair.key, authority.cert)
    assert ClientTls(authority.cert, pair.cert, pair.key).credentials() is not None


def test_a_certificate_out_of_its_time_is_named_with_its_dates(authority: Authority) -> None:
    expired = authority.issue("expired", days=-1)
    with pytest.raises(TlsError, match=r"expired\.pem: expected a certificate that is valid now, .* from \d{4}-.* to "):
        ServerTls(expired.cert, expired.key)


def test_a_key_of_another_certificate_is_refused(authority: Authority, pair: Pair) -> None:
    with pytest.raises(TlsError, match=r"other\.key: expected the private key of .*server\.pem, got another"):
        ServerTls(pair.cert, authority.issue("other").key)


def test_a_key_with_a_passphrase_is_refused(authority: Authority) -> None:
    locked = authority.issue("locked", passphrase=b"secret")
    with pytest.raises(TlsError, match="expected a private key without a passphrase"):
        ServerTls(locked.cert, locked.key)


def test_a_missing_file_is_named(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(TlsError, match=r"nowhere\.key: expected a readable PEM file, got: No such file"):
        ServerTls(pair.cert, tmp_path / "nowhere.key")


@pytest.mark.parametrize("swapped", ["cert", "key"])
def test_what_is_no_pem_of_its_kind_is_refused(pair: Pair, swapped: str) -> None:
    files = {"cert": pair.cert, "key": pair.key} | {swapped: pair.key if swapped == "cert" else pair.cert}
    with pytest.raises(TlsError, match=r"expected a (certificate|private key) as PEM, got none"):
        ServerTls(**files)


def test_a_client_shows_a_certificate_with_its_key_or_none(authority: Authority, pair: Pair) -> None:
    with pytest.raises(TlsError, match="got a certificate without a key"):
        ClientTls(authority.cert, pair.cert)
    with pytest.raises(TlsError, match="got a key without a certificate"):
        ClientTls(authority.cert, key=pair.key)


def test_a_bundle_of_authorities_may_hold_one_that_has_expired(authority: Authority, tmp_path: Path) -> None:
    expired = authority.issue("expired", days=-1).cert
    with pytest.raises(TlsError, match="valid now"):
        ClientTls(expired)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(expired.read_bytes() + authority.cert.read_bytes())
    ClientTls(bundle)


def test_it_travels_by_environment(authority: Authority, pair: Pair) -> None:
    tls = ClientTls(authority.cert, pair.cert, pair.key)
    assert ClientTls.of_environment(tls.to_environment()) == tls
    assert ClientTls.of_environment({"HOME": "/"}) is None
