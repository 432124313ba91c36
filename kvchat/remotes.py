"""Which models are served elsewhere: `[remote.NAME]` of config.toml, names such as `work:MODEL`, and keys. Sends nothing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from kvchat.children import child_environment
from kvchat.errors import UsageError, reason_of

SERVERS = ("auto", "kvchat", "vllm", "sglang", "llama.cpp", "openai", "anthropic")
SENDS = ("auto", "ids", "text")
KEY_PLACE = "{key}"
"""Stands for the key in the value of a header."""

_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
_URL = re.compile(r"https?://", re.IGNORECASE)
_KEY_CMD_TIMEOUT_S = 30.0
_LONGEST_KEY = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """One endpoint. `timeout` is in seconds without a sign of life, `context` in tokens.

    The key itself is never a setting: `api_key_env` names a variable, `api_key_cmd` a command that prints it. In
    `headers`, `{key}` stands for it. `server` is what kind it is, `send` whether conversations go out as token ids.
    """

    url: str = ""
    model: str | None = None
    api_key_env: str | None = None
    api_key_cmd: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = field(default=600.0, metadata={"min": 0.1, "max": 86400.0})
    server: str = field(default="auto", metadata={"choices": SERVERS})
    send: str = field(default="auto", metadata={"choices": SENDS})
    tokenizer: str | None = None
    context: int | None = field(default=None, metadata={"min": 32})
    cache_salt: str | None = None
    session_header: str | None = None
    ca: Path | None = None
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A model of a remote: the remote's `name` (its URL where it has none), its settings, and the model, if one is named."""

    name: str
    remote: RemoteConfig
    model: str | None = None

    @property
    def where(self) -> str:
        """What errors call it: its name, or its host."""
        return host_of(self.remote.url) if _URL.match(self.name) else self.name


def host_of(url: str) -> str:
    """Host and port of a URL, without what else may stand there."""
    parts = urlsplit(url)
    host = parts.hostname or "?"
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{parts.port}" if parts.port else host


def is_plain_http(url: str) -> bool:
    """Whether what is sent to a URL can be read on its way."""
    return urlsplit(url).scheme.lower() == "http"


def without_password(url: str) -> str:
    """A proxy's URL as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://(hidden)@{host_of(url)}" if parts.username or parts.password else url


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: equal ones are the same server, to which alone its key is sent."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme.lower(), 0)
    return parts.scheme.lower(), (parts.hostname or "").lower(), port


def check_url(url: str, where: str) -> None:
    """Raise UsageError unless `url` is one that can be asked, without a password; `where` names the setting."""
    remedy = "write it as http://HOST:PORT or https://HOST/v1"
    try:
        parts = urlsplit(url)
        is_right = bool(_URL.match(url) and parts.hostname and (parts.port is None or parts.port))
    except ValueError:
        is_right = False
    if is_right and (parts.username or parts.password):
        raise UsageError(f"{where}: there is a password in the URL", "name it with api_key_env instead")
    if not is_right or any(ord(char) <= 32 for char in url) or parts.query or parts.fragment:
        raise UsageError(f"{where}: {url[:80]!a} is no URL of a server", remedy)


def check_remote(name: str, remote: RemoteConfig, where: str) -> None:
    """Raise UsageError for a remote that can't be used; `where` names the place of its settings."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: a remote can't be called {name[:40]!r}", "use letters, digits, - and _")
    if not remote.url:
        raise UsageError(f"{where}: the remote {name!r} has no url", f"write url under [remote.{name}]")
    check_url(remote.url, f"{where}: url")
    if remote.proxy:
        check_proxy(remote.proxy, f"{where}: proxy")
    if remote.api_key_env and remote.api_key_cmd:
        raise UsageError(f"{where}: api_key_env and api_key_cmd are two keys", "give one of them")
    for header, value in remote.headers.items():
        if not header.isascii() or not re.fullmatch(r"[\w-]+", header) or re.search(r"[\r\n\0]", value):
            raise UsageError(f"{where}: {header[:40]!r} is no header", 'write headers = { Name = "value" }')


def check_proxy(url: str, where: str) -> None:
    """Raise UsageError unless `url` is a proxy's."""
    if not re.fullmatch(r"(https?|socks5h?)://[^\s/]+/?", url, re.IGNORECASE):
        raise UsageError(f"{where}: {url[:40]!a} is no proxy", "write it as http://HOST:PORT")


def ad_hoc_name(url: str, model: str | None) -> str:
    """The name of a model behind a URL that is no configured remote's: what sessions keep. Raises UsageError."""
    check_url(url, "--url")
    return f"{url}#{model}" if model else url


def target_of(name: str, remotes: Mapping[str, RemoteConfig]) -> Target | None:
    """The remote's model that `name` stands for: `work:MODEL`, `work`, `URL#MODEL` or `URL`; None for a local model.

    A URL at a configured remote's server has that remote's key and settings. Raises UsageError.
    """
    if _URL.match(name):
        url, _, model = name.partition("#")
        check_url(url, "-m")
        known = next((one for one in remotes.values() if origin_of(one.url) == origin_of(url)), None)
        remote = replace(known, url=url) if known else RemoteConfig(url, api_key_env="KVCHAT_API_KEY")
        return Target(url, remote, model or remote.model)
    head, colon, model = name.partition(":")
    if head in remotes:
        return Target(head, remotes[head], model or remotes[head].model)
    if colon and remotes and _NAME.fullmatch(head) and not Path(name).exists():
        near = get_close_matches(head, remotes, n=1, cutoff=0.0)[0]
        raise UsageError(f"no remote is called {head[:40]!r}", f"did you mean {near}:{model}?")
    return None


def api_key(target: Target, environ: Mapping[str, str] | None = None) -> str | None:
    """The key of a remote, fetched anew each time and kept by nobody; None where none is named.

    Raises UsageError when the variable is not set or the command prints none.
    """
    remote = target.remote
    if remote.api_key_cmd:
        return _checked_key(_printed_key(remote.api_key_cmd, target), "api_key_cmd prints", target)
    if not remote.api_key_env:
        return None
    key = (os.environ if environ is None else environ).get(remote.api_key_env, "").strip()
    if not key and remote.api_key_env == "KVCHAT_API_KEY":
        return None
    if not key:
        raise UsageError(
            f"{target.where}: {remote.api_key_env}, which should hold the key, is not set",
            f"export {remote.api_key_env}, or change api_key_env",
        )
    return _checked_key(key, f"{remote.api_key_env} holds", target)


def _printed_key(command: str, target: Target) -> str:
    """What a command prints; what it says on stderr is not shown, for it may be the key."""
    try:
        result = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_KEY_CMD_TIMEOUT_S,
            env=child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"it took longer than {_KEY_CMD_TIMEOUT_S:.0f} s"
    except (OSError, ValueError) as error:
        why = reason_of(error)
    else:
        if result.returncode == 0:
            return result.stdout.decode(errors="replace").strip()
        why = f"it ended with {result.returncode}"
    raise UsageError(
        f"{target.where}: api_key_cmd gives no key: {why}", "run it by hand to see why"
    ) from None


def _checked_key(key: str, source: str, target: Target) -> str:
    if not key or len(key) > _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise UsageError(f"{target.where}: what {source} is no key", "a key is one line of plain letters")
    return key
