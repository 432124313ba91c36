"""What goes wrong between us and a server, as one line each with its remedy. Never says a key."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from time import time

from kvchat.errors import ContextOverflowError, KvchatError, ModelUnavailableError, UsageError, one_line
from kvchat.remotes import Target, host_of, is_plain_http

_TOO_LONG = (
    "context_length",
    "context length",
    "context size",
    "context window",
    "too long",
    "maximum context",
)
_NO_HOST = ("name or service", "getaddrinfo", "name resolution", "nodename")
_MODEL_GONE = ("model_not_found", "model", "does not exist", "not found")


class UnreachableError(ModelUnavailableError):
    """The server can't be talked to."""


class BusyError(KvchatError):
    """The server asks to come back later, after `wait_s` seconds; None where it does not say."""

    def __init__(self, message: str, remedy: str, wait_s: float | None) -> None:
        super().__init__(message, remedy)
        self.wait_s = wait_s


class BrokenError(KvchatError):
    """The answer ended before it was complete."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that is no answer: its status, what of its headers matters, and the beginning of its text."""

    status: int
    headers: Mapping[str, str]
    text: str


def refusal(reply: Reply, target: Target, *, has_key: bool, proxy: str | None = None) -> KvchatError:
    """Why the server, or the proxy before it, refused, with what to do."""
    where, said = target.where, said_in(reply.text)
    behind = f": {said}" if said else ""
    if 300 <= reply.status < 400:
        return _redirected(reply, target)
    if reply.status in (401, 403):
        return _keyless(where, behind, target, has_key=has_key)
    if reply.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED and proxy:
        return _locked(proxy)
    if is_too_long(said) or reply.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return ContextOverflowError(
            f"{where} can't take so much{behind}", "start anew with /clear, or /compact"
        )
    if reply.status == HTTPStatus.NOT_FOUND:
        return _missing(where, said, target)
    if reply.status in (429, 503, 529):
        return _busy(reply, where, said)
    if reply.status >= 500:
        return KvchatError(
            f"{where} failed ({_status(reply.status)}){behind}", "ask again; its log says more"
        )
    return KvchatError(f"{where} refuses this ({_status(reply.status)}){behind}", "see kvchat help remotes")


def no_endpoint(content_type: str, target: Target) -> KvchatError:
    """The answer is of a kind that no answer has."""
    kind = content_type.partition(";")[0].strip()[:60] or "something without a type"
    return UnreachableError(
        f"{target.where} answers with {kind}, not with a model's answer", f"check the url {target.remote.url}"
    )


def is_too_long(said: str) -> bool:
    """Whether a server says that the prompt does not fit."""
    return any(sign in said.lower() for sign in _TOO_LONG)


def unreachable(error: Exception, target: Target, proxy: str | None = None) -> KvchatError:
    """Why nothing came through, from an exception of the transport's; `proxy` is what stands between, if anything does."""
    where, causes = target.where, list(_causes(error))
    words = " ".join(f"{type(one).__name__} {one}" for one in causes).lower()
    tls = [
        one for one in causes if isinstance(one, ssl.SSLError) and not isinstance(one, ssl.SSLWantReadError)
    ]
    if tls:
        return _untrusted(tls[0], where)
    if "socks" in words and "install" in words:
        return UsageError("a SOCKS proxy needs a package that is not installed", "pip install socksio")
    if proxy and (type(error).__name__ in ("ProxyError", "ConnectError", "ConnectTimeout")):
        return _stopped_by_proxy(proxy, where, error)
    if "timeout" in type(error).__name__.lower():
        remedy = "see whether it still works, or set a longer timeout"
        return UnreachableError(f"{where} did not answer in {target.remote.timeout:g} s", remedy)
    if any(isinstance(one, ConnectionRefusedError) for one in causes) or "refused" in words:
        return UnreachableError(
            f"nobody answers at {host_of(target.remote.url)}", "start the server, or check its url"
        )
    if any(sign in words for sign in _NO_HOST):
        return UnreachableError(
            f"there is no host {host_of(target.remote.url)}", "check the url and the network"
        )
    https = ", https:// where it speaks TLS," if is_plain_http(target.remote.url) else ""
    return UnreachableError(
        f"{where} can't be reached ({one_line(causes[-1])})", f"check its url{https} and the network"
    )


