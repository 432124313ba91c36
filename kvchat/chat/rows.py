"""Exchanges as rows of the store and back: JSON for options and statistics, int32 for token ids. Knows no SQL."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from sys import byteorder
from typing import Any, TypeVar

from kvchat.backends.base import Answer, CacheReport, FinishReason, Options, Role, Timings, Turn, Usage
from kvchat.chat.tree import Exchange

_NO_USAGE = Usage(0, 0, 0)
_NO_TIMINGS = Timings(0, 0, 0, 0, 0, 0, 0, 0)
_NO_REPORT = CacheReport(0, 0, 0, 0, "")
V = TypeVar("V", Options, Usage, Timings, CacheReport)

EXCHANGE_COLUMNS = (
    "e.id, e.parent, e.user, e.model, e.options, e.created,"
    " e.answer, e.reasoning, e.finish, e.statistics, t.tokenizer, t.ids"
)
"""What `exchange_from_row` reads, in its order."""


def statistics_json(answer: Answer) -> str:
    """What is kept of an answer's numbers."""
    usage, timings, cache = asdict(answer.usage), asdict(answer.timings), asdict(answer.cache)
    return json.dumps({"usage": usage, "timings": timings, "cache": cache}, ensure_ascii=False)


def exchange_from_row(row: tuple[Any, ...], encoded: Mapping[str, tuple[int, ...]]) -> Exchange:
    """The exchange of a row. One that was broken off has what was saved of its answer, as cancelled."""
    exchange_id, parent, user, model, options, created, *answer = row
    values = json.loads(options)
    asked = _value(Options(), values | {"stop": tuple(values.get("stop", ()))})
    return Exchange(
        exchange_id, parent, Turn(Role.USER, user), _answer(*answer), asked, model, created, encoded
    )


def _answer(
    text: str, reasoning: str, finish: str | None, statistics: str | None, *ids: Any
) -> Answer | None:
    if finish is None and not text and not reasoning:
        return None
    tokenizer, blob = ids
    values = json.loads(statistics or "{}")
    return Answer(
        text,
        reasoning,
        (),
        ids_from_blob(blob or b""),
        tokenizer or "",
        FinishReason(finish or FinishReason.CANCELLED),
        _value(_NO_USAGE, values.get("usage", {})),
        _value(_NO_TIMINGS, values.get("timings", {})),
        _value(_NO_REPORT, values.get("cache", {})),
    )


def _value(blank: V, values: dict[str, Any]) -> V:
    """A value from JSON that another version of the program may have written: what is unknown is left out."""
    return replace(blank, **{item.name: values[item.name] for item in fields(blank) if item.name in values})


def ids_to_blob(ids: Iterable[int]) -> bytes:
    """Token ids as int32, little endian."""
    packed = array("i", ids)
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def ids_from_blob(blob: bytes) -> tuple[int, ...]:
    """The token ids that `ids_to_blob` packed."""
    packed = array("i", blob)
    if byteorder == "big":
        packed.byteswap()
    return tuple(packed)
