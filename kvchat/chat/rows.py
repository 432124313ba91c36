"""Sessions and exchanges as rows of the store and back: JSON for options and statistics, int32 for token ids. Knows no SQL.

A row may come from a damaged file: a value of the wrong kind is left out, or taken for what it can only mean.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from sys import byteorder
from typing import Any, TypeVar

from kvchat.backends.base import Answer, CacheReport, FinishReason, Options, Role, Timings, Turn, Usage
from kvchat.chat.tree import Exchange

_NO_USAGE = Usage(0, 0, 0)
_NO_TIMINGS = Timings(0, 0, 0, 0, 0, 0, 0, 0)
_NO_REPORT = CacheReport(0, {}, 0, "")
_KINDS = {
    type(blank): {item.name: type(getattr(blank, item.name)) for item in fields(blank)}
    for blank in (_NO_USAGE, _NO_TIMINGS, _NO_REPORT)
}
_OPTIONS: Mapping[str, type[object]] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
    "stop": list,
    "think": bool,
    "repeat_stop": bool,
}
_USUAL_OPTIONS = 1024  # characters; longer ones are remembered of no row
_MOST = 2.0**64
_LAST_MOMENT_S = 253_370_764_800  # the year 9999 everywhere on Earth
V = TypeVar("V", Usage, Timings, CacheReport)

EXCHANGE_COLUMNS = (
    "e.id, e.parent, e.user, e.model, e.options, e.created, e.pinned, e.follows,"
    " e.answer, e.reasoning, e.finish, e.statistics, t.tokenizer, t.ids"
)
"""What `exchange_from_row` reads, in its order."""


SESSIONS = """
    SELECT s.id, s.tree, s.title, s.name, s.tip, s.system, s.model, s.created, s.updated,
           coalesce(e.depth, 0), coalesce(e.tokens, 0), s.oneshot, s.summary
    FROM session s LEFT JOIN exchange e ON e.id = s.tip
"""
"""What `session_from_row` reads; a condition may follow, then the order."""
LATEST_FIRST = "ORDER BY s.rank DESC, s.rowid DESC"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is kept. Times are in seconds since the epoch; `tree` names the tree that `tip` is in.

    `num_exchanges` lie on the path to the tip, which has `num_tokens` with its prompt and answer. `is_oneshot`: all of it
    was asked without a dialogue. `summary` is the exchange that is told instead of the oldest ones.
    """

    id: str
    tree: str
    title: str = ""
    name: str | None = None
    tip: str | None = None
    system: str | None = None
    model: str = ""
    created: float = 0.0
    updated: float = 0.0
    num_exchanges: int = 0
    num_tokens: int = 0
    is_oneshot: bool = False
    summary: str | None = None

    @property
    def label(self) -> str:
        """How a person knows it: its name, or its title."""
        return self.name or self.title


def session_from_row(row: tuple[Any, ...]) -> SessionRow:
    """A session from a row of `SESSIONS`."""
    session_id, tree, title, name, tip, system, model, created, updated, depth, tokens, *rest = row
    oneshot, summary = rest
    return SessionRow(
        id=text(session_id),
        tree=text(tree),
        title=text(title),
        name=None if name is None else text(name),
        tip=None if tip is None else text(tip),
        system=None if system is None else text(system),
        model=text(model),
        created=moment(created),
        updated=moment(updated),
        num_exchanges=int(number(depth)),
        num_tokens=int(number(tokens)),
        is_oneshot=bool(number(oneshot)),
        summary=None if summary is None else text(summary),
    )


def statistics_json(answer: Answer) -> str:
    """What is kept of an answer's numbers."""
    values: dict[str, Usage | Timings | CacheReport] = {
        "usage": answer.usage,
        "timings": answer.timings,
        "cache": answer.cache,
    }
    return json.dumps({name: _shallow(value) for name, value in values.items()}, ensure_ascii=False)


@lru_cache(maxsize=64)
def options_json(options: Options) -> str:
    """What is kept of the options of an answer; those of a whole conversation are mostly the same."""
    return json.dumps(asdict(options))


def _shallow(value: Usage | Timings | CacheReport) -> dict[str, Any]:
    """The fields of a value, which has no others within."""
    found = {name: getattr(value, name) for name in _KINDS[type(value)]}
    return found | ({"tiers": dict(value.tiers)} if isinstance(value, CacheReport) else {})