def said_in(text: str) -> str:
    """What an error's body says, in one line; empty for a page that is meant for a browser."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.lstrip()[:1] in ("<", "") else one_line(Exception(text))
    return message_of(value)


def message_of(value: object) -> str:
    """The message in an error object, in whichever of the usual places it stands."""
    for key in ("error", "message", "detail", "msg"):
        if isinstance(value, dict) and value.get(key):
            return message_of(value[key])
    if isinstance(value, list) and value:
        return message_of(value[0])
    return one_line(Exception(value)) if isinstance(value, str) else ""


def retry_after_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """How long a server asks us to wait, in seconds; None where it does not say."""
    said = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # not on the way to the first key

    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - (time() if now_s is None else now_s))
    except (ValueError, TypeError, OverflowError):
        return None


def _redirected(reply: Reply, target: Target) -> KvchatError:
    place = reply.headers.get("location", "")[:200]
    return UnreachableError(
        f"{target.where} sends us on to {ascii(place)[1:-1] or 'nowhere'}, where no key is sent unasked",
        "if you trust it, make that the url",
    )


def _keyless(where: str, behind: str, target: Target, *, has_key: bool) -> KvchatError:
    named = target.remote.api_key_env or target.remote.api_key_cmd
    if has_key:
        return ModelUnavailableError(f"{where} does not take the key{behind}", f"check what {named} gives")
    if target.name == target.remote.url:
        return ModelUnavailableError(
            f"{where} wants a key", "export KVCHAT_API_KEY, or name it in [remote.NAME]"
        )
    return ModelUnavailableError(f"{where} wants a key", f"set api_key_env under [remote.{target.name}]")


def _untrusted(error: ssl.SSLError, where: str) -> KvchatError:
    """Why TLS came to nothing."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        return UnreachableError(
            f"{where} can't be talked to over TLS ({one_line(Exception(reason))})",
            "write http:// if it speaks none",
        )
    why = one_line(Exception(error.verify_message)).rstrip(".")
    if "mismatch" in why.lower() or "not valid for" in why.lower():
        return UnreachableError(
            f"the certificate of {where} is for another name ({why})", "make that name its url"
        )
    if "expired" in why or "not yet" in why:
        return UnreachableError(
            f"{where} has a certificate that is not in force ({why})", "renew it there, or check this clock"
        )
    return UnreachableError(
        f"{where} has no certificate that is trusted here ({why})",
        "give its authority's file as ca in its settings, or as SSL_CERT_FILE",
    )


def _stopped_by_proxy(proxy: str, where: str, error: Exception) -> KvchatError:
    if "407" in str(error):
        return _locked(proxy)
    if type(error).__name__ == "ProxyError":
        said = one_line(error)
        return UnreachableError(
            f"the proxy {host_of(proxy)} lets nothing through to {where} ({said})",
            "check proxy, HTTPS_PROXY and NO_PROXY",
        )
    return UnreachableError(
        f"the proxy {host_of(proxy)}, which stands before {where}, can't be reached",
        "check proxy, HTTPS_PROXY and NO_PROXY",
    )


def _locked(proxy: str) -> KvchatError:
    """The proxy wants a name and a password."""
    what = "does not take the password" if "@" in proxy else "wants a password"
    return UnreachableError(
        f"the proxy {host_of(proxy)} {what}",
        "write it as http://USER:PASSWORD@HOST:PORT in HTTPS_PROXY, or as proxy in the remote's settings",
    )


def _missing(where: str, said: str, target: Target) -> KvchatError:
    if target.model and any(sign in said.lower() for sign in _MODEL_GONE) and said != "Not Found":
        remedy = f"kvchat models ls {target.name} shows what it has"
        return ModelUnavailableError(f"{where} has no model {target.model[:80]!r}", remedy)
    return ModelUnavailableError(f"{where} has no such endpoint", f"check the url {target.remote.url}")


def _busy(reply: Reply, where: str, said: str) -> KvchatError:
    wait_s = retry_after_s(reply.headers)
    what = "has too much to do" if reply.status == 429 else "is not ready"
    when = "ask again later" if wait_s is None else f"ask again in {wait_s:.0f} s"
    return BusyError(f"{where} {what} ({reply.status})" + (f": {said}" if said else ""), when, wait_s)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1
