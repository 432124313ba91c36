"""HTTP to one server and no other: a thread with an event loop, so that every wait can be broken off. Knows no model.

A response that sends us elsewhere is an error, never followed: the key goes to the server that it is for.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from kvchat.backends.remote.events import EndlessError, EventReader
from kvchat.backends.remote.refusals import BrokenError, Reply, no_endpoint, refusal, unreachable
from kvchat.backends.remote.route import check_clear, proxy_for, trusted
from kvchat.errors import EngineDiedError, KvchatError
from kvchat.remotes import KEY_PLACE, RemoteConfig, Target, api_key

if TYPE_CHECKING:
    import httpx2

ANTHROPIC_VERSION = "2023-06-01"
CONNECT_TIMEOUT_S = 10.0
_MAX_REPLY_BYTES = 16 << 20
_MAX_ERROR_BYTES = 64 << 10
_CLOSE_S = 2.0
T = TypeVar("T")


def api_url(url: str) -> str:
    """Where a server's OpenAI-compatible paths begin: its URL, with `/v1` behind one that has no path."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def root_url(url: str) -> str:
    """Where a server's own paths begin."""
    return api_url(url).removesuffix("/v1")


class Link:
    """What is sent to one remote, and what comes back. May be used from any thread."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._client: httpx2.AsyncClient | None = None
        self._has_key = False
        self._key = ""
        self._proxy: str | None = None
        self._is_kept = False  # whether a connection of an earlier request may be open
        self._thread = threading.Thread(target=self._run, name="kvchat-remote", daemon=True)
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread.start()

    def call(self, method: str, url: str, body: object = None, *, timeout_s: float | None = None) -> Any:
        """What a request answers, as parsed JSON. Raises KvchatError."""
        return self._wait(self._called(method, url, body, timeout_s))

    def stream(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Streaming:
        """Ask for an answer that comes in pieces."""
        streaming = Streaming(self._loop)
        streaming.start(self._pump(streaming, url, body, headers))
        return streaming

    def close(self) -> None:
        """End all that is going on."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_S)

    def without_key(self, text: str) -> str:
        """What a server says, should it repeat the key."""
        return text.replace(self._key, "(the key)") if self._key else text

    # In the loop's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            if self._client is not None:
                self._loop.run_until_complete(self._client.aclose())
        finally:
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._is_closed:
            work.close()
            raise EngineDiedError("the connection was closed")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except asyncio.CancelledError:
            raise EngineDiedError("the connection was closed") from None

    async def _called(self, method: str, url: str, body: object, timeout_s: float | None) -> Any:
        import httpx2

        content = None if body is None else encoded(body)
        timeout = httpx2.USE_CLIENT_DEFAULT if timeout_s is None else httpx2.Timeout(timeout_s)
        try:
            client = await self._ready()
            request = client.build_request(method, url, content=content, timeout=timeout)
            response = await self._sent(client, request)
            try:
                if response.status_code != 200:
                    raise await self._refused(response)
                text = await _text_of(response, _MAX_REPLY_BYTES)
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise unreachable(error, self.target, self._proxy) from None
        except EndlessError as error:
            raise KvchatError(
                f"{self.target.where} was cut off: {error}", "see what the server does"
            ) from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise no_endpoint(
                self.without_key(response.headers.get("content-type", "")), self.target
            ) from None

    async def _pump(
        self, streaming: Streaming, url: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        """Send, and hand on each event; what goes wrong before the first byte of an answer is a refusal."""
        import httpx2

        response: httpx2.Response | None = None
        try:
            client = await self._ready()
            request = client.build_request("POST", url, content=encoded(body), headers=dict(headers))
            response = await self._sent(client, request)
            if response.status_code != 200:
                raise await self._refused(response)
            await self._hand_on(streaming, response)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            failed = unreachable(error, self.target, self._proxy)
            if response is not None:
                failed = BrokenError(
                    f"the stream of {self.target.where} broke off", "/continue goes on, or ask again"
                )
            raise failed from None
        except EndlessError as error:
            raise BrokenError(
                f"{self.target.where} was cut off: {error}", "see what the server does"
            ) from None
        finally:
            if response is not None:
                await response.aclose()

    async def _sent(self, client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
        """The response to a request; one more is sent where a connection that was kept open turns out to be closed.

        A server may close it in the very moment in which it is used again, and that is no answer to what was asked.
        """
        import httpx2

        was_kept, self._is_kept = self._is_kept, False
        try:
            response = await client.send(request, stream=True)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            if not was_kept:
                raise
            response = await client.send(request, stream=True)
        self._is_kept = True
        return response

    async def _hand_on(self, streaming: Streaming, response: httpx2.Response) -> None:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":  # it does not stream, and says all at once
            streaming.put(await _text_of(response, _MAX_REPLY_BYTES))
            return
        if kind not in ("text/event-stream", "", "text/plain", "application/octet-stream"):
            raise no_endpoint(self.without_key(kind), self.target)
        reader = EventReader()
        async for data in response.aiter_bytes():
            for event in reader.feed(data):
                streaming.put(event)
        for event in reader.finish():
            streaming.put(event)

    async def _refused(self, response: httpx2.Response) -> KvchatError:
        text = self.without_key(await _text_of(response, _MAX_ERROR_BYTES, is_cut=True))
        headers = {name.lower(): self.without_key(value) for name, value in response.headers.items()}
        return refusal(
            Reply(response.status_code, headers, text), self.target, has_key=self._has_key, proxy=self._proxy
        )

    async def _ready(self) -> httpx2.AsyncClient:
        """The client, made when it is needed first: what it takes to load is not on the way to the first key."""
        if self._client is None:
            import httpx2

            remote, headers = self.target.remote, await self._headers()
            trust, proxy = trusted(remote.ca), self._proxy
            self._client = httpx2.AsyncClient(
                headers=headers,
                timeout=httpx2.Timeout(remote.timeout, connect=min(CONNECT_TIMEOUT_S, remote.timeout)),
                follow_redirects=False,
                verify=trust,
                proxy=httpx2.Proxy(proxy, ssl_context=trust if proxy.startswith("https") else None)
                if proxy
                else None,
                trust_env=False,  # what the environment says of proxies and certificates is in `route`
            )
        return self._client

    async def _headers(self) -> dict[str, str]:
        remote, target = self.target.remote, self.target
        key = await asyncio.to_thread(api_key, target) if remote.api_key_env or remote.api_key_cmd else None
        self._key, self._has_key = key or "", bool(key)
        self._proxy = proxy_for(remote)
        check_clear(remote, self._proxy, has_key=self._has_key)
        headers = {name: value.replace(KEY_PLACE, self._key) for name, value in remote.headers.items()}
        if key and not any(KEY_PLACE in value for value in remote.headers.values()):
            headers |= {"x-api-key": key} if speaks_anthropic(remote) else {"Authorization": f"Bearer {key}"}
        if speaks_anthropic(remote):
            headers = {"anthropic-version": ANTHROPIC_VERSION} | headers
        return {"Content-Type": "application/json", "User-Agent": "kvchat"} | headers


class Streaming:
    """The events of one answer, in the thread that iterates; `cancel` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._future: Future[None] | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin."""
        try:
            self._future = asyncio.run_coroutine_threadsafe(self._work(work), self._loop)
        except RuntimeError:
            work.close()
            self._events.put(EngineDiedError("the connection was closed"))
        else:
            self._future.add_done_callback(lambda future: self._events.put(None))

    def put(self, event: str) -> None:
        """Hand on one event."""
        self._events.put(event)

    def cancel(self) -> None:
        """Close the connection, on which the server stops; what came is given, then the iteration ends."""
        if self._future is not None:
            self._future.cancel()

    def __iter__(self) -> Iterator[str]:
        while (event := self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    async def _work(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except KvchatError as error:
            self._events.put(error)
        except Exception as error:  # a bug of ours or of the library's is told, and waited for by nobody
            self._events.put(KvchatError(f"internal error: {type(error).__name__}: {error}"))


def speaks_anthropic(remote: RemoteConfig) -> bool:
    """Whether it is an endpoint of Anthropic's form."""
    is_theirs = remote.server == "auto" and (urlsplit(remote.url).hostname or "").endswith("anthropic.com")
    return is_theirs or remote.server == "anthropic"


def encoded(body: object) -> bytes:
    """A body as bytes: the same value gives the same bytes, always."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


async def _text_of(response: httpx2.Response, most: int, *, is_cut: bool = False) -> str:
    """The text of a response up to `most` bytes. Raises EndlessError for more, unless it `is_cut` there."""
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > most:
            if is_cut:
                break
            raise EndlessError(f"it sent more than {most >> 20} MiB")
    return bytes(data[:most]).decode(errors="replace")
