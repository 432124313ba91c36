"""What the server says of itself: its models, how a text is cut into tokens, its health and its metrics."""

from __future__ import annotations

from starlette.responses import JSONResponse, PlainTextResponse, Response

from kvchat.backends.base import DEFAULTS, ModelInfo, Phase, Role, Turn
from kvchat.server.completions import prompt_of
from kvchat.server.endpoint import Exchange
from kvchat.server.metrics import CONTENT_TYPE
from kvchat.server.question import question_of
from kvchat.server.reading import Fields
from kvchat.server.refusals import RefusedError
from kvchat.server.service import served_name
from kvchat.server.wording import ALIASES, check_model, messages_of, tools_of


async def models(exchange: Exchange) -> Response:
    """The one model that there is."""
    return JSONResponse({"object": "list", "data": [_model(await exchange.service.info())]})


async def model(exchange: Exchange) -> Response:
    """The model of this name. Raises RefusedError for another."""
    info, name = await exchange.service.info(), exchange.path_params["name"]
    if name not in (served_name(info), *ALIASES):
        raise RefusedError(
            404, f"there is no model {name[:80]!r} here", param="model", code="model_not_found"
        )
    return JSONResponse(_model(info))


def _model(info: ModelInfo) -> dict[str, object]:
    return {
        "id": served_name(info),
        "object": "model",
        "created": 0,
        "owned_by": "kvchat",
        "max_model_len": info.context,
        "context_length": info.context,
    }


async def compact(exchange: Exchange) -> Response:
    """Raises RefusedError: a name that responses don't have."""
    raise RefusedError(404, "kvchat does not compact conversations")


async def tokenize(exchange: Exchange) -> Response:
    """The ids of a text (`prompt`, or `content`) or of a conversation (`messages`). Raises RefusedError."""
    service, fields = exchange.service, exchange.fields
    info = await service.info()
    check_model(fields, info, is_needed=False)
    if fields.has("messages"):
        tools, names = tools_of(fields)
        question = question_of(
            messages_of(fields),
            DEFAULTS,
            "",
            service.memory,
            tools=tools,
            tool_names=names,
            takes_tools=info.takes_tools,
        )
        turns = question.turns
    else:
        turns = _bare_turns(fields)
    ids = await service.prompt(turns, DEFAULTS)
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": info.context})


def _bare_turns(fields: Fields) -> tuple[Turn, ...]:
    text = prompt_of(fields) if fields.has("prompt") else fields.text("content")
    if not isinstance(text, str):
        fields.refuse("prompt", "must be a text")
    adds_special = fields.flag("add_special_tokens", True) and fields.flag("add_special", True)
    begun = () if adds_special else (Turn(Role.PROMPT, "", tokens=()),)
    return (*begun, Turn(Role.PROMPT, text))


async def health(exchange: Exchange) -> Response:
    """200 once the model answers, 503 while it loads."""
    service = exchange.service
    status = service.backend.status()
    if status.phase is Phase.FAILED:
        raise RefusedError(503, "the model can't be loaded", code="failed")
    if not service.is_ready:
        raise RefusedError(503, "the model is loading", code="loading", wait_s=1)
    return JSONResponse({"status": "ok"})


async def metrics(exchange: Exchange) -> Response:
    """What is counted, for Prometheus."""
    service = exchange.service
    turnstile = service.turnstile
    text = service.metrics.text(num_running=turnstile.num_running, num_waiting=turnstile.num_waiting)
    return PlainTextResponse(text, media_type=CONTENT_TYPE)
