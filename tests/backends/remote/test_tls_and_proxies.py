"""Real TLS and real proxies on loopback: whose certificates are trusted, who is asked through what, and who reads no key."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kvchat.backends.base import Answer
from kvchat.backends.remote.backend import RemoteBackend
from kvchat.config import Config
from kvchat.errors import KvchatError
from kvchat.remotes import RemoteConfig, Target
from tests.backends.remote.proxies import proxying
from tests.backends.remote.servers import Reply, Request, Server, as_json, serving
from tests.backends.remote.test_misbehaving import KEY, WORDS, check_lines, outcome, whole

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
FAR = "gpu.example"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own ways; a key in a variable."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("TEST_KEY", KEY)


def answering(request: Request) -> Reply:
    if request.path.endswith("/models"):
        return as_json({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]})
    return whole("vllm")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Server]:
    """A server that speaks TLS, with a certificate for loopback and for a host that is far away."""
    with serving(answering, certified(authority, "127.0.0.1", FAR)) as server:
        yield server


@pytest.fixture
def pem(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    return tmp_path / "authority.pem"


def said(url: str, **settings: Any) -> tuple[str, list[str], Answer | KvchatError]:
    """What comes of a question to a URL: the text, the lines, the end."""
    remote = RemoteConfig(url, **({"timeout": 5.0, "api_key_env": "TEST_KEY"} | settings))
    with closing(RemoteBackend(Config(), Target("far", remote))) as backend:
        return outcome(backend)


def is_answered(result: tuple[str, list[str], Answer | KvchatError]) -> bool:
    shown, told, answer = result
    return shown == "".join(WORDS) and told == [] and isinstance(answer, Answer)


def refused(result: tuple[str, list[str], Answer | KvchatError], *words: str) -> None:
    """It failed with one line, in which these words stand."""
    _, lines, error = result
    check_lines(lines)
    assert isinstance(error, KvchatError) and error.remedy
    assert all(word in lines[0] for word in words), lines


def test_a_certificate_that_nobody_here_knows_is_refused_in_one_line_and_gets_no_key(secure: Server) -> None:
    refused(
        said(secure.url), "no certificate that is trusted here", "as ca in its settings, or as SSL_CERT_FILE"
    )
    assert secure.requests == []


def test_a_certificate_of_the_users_own_authority_is_trusted(
    secure: Server, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_answered(said(secure.url, ca=pem))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    assert is_answered(said(secure.url))
    assert f"Bearer {KEY}" == secure.requests[-1].headers["authorization"]


def test_the_setting_goes_before_the_variable(
    secure: Server, pem: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    refused(said(secure.url), "no certificate that is trusted here")
    assert is_answered(said(secure.url, ca=pem))


def signed_by_itself(folder: Path) -> Path:
    """A key and the certificate for 127.0.0.1 that it signed itself, in one file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now()
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now)
    certificate = (
        builder.not_valid_after(now + timedelta(days=1)).add_extension(names, True).sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = folder / "itself.pem"
    file.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    return file


def test_a_certificate_that_signs_itself_is_refused_until_it_is_named_as_trusted(tmp_path: Path) -> None:
    file = signed_by_itself(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    with serving(answering, context) as server:
        refused(said(server.url), "no certificate that is trusted here", "self-signed certificate", "as ca")
        assert server.requests == []
        assert is_answered(said(server.url, ca=file))


def test_a_certificate_for_another_name_says_so(authority: trustme.CA, pem: Path) -> None:
    with serving(answering, certified(authority, "other.example")) as server:
        refused(said(server.url, ca=pem), "for another name", "make that name its url")
        assert server.requests == []


def test_a_certificate_that_has_run_out_says_so(authority: trustme.CA, pem: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1)).configure_cert(context)
    with serving(answering, context) as server:
        refused(said(server.url, ca=pem), "expired")


def test_tls_where_there_is_none_and_none_where_there_is_are_told_apart(secure: Server, pem: Path) -> None:
    with serving(answering) as plain:
        refused(said(plain.url.replace("http:", "https:"), ca=pem), "over TLS", "write http://")
    refused(
        said(secure.url.replace("https:", "http:")), "far can't be reached", "https:// where it speaks TLS"
    )


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_file_of_authorities_that_is_none_is_named(
    text: str | None, secure: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "none.pem"
    if text:
        file.write_text(text)
    refused(said(secure.url, ca=file), f"can't use ca {file}", "PEM")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    refused(said(secure.url), "can't use SSL_CERT_FILE", "PEM")


@pytest.mark.parametrize("by", ["setting", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_server_far_away_is_asked_through_a_tunnel_in_which_nothing_can_be_read(
    by: str, secure: Server, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxying(secure.port) as proxy:
        settings = {"proxy": f"http://{proxy.host}"} if by == "setting" else {}
        if by != "setting":
            monkeypatch.setenv(by, f"http://{proxy.host}")
        assert is_answered(said(f"https://{FAR}", ca=pem, **settings))
        assert {request.method for request in proxy.requests} == {"CONNECT"}
        assert KEY not in repr(proxy.requests) and KEY in repr(secure.requests)


def test_a_proxy_forwards_plain_http_where_nothing_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answering) as server, proxying(server.port) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.host)
        assert is_answered(said(f"http://{FAR}:8000", api_key_env=None))
        assert {request.path for request in proxy.requests} == {
            f"http://{FAR}:8000/v1/models",
            f"http://{FAR}:8000/v1/chat/completions",
        }


@pytest.mark.parametrize("secret", [{}, {"api_key_env": None, "headers": {"Authorization": f"Basic {KEY}"}}])
@pytest.mark.parametrize("by", ["setting", "variable"])
def test_no_key_goes_to_a_proxy_in_clear(
    by: str, secret: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answering) as server, proxying(server.port) as proxy:
        if by == "variable":
            monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        settings = {"proxy": f"http://{proxy.host}"} if by == "setting" else {}
        refused(said(f"http://{FAR}:8000", **settings, **secret), "would read the key", "https://")
        assert proxy.requests == [] and server.requests == []


def test_loopback_is_asked_straight_unless_its_setting_says_otherwise(
    secure: Server, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answering) as plain, proxying(secure.port) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        assert is_answered(said(plain.url)) and is_answered(said(secure.url, ca=pem))
        assert proxy.requests == []
        assert is_answered(said(secure.url, ca=pem, proxy=f"http://{proxy.host}"))
        assert proxy.requests


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_says_so_and_takes_it(
    scheme: str, secure: Server, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serving(answering) as plain,
        proxying((secure if scheme == "https" else plain).port, "me:word") as proxy,
    ):
        settings: dict[str, Any] = {"ca": pem, "api_key_env": None}
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{proxy.host}")
        refused(
            said(f"{scheme}://{FAR}", **settings), f"the proxy {proxy.host} wants a password", "USER:PASSWORD"
        )
        wrong = said(f"{scheme}://{FAR}", proxy=f"http://me:secret@{proxy.host}", **settings)
        refused(wrong, "does not take the password")
        assert "secret" not in wrong[1][0]
        assert is_answered(said(f"{scheme}://{FAR}", proxy=f"http://me:word@{proxy.host}", **settings))


def test_a_proxy_that_is_not_there_is_named(
    secure: Server, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxying(secure.port) as proxy:
        pass
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
    refused(said(f"https://{FAR}", ca=pem), f"the proxy {proxy.host}", "NO_PROXY")
    monkeypatch.setenv("HTTPS_PROXY", "ftp://x")
    refused(said(f"https://{FAR}", ca=pem), "HTTPS_PROXY", "is no proxy")


def test_a_proxy_that_leads_nowhere_is_named(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda request: as_json({}, 502)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        refused(said(f"https://{FAR}", ca=pem), "lets nothing through", "502")
