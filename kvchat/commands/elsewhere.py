"""What people who come from ollama, llm, aichat and Claude Code type in the shell, and how that is said here."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

WORDS: dict[str, tuple[str, ...]] = {
    "run": ("-m",),
    "chat": (),
    "list": ("models", "ls"),
    "ls": ("models", "ls"),
    "pull": ("models", "pull"),
    "rm": ("models", "rm"),
    "ps": ("engine", "ls"),
    "stop": ("engine", "stop", "--all"),
    "logs": ("sessions", "ls"),
    "history": ("sessions", "ls"),
    "search": ("sessions", "search"),
    "templates": ("prompts", "ls"),
    "roles": ("prompts", "ls"),
    "resume": ("-r",),
    "continue": ("-c",),
    "version": ("--version",),
}
"""Words that are no commands here, and what they stand for; what follows them stays behind it."""
_LISTED = ("models", "sessions", "prompts", "cache", "engine")
"""Groups of commands of which one that is named alone is listed."""
_LEAST_WORDS = 3


def said_here(words: Sequence[str], commands: Collection[str]) -> list[str]:
    """Words that stand where a command could, as this program says it; `commands` are those that there are.

    Three words or more that begin with none are a question that somebody forgot to quote, unless the first is nearly one.
    """
    first, *rest = words
    if first in WORDS:
        return [*WORDS[first], *([] if first == "stop" else rest)]
    if first in _LISTED and not rest:
        return [first, "ls"]
    is_near = bool(difflib.get_close_matches(first, [*commands, *WORDS], n=1, cutoff=0.7))
    are_plain = not any(word.startswith("-") or " " in word for word in words)
    if first not in commands and len(words) >= _LEAST_WORDS and are_plain and not is_near:
        return ["-p", " ".join(words)]
    return list(words)