def exchange_from_row(row: tuple[Any, ...], encoded: Mapping[str, tuple[int, ...]]) -> Exchange:
    """The exchange of a row. One that was broken off has what was saved of its answer, as cancelled."""
    exchange_id, parent, user, model, options, created, pinned, follows, *answer = row
    return Exchange(
        text(exchange_id),
        None if parent is None else text(parent),
        Turn(Role.USER, text(user)),
        _answer(*answer),
        (_options if len(text(options)) <= _USUAL_OPTIONS else _read_options)(text(options)),
        text(model),
        moment(created),
        encoded,
        bool(number(pinned)),
        None if follows is None else text(follows),
    )


def text(value: object) -> str:
    """What a column for text has."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def number(value: object) -> float:
    """What a column for a number has; 0 for what is none, or none that can be reckoned with."""
    is_number = isinstance(value, int | float) and abs(value) < _MOST and math.isfinite(value)
    return value if is_number else 0  # type: ignore[return-value]


def moment(value: object) -> float:
    """A time in seconds since the epoch that a calendar has; 0 for any other."""
    seconds = number(value)
    return seconds if 0 <= seconds < _LAST_MOMENT_S else 0.0


def _answer(said: object, thought: object, finish: object, statistics: object, *ids: Any) -> Answer | None:
    if finish is None and not said and not thought:
        return None
    tokenizer, blob = ids
    values = _object(statistics)
    completion = ids_from_blob(blob)
    return Answer(
        text(said),
        text(thought),
        (),
        completion,
        text(tokenizer) if completion else "",
        FinishReason(text(finish)) if finish in set(FinishReason) else FinishReason.CANCELLED,
        _value(_NO_USAGE, _object(values.get("usage"))),
        _value(_NO_TIMINGS, _object(values.get("timings"))),
        _report(_object(values.get("cache"))),
    )


def _object(value: object) -> dict[str, Any]:
    """A JSON object, or what was read of one; empty for anything else."""
    try:
        found = json.loads(value) if isinstance(value, str | bytes) else value
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_options(written: str) -> Options:
    values = _object(written)
    known = {name: value for name, value in values.items() if value is not None and name in _OPTIONS}
    stop = known.pop("stop", ())
    stops = tuple(each for each in stop if isinstance(each, str)) if isinstance(stop, list) else ()
    fitting = {name: value for name, value in known.items() if _fits(value, _OPTIONS[name])}
    return Options(**fitting, stop=stops)


_options = lru_cache(maxsize=64)(_read_options)
"""The same; those of a whole conversation are mostly the same."""


def _value(blank: V, values: dict[str, Any]) -> V:
    """A value from JSON that another version of the program may have written: what is unknown is left out."""
    kinds = _KINDS[type(blank)]
    fitting = {name: value for name, value in values.items() if name in kinds and _fits(value, kinds[name])}
    return replace(blank, **fitting)


def _report(values: dict[str, Any]) -> CacheReport:
    """A cache report from JSON; earlier versions had no other tiers than RAM and disk, and no field for them together."""
    tiers = _object(values.pop("tiers", {name: values[name] for name in ("ram", "disk") if name in values}))
    counts = {name: count for name, count in tiers.items() if _fits(count, int)}
    return replace(_value(_NO_REPORT, values), tiers=counts)


def _fits(value: object, kind: type[object]) -> bool:
    """Whether a value from JSON is of a kind; numbers are, whole or not, if they can be reckoned with."""
    if kind is int or kind is float:
        return type(value) in (int, float) and -_MOST < value < _MOST  # type: ignore[operator]
    return type(value) is kind


def ids_to_blob(ids: Iterable[int]) -> bytes:
    """Token ids as int32, little endian."""
    packed = array("i", ids)
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def ids_from_blob(blob: object) -> tuple[int, ...]:
    """The token ids that `ids_to_blob` packed; none where these can't be any."""
    packed = array("i")
    if not isinstance(blob, bytes) or len(blob) % packed.itemsize:
        return ()
    packed.frombytes(blob)
    if byteorder == "big":
        packed.byteswap()
    return tuple(packed) if min(packed, default=0) >= 0 else ()
