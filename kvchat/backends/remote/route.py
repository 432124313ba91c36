"""The way that requests to a server take: through a proxy or straight, and whose certificates are trusted. Sends nothing."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from kvchat.errors import UsageError, reason_of
from kvchat.remotes import RemoteConfig, check_proxy, host_of, is_plain_http

_SECRET_HEADERS = ("auth", "cookie", "key", "password", "secret", "token")
_WITH_PORT = re.compile(r"([^:]+|\[.+\]):(\d+)")


def proxy_for(remote: RemoteConfig, proxies: Mapping[str, str] | None = None) -> str | None:
    """The proxy between us and a remote: its own setting, else the environment's; None where there is none.

    This machine's own servers are asked straight, unless the remote's setting says otherwise. `proxies` are those of
    the environment by scheme, with `no` for hosts that are to have none (see `urllib.request.getproxies`). Raises
    UsageError for a variable that holds no proxy.
    """
    from urllib.request import (
        getproxies,  # half a mail program comes with it: not on the way to the first key
    )

    if remote.proxy:
        return remote.proxy
    parts, known = urlsplit(remote.url), getproxies() if proxies is None else proxies
    host = (parts.hostname or "").rstrip(".")
    found = known.get(parts.scheme) or known.get("all")
    if not found or is_loopback(host) or is_exempt(host, parts.port, known.get("no", "")):
        return None
    url = found if "://" in found else f"http://{found}"
    check_proxy(url, f"{parts.scheme.upper()}_PROXY")
    return url


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    address = _address(host)
    return address.is_loopback if address else host == "localhost" or host.endswith(".localhost")


def is_exempt(host: str, port: int | None, exempt: str) -> bool:
    """Whether NO_PROXY names a host: itself, a domain that it is in, `*`, or the network of its address; with or without port."""
    return any(_is_named(host, port, entry.strip().lower()) for entry in exempt.split(","))


def check_clear(remote: RemoteConfig, proxy: str | None, *, has_key: bool) -> None:
    """Raise UsageError where a proxy would read what is secret: of plain HTTP it sees every header. SOCKS reads nothing."""
    is_secret = has_key or any(part in name.lower() for name in remote.headers for part in _SECRET_HEADERS)
    if proxy and is_secret and is_plain_http(remote.url) and not proxy.lower().startswith("socks"):
        host = host_of(remote.url)
        way_out = "take proxy out of its settings" if remote.proxy else f"name {host} in NO_PROXY"
        raise UsageError(
            f"{host} is asked in plain HTTP, and the proxy {host_of(proxy)} would read the key",
            f"make its url https://, or {way_out}",
        )


def trusted(ca: Path | None) -> ssl.SSLContext:
    """The certificates that are trusted: those of a PEM file, of SSL_CERT_FILE, or the system's. Raises UsageError."""
    import httpx2

    try:
        return ssl.create_default_context(cafile=ca) if ca else httpx2.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        name = f"ca {ca}" if ca else "SSL_CERT_FILE"
        raise UsageError(f"can't use {name}: {reason_of(error)}", "give a PEM file") from None


def _is_named(host: str, port: int | None, entry: str) -> bool:
    with_port = _WITH_PORT.fullmatch(entry)
    if with_port:
        entry = with_port[1]
        if port != int(with_port[2]):
            return False
    name = entry.strip("[]").removeprefix("*.").removeprefix(".")
    address, network = _address(host), _network(name)
    if address is not None and network is not None:
        return address in network
    return name == "*" or (bool(name) and (host == name or host.endswith(f".{name}")))


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(name, strict=False)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
