"""Who may come in: hosts, origins and keys, looked at before a request is read. No page of a browser gets past it."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from kvchat.server.refusals import RefusedError, anthropic_form, openai_form

OPEN_PATHS = ("/health",)
"""What needs no key, and tells nothing."""
_OWN_SITES = ("same-origin", "none")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Door:
    """Where the server listens, and the key that it wants; None for none."""

    host: str
    port: int
    key: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine's programs reach it."""
        return is_loopback(self.host)


class Guard:
    """An ASGI app in front of another: lets through what may come in, and says to the rest why not."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(
                {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
                scope["path"],
            )
        except RefusedError as error:
            form = anthropic_form if scope["path"].startswith("/v1/messages") else openai_form
            await JSONResponse(form(error), error.status, {"connection": "close"})(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, headers: Mapping[str, str], path: str) -> None:
        door = self._door
        host = host_name(headers.get("host", ""))
        if door.is_loopback and host not in (*_LOOPBACK_NAMES, door.host):
            raise RefusedError(421, "this server answers to localhost alone")
        if headers.get("sec-fetch-site", "none") not in _OWN_SITES or not _is_own(headers):
            raise RefusedError(403, "pages of a browser may not ask this server")
        if door.key is not None and path not in OPEN_PATHS and not _has_key(headers, door.key):
            raise RefusedError(401, "the API key is missing or wrong", code="invalid_api_key")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, for its own programs alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, in small letters; empty for one that is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _is_own(headers: Mapping[str, str]) -> bool:
    """Whether no origin is named, or the server's own."""
    origin = headers.get("origin")
    return origin is None or origin.lower() == f"http://{headers.get('host', '').lower()}"


def _has_key(headers: Mapping[str, str], key: str) -> bool:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else ""
    return any(
        hmac.compare_digest(one.encode("latin-1"), key.encode())
        for one in (given, headers.get("x-api-key", ""))
    )
