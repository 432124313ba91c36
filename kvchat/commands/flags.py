"""The flags as a table: a row a flag, and which setting it sets. Knows argparse, nothing of what flags do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvchat.config import (
    CACHE_MODES,
    CODECS,
    DEVICES,
    DTYPES,
    MARKDOWN,
    POLICIES,
    THINK,
    WEIGHTS,
    parse_bytes,
)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its names, its help, the setting it sets (`section.key`), and what argparse needs beside."""

    names: str
    help: str
    key: str | None = None
    rest: dict[str, Any] = field(default_factory=dict)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Make argparse know it; a flag that is not given is None."""
        dest = {"dest": self.key} if self.key else {}
        parser.add_argument(*self.names.split(), help=self.help, **{"default": None} | dest | self.rest)


def size_argument(text: str) -> int:
    """A size in bytes, as argparse wants it: its complaint becomes the error's text."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(kind: Callable[[str], float], metavar: str = "N") -> dict[str, Any]:
    return {"type": kind, "metavar": metavar}


_TRUE: dict[str, Any] = {"action": "store_const", "const": True}
_SWITCH: dict[str, Any] = {"action": "store_true", "default": False}
_VARIABLE: dict[str, Any] = {"action": "append", "metavar": "NAME=VALUE"}
_LATEST: dict[str, Any] = {"dest": "resume", "action": "store_const", "const": "latest"}
_RESUME: dict[str, Any] = {"nargs": "?", "const": "", "metavar": "SESSION"}

FLAGS: dict[str, tuple[Flag, ...]] = {
    "asking": (
        Flag("-p --prompt", "ask this and end", rest={"metavar": "PROMPT"}),
        Flag("-s --system", "the system prompt, or @FILE", "chat.system", {"metavar": "TEXT"}),
        Flag("-c --continue", "go on with the latest session", rest=_LATEST),
        Flag("-r --resume", "go on with a session: its name or id", rest=_RESUME),
        Flag("--fork", "with -c or -r: go on beside that session, not in it", rest=_SWITCH),
        Flag("-t --template", "begin with a saved system prompt", rest={"metavar": "PROMPT"}),
        Flag("--var", "a variable of that prompt; may be repeated", rest=_VARIABLE),
        Flag("--trust-prompts", "use the prompts in ./prompts too", rest=_SWITCH),
        Flag("--turns", "ask each line of FILE (or - for stdin) in order", rest={"metavar": "FILE"}),
        Flag("--no-stdin", "leave stdin to others, as in a `while read` loop", rest=_SWITCH),
        Flag("--json", "one JSON object an answer; errors as an object on stderr", rest=_SWITCH),
        Flag("--tokens", "token ids in the JSON", rest=_SWITCH),
        Flag("--no-save", "leave nothing on disk", "chat.save", {"action": "store_const", "const": False}),
    ),
    "the model": (
        Flag(
            "-m --model",
            "smollm2-135m, a folder, a .gguf file, a hub id, or REMOTE:MODEL",
            "model.name",
            {"metavar": "NAME"},
        ),
        Flag("--url", "a server that has the model: vLLM, SGLang, llama-server …", rest={"metavar": "URL"}),
        Flag("--adapter", "a LoRA adapter's folder, as peft saves it", "model.adapter", {"metavar": "DIR"}),
        Flag("--dtype", "of the weights", "model.dtype", {"choices": DTYPES}),
        Flag("--weights", "what decoding reads", "model.weights", {"choices": WEIGHTS}),
        Flag("--device", "where it runs", "model.device", {"choices": DEVICES}),
        Flag("--threads", "that compute on a CPU", "model.threads", {"metavar": "N"}),
        Flag("--context", "tokens of context", "model.context", _number(int)),
        Flag(
            "--draft",
            "tokens guessed ahead from the text so far: auto (what pays), off, or N",
            "model.draft",
            {"metavar": "N"},
        ),
        Flag("--chat-template", "Jinja template of the chat", "model.chat_template", {"metavar": "FILE"}),
        Flag("--trust-remote-code", "run code that comes with this model", "model.trust_remote_code", _TRUE),
        Flag("--offline", "never use the network", "model.offline", _TRUE),
    ),
    "sampling": (
        Flag("--max-tokens", "longest answer", "sampling.max_tokens", _number(int)),
        Flag("--temperature", "0 is greedy", "sampling.temperature", _number(float, "T")),
        Flag("--top-k", "keep the K likeliest tokens", "sampling.top_k", _number(int, "K")),
        Flag(
            "--top-p",
            "keep the likeliest tokens up to this probability",
            "sampling.top_p",
            _number(float, "P"),
        ),
        Flag("--min-p", "drop tokens below this share of the best", "sampling.min_p", _number(float, "P")),
        Flag("--repetition-penalty", "1 is none", "sampling.repetition_penalty", _number(float, "R")),
        Flag("--think", "whether models that can think do so", "sampling.think", {"choices": THINK}),
        Flag(
            "--repeat-stop",
            "whether an answer that goes round in circles is stopped (on)",
            "sampling.repeat_stop",
            {"choices": ("on", "off")},
        ),
        Flag("--seed", "for the same answers to the same conversation again", "sampling.seed", _number(int)),
        Flag(
            "--stop",
            "end at this text; may be repeated",
            "sampling.stop",
            {"action": "append", "metavar": "TEXT"},
        ),
    ),
    "the cache": (
        Flag("--cache", "use and store, use only, or neither", "cache.mode", {"choices": CACHE_MODES}),
        Flag("--cache-dir", "where KV is stored", "paths.cache", {"metavar": "DIR"}),
        Flag(
            "--cache-ram",
            "budget in RAM, such as 2GiB",
            "cache.ram",
            {"type": size_argument, "metavar": "SIZE"},
        ),
        Flag("--cache-disk", "budget on disk", "cache.disk", {"type": size_argument, "metavar": "SIZE"}),
        Flag(
            "--no-prepare",
            "compute nothing ahead while nobody waits",
            "cache.prepare",
            {"action": "store_const", "const": False},
        ),
        Flag(
            "--cache-policy",
            "what is forgotten first: what is worth least, or what was unused for longest",
            "cache.policy",
            {"choices": POLICIES},
        ),
        Flag("--cache-codec", "how KV is kept; int8 is lossy", "cache.codec", {"choices": CODECS}),
    ),
    "the terminal": (
        Flag(
            "--markdown",
            "render answers: auto is in the chat, always also with -p",
            "ui.markdown",
            {"choices": MARKDOWN},
        ),
        Flag(
            "-R --no-reasoning",
            "hide what the model thinks before it answers",
            "ui.reasoning",
            {"action": "store_const", "const": False},
        ),
        Flag("--plain", "line by line, for dumb terminals and screen readers", "ui.plain", _TRUE),
        Flag("-q --quiet", "nothing on stderr but errors and warnings", rest=_SWITCH),
        Flag("-v --verbose", "statistics and tracebacks on stderr", rest=_SWITCH),
    ),
}

EVERYWHERE = ("--json", "--offline", "-q", "-v")
"""Flags that may also follow a command's name."""

FLAG_NAMES: dict[str, str] = {
    flag.key: flag.names.split()[-1] for flags in FLAGS.values() for flag in flags if flag.key
}
"""What the flag for a setting is called."""
