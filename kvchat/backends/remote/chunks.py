"""What a server's events say, as values: JSON of any shape in, counts and text out. Never raises; knows no request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvchat.backends.remote.refusals import message_of


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server reports: tokens and milliseconds; None for what it does not."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None

    def updated(self, newer: Counts) -> Counts:
        """These, with what a later event says."""
        names = ("prompt", "completion", "cached", "prompt_ms", "predicted_ms")
        return Counts(
            *(getattr(self, name) if (value := getattr(newer, name)) is None else value for name in names)
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of an answer. `ids` None: it has none; `progress` is (done, total, cached) of the prompt's tokens.

    With `is_total`, `ids` are all that were generated so far. `error` is what went wrong in the server's words.
    """

    text: str = ""
    reasoning: str = ""
    ids: tuple[int, ...] | None = None
    is_total: bool = False
    prompt_ids: tuple[int, ...] | None = None
    finish: str | None = None
    counts: Counts = field(default_factory=Counts)
    progress: tuple[int, int, int] | None = None
    error: str | None = None


def usage_of(event: Mapping[str, Any]) -> Counts:
    """The tokens of a usage object, by whichever names they have."""
    usage = object_of(event.get("usage"))
    details = object_of(usage.get("prompt_tokens_details"))
    cached = (details.get("cached_tokens"), usage.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"))
    found = (
        count
        for value in (*cached, usage.get("cache_read_input_tokens"))
        if (count := count_of(value)) is not None
    )
    return Counts(
        count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens")), next(found, None)
    )


def timings_of(value: object) -> Counts:
    """llama-server's own clock; its `cache_n` and `prompt_n` are the prompt's tokens."""
    timings = object_of(value)
    cached, new = count_of(timings.get("cache_n")), count_of(timings.get("prompt_n"))
    prompt = None if cached is None or new is None else cached + new
    times = (_time(timings.get("prompt_ms")), _time(timings.get("predicted_ms")))
    return Counts(prompt, count_of(timings.get("predicted_n")), cached, *times)


def logprob_ids_of(value: object) -> tuple[int, ...] | None:
    """The ids that stand beside probabilities, in llama-server's answers; None where there are none."""
    rows = object_of(value).get("content")
    return ids_of([object_of(row).get("id") for row in rows]) if isinstance(rows, list) else None


def progress_of(event: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """How far a prompt is, as llama-server says it: (done, total, cached)."""
    said = object_of(event.get("prompt_progress"))
    total, cached, done = (count_of(said.get(name)) for name in ("total", "cache", "processed"))
    return None if total is None or cached is None or done is None else (done, total, cached)


def error_of(event: Mapping[str, Any]) -> str | None:
    """What an event says went wrong; None if it is no error."""
    found = event.get("error")
    if not found and event.get("type") != "error" and event.get("object") != "error":
        return None
    return message_of(dict(event)) or "it does not say why"


def first_of(value: object) -> Mapping[str, Any]:
    """The first object of a list; empty where there is none."""
    return object_of(value[0]) if isinstance(value, list) and value else {}


def object_of(value: object) -> Mapping[str, Any]:
    """A JSON object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def text_of(value: object) -> str:
    """A text; of a list of parts, theirs."""
    if isinstance(value, list):
        return "".join(text_of(object_of(part).get("text")) for part in value)
    return value if isinstance(value, str) else ""


def count_of(value: object) -> int | None:
    """A number of tokens; None for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _time(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else None  # type: ignore[operator, arg-type]


def ids_of(value: object) -> tuple[int, ...] | None:
    """Token ids; None for anything else."""
    is_ids = isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 30 for one in value)
    return tuple(value) if is_ids else None  # type: ignore[arg-type]
