"""The first lines of a dialogue and its last one: who answers, what to press, and how to come back. Knows no screen."""

from __future__ import annotations

from pathlib import Path

from kvchat.backends.base import ModelInfo
from kvchat.chat.session import Session
from kvchat.config import DEFAULT_MODEL

PLACEHOLDER = "ask something, or type / for commands"
"""Stands in the empty input before anything was said."""

_KEYS = "Enter sends · Ctrl-C stops an answer · /help lists keys and commands · Ctrl-D leaves"
_BETTER = "it is small and often wrong; kvchat -m Qwen/Qwen3-0.6B, or another model from the hub, knows more"


def greeting() -> str:
    """What is said before the model is known."""
    return f"kvchat · {_KEYS}"


def model_lines(info: ModelInfo) -> list[str]:
    """Who answers: its size, its weights and its context; of the default one, that there are better ones."""
    size = info.num_parameters
    count = f"{size / 1e9:.1f} billion" if size >= 1e9 else f"{size / 1e6:.0f} million"
    weights = info.dtype if info.weights == "native" else info.weights
    own = [f"{count} parameters", f"weights in {weights}"] if size else []  # a server doesn't say
    context = [f"context {info.context} tokens"] if info.context else []
    facts = [*own, *context, info.device]
    line = f"{Path(info.name).name} answers: {', '.join(facts)}"
    return [line, *([_BETTER] if info.name == DEFAULT_MODEL else [])]


def farewell(session: Session, *, is_saved: bool) -> str:
    """How to come back; empty where nothing was said."""
    if not session.path:
        return ""
    if not is_saved:
        return "nothing of this conversation was saved"
    name = session.name or session.id
    return f"kvchat -c continues this conversation, kvchat -r {name} also later"
