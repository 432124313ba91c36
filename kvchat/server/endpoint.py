"""One path of the server: reads the body within bounds, ends the work when the client hangs up, and says what went wrong."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from kvchat.server.reading import Fields
from kvchat.server.refusals import Form, RefusedError, openai_form
from kvchat.server.service import Limits, Service

SEND_TIMEOUT_S = 60.0
"""So long a client may take no more of an answer before it is hung up on."""
_HANG_UP = 499


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, read: `client` is who asks, as far as can be told."""

    service: Service
    fields: Fields
    client: str
    path_params: dict[str, Any]


Respond = Callable[[Exchange], Awaitable[Response]]


class HungUpError(Exception):
    """The client has gone."""


class Endpoint:
    """An ASGI app for one path: `respond` makes its response, `form` writes what goes wrong."""

    def __init__(self, path: str, service: Service, respond: Respond, *, form: Form = openai_form) -> None:
        self._path = path
        self._service = service
        self._respond = respond
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = _Sending(send, secrets.token_hex(12))
        try:
            body = await _whole_body(scope, receive, self._service.limits)
            fields = Fields.of_body(body) if body else Fields({})
            exchange = Exchange(self._service, fields, _client_of(scope), scope.get("path_params", {}))
            await _unless_gone(receive, self._answer(exchange, scope, receive, sending))
        except HungUpError:
            sending.status = _HANG_UP
        except RefusedError as error:
            await _refuse(error, self._form, scope, receive, sending)
        finally:
            self._service.metrics.count_request(self._path, sending.status)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: _Sending) -> None:
        try:
            response = await self._respond(exchange)
            await response(scope, receive, send)
        except (RefusedError, asyncio.CancelledError):
            raise
        except Exception as error:
            if send.status:
                raise
            refused = self._service.refusal(error)
            if refused.status == 500:
                logging.getLogger("kvchat").warning("internal error: %s: %s", type(error).__name__, error)
            raise refused from error


class EventStream(StreamingResponse):
    """Server-sent events, closed as soon as nobody reads them."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await self.stream_response(send)


class _Sending:
    """`send` with a bound on the wait, a number for the request, and the status that was sent."""

    def __init__(self, send: Send, number: str) -> None:
        self._send = send
        self._number = number.encode()
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", b"req_" + self._number), (b"request-id", b"req_" + self._number)]
            message = {**message, "headers": [*message["headers"], *own]}
        try:
            async with asyncio.timeout(
                SEND_TIMEOUT_S
            ):  # `wait_for` of Python 3.11 may miss that it is cancelled
                await self._send(message)
        except TimeoutError:
            raise HungUpError from None


async def _refuse(error: RefusedError, form: Form, scope: Scope, receive: Receive, send: Send) -> None:
    headers = error.headers
    if error.status in (408, 413):
        headers["connection"] = "close"  # what still comes of the body is not waited for
    await JSONResponse(form(error), error.status, headers)(scope, receive, send)


async def _whole_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """The request's body. Raises RefusedError for one too long or too slow, HungUpError for half of one."""
    too_long = RefusedError(413, f"the body is longer than {limits.body_bytes} bytes")
    said = dict(scope["headers"]).get(b"content-length", b"0")
    if not said.isdigit() or int(said[:20]) > limits.body_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HungUpError
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise too_long
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise RefusedError(408, f"the body did not come within {limits.body_s:g} s") from None


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; if the client hangs up, cancel it. Raises what the work raises, and HungUpError."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUpError
        await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _client_of(scope: Scope) -> str:
    """Who asks: the address and the program, so that two programs of one user take turns."""
    headers = dict(scope["headers"])
    host = scope["client"][0] if scope.get("client") else ""
    return f"{host} {headers.get(b'user-agent', b'')[:200].decode('latin-1')}"
