"""The server's paths, and the app that they are together."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from kvchat.server import about
from kvchat.server.chat_completions import chat_completions
from kvchat.server.completions import completions
from kvchat.server.endpoint import Endpoint, Respond
from kvchat.server.guard import Door, Guard
from kvchat.server.messages import count_tokens, messages
from kvchat.server.refusals import Form, RefusedError, anthropic_form, openai_form
from kvchat.server.responses import Responses
from kvchat.server.service import Service

Row = tuple[str, str, Respond, Form]
"""A method, a path, what answers there, and how it writes errors."""


def rows() -> tuple[Row, ...]:
    """Everything that there is."""
    responses = Responses()
    return (
        ("POST", "/v1/chat/completions", chat_completions, openai_form),
        ("POST", "/v1/completions", completions, openai_form),
        ("POST", "/v1/responses", responses.create, openai_form),
        ("POST", "/v1/responses/compact", about.compact, openai_form),
        ("GET", "/v1/responses/{name}", responses.get, openai_form),
        ("DELETE", "/v1/responses/{name}", responses.delete, openai_form),
        ("POST", "/v1/messages", messages, anthropic_form),
        ("POST", "/v1/messages/count_tokens", count_tokens, anthropic_form),
        ("GET", "/v1/models", about.models, openai_form),
        ("GET", "/v1/models/{name:path}", about.model, openai_form),
        ("POST", "/tokenize", about.tokenize, openai_form),
        ("GET", "/health", about.health, openai_form),
        ("GET", "/metrics", about.metrics, openai_form),
    )


def app_of(service: Service, door: Door) -> ASGIApp:
    """The app over a service."""
    routes = [
        Route(path, Endpoint(path, service, respond, form=form), methods=[method])
        for method, path, respond, form in rows()
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_such_path})
    app.router.redirect_slashes = False
    return Guard(app, door)


async def _no_such_path(request: Request, error: Exception) -> JSONResponse:
    """What is said of a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    form = anthropic_form if path.startswith("/v1/messages") else openai_form
    what = (
        f"{path[:80]} takes no {request.method[:20]}"
        if error.status_code == 405
        else f"there is nothing at {path[:80]}"
    )
    return JSONResponse(form(RefusedError(error.status_code, what)), error.status_code, error.headers)
