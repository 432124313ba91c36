"""A conversation as a document: Markdown, JSON or a page of HTML that needs nothing else. Knows no store."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from kvchat.backends.base import Role
from kvchat.chat.store import SessionRow
from kvchat.chat.tree import Exchange
from kvchat.errors import UsageError

_Message = dict[str, Any]


def exported(row: SessionRow, path: Sequence[Exchange], kind: str) -> str:
    """A session's path as `md`, `json` or `html`, without a newline at its end. Raises UsageError for another kind."""
    if kind not in FORMATS:
        raise UsageError(f"no format is called {kind!r}", f"give one of {', '.join(FORMATS)}")
    return FORMATS[kind](row, _messages(row, path))


def session_json(row: SessionRow) -> dict[str, Any]:
    """A session as one row of a list."""
    return {
        "id": row.id,
        "name": row.name,
        "title": row.title,
        "model": row.model,
        "turns": row.num_exchanges,
        "tokens": row.num_tokens,
        "created": _iso(row.created),
        "updated": _iso(row.updated),
    }


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, also where others could read one by that name. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)
        file.write(text)


def local_time(seconds: float) -> str:
    """Seconds since the epoch as a date and a time of day here."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _messages(row: SessionRow, path: Sequence[Exchange]) -> list[_Message]:
    messages: list[_Message] = []
    if row.system:
        messages.append({"role": str(Role.SYSTEM), "content": row.system})
    for exchange in path:
        created = _iso(exchange.created)
        messages.append({"role": str(Role.USER), "content": exchange.user.text, "created": created})
        if exchange.answer is not None:
            messages.append(_answer(exchange))
    return messages


def _answer(exchange: Exchange) -> _Message:
    answer = exchange.answer
    assert answer is not None
    return {
        "role": str(Role.ASSISTANT),
        "content": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": str(answer.finish_reason),
        "model": exchange.model,
        "usage": asdict(answer.usage),
        "timings": asdict(answer.timings),
    }


def _json(row: SessionRow, messages: list[_Message]) -> str:
    return json.dumps(session_json(row) | {"messages": messages}, ensure_ascii=False, indent=2)


def _markdown(row: SessionRow, messages: list[_Message]) -> str:
    parts = [f"# {row.label}"]
    for message in messages:
        parts.append(f"## {message['role'].capitalize()}")
        if message.get("reasoning", "").strip():
            parts.append(
                "\n".join(f"> {line}".rstrip() for line in message["reasoning"].strip().splitlines())
            )
        parts.append(message["content"].strip())
    return "\n\n".join(part for part in parts if part)


def _html(row: SessionRow, messages: list[_Message]) -> str:
    from kvchat.chat.page import page  # the parser of Markdown, which a listing need not wait for

    return page(row.label, messages)


FORMATS: Mapping[str, Callable[[SessionRow, list[_Message]], str]] = {
    "md": _markdown,
    "json": _json,
    "html": _html,
}
"""Every kind of document by the end of its file's name."""
