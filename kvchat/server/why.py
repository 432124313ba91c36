"""What is said of an answer's cache beside the protocols' own numbers. Never another client's text, nor what it was asked."""

from __future__ import annotations

from typing import Any

from kvchat.backends.base import Answer
from kvchat.server.question import Question

_COMPARED = ("edited system prompt", "template rewrote history")
"""Reasons that compare a prompt with the one before it, which may be anybody's."""


def kvchat_json(question: Question, answer: Answer) -> dict[str, Any]:
    """Where the prompt's tokens came from, and why the others had to be computed; times in milliseconds.

    `next` is the text around the first token that was computed, with a bar in front of it: the client's own.
    """
    usage, cache, timings = answer.usage, answer.cache, answer.timings
    return {
        "cached": {"live": cache.live, **cache.tiers},
        "computed": usage.prompt_tokens - usage.cached_tokens,
        "diverged_at": cache.diverged_at,
        "why": _why(question, answer),
        "next": cache.now,
        "saved_ms": round(cache.saved_s * 1e3, 1),
        "timings": {
            "ttft_ms": round(timings.ttft_ms, 1),
            "prompt_ms": round(timings.prompt_ms, 1),
            "kv_load_ms": round(timings.kv_load_ms, 1),
            "predicted_ms": round(timings.predicted_ms, 1),
        },
    }


def _why(question: Question, answer: Answer) -> str:
    reason = answer.cache.reason
    if reason not in _COMPARED:
        return reason
    known, total = question.num_known, len(question.said)
    if not known:
        return "first use: no conversation that was asked begins so"
    if known < total - 1:
        return f"message {known + 1} of {total} is new, or not as it was sent before"
    return "new text"
