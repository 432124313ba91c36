"""One answer as the JSON object that `--json` prints. Writes nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvchat.backends.base import Answer, ModelInfo
from kvchat.chat.session import Session, new_id


def answer_json(session: Session, answer: Answer, info: ModelInfo, *, tokens: bool = False) -> dict[str, Any]:
    """One answer as the object that `--json` prints."""
    usage, tip = answer.usage, session.tip
    report: dict[str, Any] = {
        "id": tip.id if tip and tip.answer is answer else new_id(),
        "session_id": session.id,
        "model": info.name,
        "response": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": str(answer.finish_reason),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
        "timings": asdict(answer.timings),
        "cache": asdict(answer.cache)
        | {"policy": info.reuse, "continuation": info.continuation, "verdict": info.verdict},
    }
    report["weights"] = {"mode": info.weights, "why": info.weights_why}
    if info.adapter:
        report["adapter"] = info.adapter
    if tokens:
        report["tokens"] = {"prompt": list(answer.prompt), "completion": list(answer.completion)}
    return report
