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
    TYPE_AHEAD,
    WEIGHTS,
    WHEN_FULL,
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
        Flag("-p --prompt", "answer this prompt and end", rest={"metavar": "PROMPT"}),
        Flag(
            "-s --system",
            "the system prompt, or @FILE to read it from a file",
            "chat.system",
            {"metavar": "TEXT"},
        ),
        Flag("-c --continue", "continue the latest session", rest=_LATEST),
        Flag("-r --resume", "continue a session, by its name or id", rest=_RESUME),
        Flag("--fork", "with -c or -r: continue in a new branch", rest=_SWITCH),
        Flag("-t --template", "start with a saved system prompt", rest={"metavar": "PROMPT"}),
        Flag("--var", "set a variable of that prompt; may be repeated", rest=_VARIABLE),
        Flag("--trust-prompts", "use the prompts in ./prompts, too", rest=_SWITCH),
        Flag("--turns", "ask the lines of FILE (- for stdin) one by one", rest={"metavar": "FILE"}),
        Flag("--no-stdin", "don't read stdin; needed in a `while read` loop", rest=_SWITCH),
        Flag("--json", "print JSON, one object per answer; errors go to stderr", rest=_SWITCH),
        Flag("--tokens", "add token ids to the JSON", rest=_SWITCH),
        Flag(
            "--no-save",
            "leave nothing of the conversation on disk",
            "chat.save",
            {"action": "store_const", "const": False},
        ),
        Flag(
            "--when-full",
            "when the context gets full: summarise the oldest messages, let me choose, drop them, or nothing",
            "chat.when_full",
            {"choices": WHEN_FULL},
        ),
    ),
    "the model": (
        Flag(
            "-m --model",
            "smollm2-135m, a folder, a .gguf file, a hub id, or REMOTE:MODEL",
            "model.name",
            {"metavar": "NAME"},
        ),
        Flag("--url", "a server that has the model: vLLM, SGLang, llama-server …", rest={"metavar": "URL"}),
        Flag("--adapter", "folder of a LoRA adapter that peft saved", "model.adapter", {"metavar": "DIR"}),
        Flag("--dtype", "number format of the weights", "model.dtype", {"choices": DTYPES}),
        Flag(
            "--weights",
            "what decoding reads: the weights as they are (native), or integers",
            "model.weights",
            {"choices": WEIGHTS},
        ),
        Flag("--device", "where the model runs", "model.device", {"choices": DEVICES}),
        Flag("--threads", "number of threads on a CPU", "model.threads", {"metavar": "N"}),
        Flag("--context", "length of the context, in tokens", "model.context", _number(int)),
        Flag(
            "--draft",
            "how many tokens to guess ahead: auto (as many as pay off), off, or a number",
            "model.draft",
            {"metavar": "N"},
        ),
        Flag(
            "--chat-template",
            "a Jinja chat template instead of the model's",
            "model.chat_template",
            {"metavar": "FILE"},
        ),
        Flag("--trust-remote-code", "run the code that this model brings", "model.trust_remote_code", _TRUE),
        Flag("--offline", "never use the network", "model.offline", _TRUE),
    ),
    "the engine": (
        Flag(
            "--no-share",
            "use an engine of its own, and end it with this terminal",
            "engine.share",
            {"action": "store_const", "const": False},
        ),
        Flag(
            "--keep-alive",
            "how many seconds the engine stays for the next terminal; -1 is for good, 0 not at all",
            "engine.keep_alive",
            _number(int, "SECONDS"),
        ),
    ),
    "sampling": (
        Flag("--max-tokens", "length of the longest answer, in tokens", "sampling.max_tokens", _number(int)),
        Flag(
            "--temperature",
            "how freely to choose; 0 takes the likeliest token",
            "sampling.temperature",
            _number(float, "T"),
        ),
        Flag(
            "--top-k",
            "choose only among so many of the likeliest tokens",
            "sampling.top_k",
            _number(int, "K"),
        ),
        Flag(
            "--top-p",
            "choose only among the likeliest tokens that together reach this probability",
            "sampling.top_p",
            _number(float, "P"),
        ),
        Flag(
            "--min-p",
            "drop tokens below this share of the likeliest one's probability",
            "sampling.min_p",
            _number(float, "P"),
        ),
        Flag(
            "--repetition-penalty",
            "penalty for tokens that were used before; 1 is none",
            "sampling.repetition_penalty",
            _number(float, "R"),
        ),
        Flag("--think", "let models that can reason first do so", "sampling.think", {"choices": THINK}),
        Flag(
            "--repeat-stop",
            "whether an answer that goes round in circles is stopped (on)",
            "sampling.repeat_stop",
            {"choices": ("on", "off")},
        ),
        Flag(
            "--seed",
            "the same seed gives the same conversation the same answers",
            "sampling.seed",
            _number(int),
        ),
        Flag(
            "--stop",
            "end the answer at this text; may be repeated",
            "sampling.stop",
            {"action": "append", "metavar": "TEXT"},
        ),
    ),
    "the cache": (
        Flag("--cache", "use and store KV, only use it, or neither", "cache.mode", {"choices": CACHE_MODES}),
        Flag("--cache-dir", "folder that KV is stored in", "paths.cache", {"metavar": "DIR"}),
        Flag(
            "--cache-ram",
            "most RAM to keep KV in, such as 2GiB",
            "cache.ram",
            {"type": size_argument, "metavar": "SIZE"},
        ),
        Flag(
            "--cache-disk",
            "most disk space for KV, such as 4GiB",
            "cache.disk",
            {"type": size_argument, "metavar": "SIZE"},
        ),
        Flag(
            "--no-prepare",
            "compute nothing ahead while nobody is waiting",
            "cache.prepare",
            {"action": "store_const", "const": False},
        ),
        Flag(
            "--cache-policy",
            "what is forgotten first: what is worth least, or what was unused for longest",
            "cache.policy",
            {"choices": POLICIES},
        ),
        Flag(
            "--cache-codec",
            "how KV is stored: packed on the disk, raw, or int8, which is smaller and lossy",
            "cache.codec",
            {"choices": CODECS},
        ),
    ),
    "the terminal": (
        Flag(
            "--markdown",
            "render answers as Markdown: auto in the chat only, always also with -p",
            "ui.markdown",
            {"choices": MARKDOWN},
        ),
        Flag(
            "-R --no-reasoning",
            "hide the model's reasoning",
            "ui.reasoning",
            {"action": "store_const", "const": False},
        ),
        Flag(
            "--type-ahead",
            "compute while you type: auto begins the answer, prefill only reads the message",
            "ui.type_ahead",
            {"choices": TYPE_AHEAD},
        ),
        Flag("--plain", "print line by line, for dumb terminals and screen readers", "ui.plain", _TRUE),
        Flag("-q --quiet", "print only errors and warnings on stderr", rest=_SWITCH),
        Flag("-v --verbose", "print statistics and tracebacks on stderr", rest=_SWITCH),
    ),
}

EVERYWHERE = ("--json", "--offline", "-q", "-v")
"""Flags that may also follow a command's name."""

FLAG_NAMES: dict[str, str] = {
    flag.key: flag.names.split()[-1] for flags in FLAGS.values() for flag in flags if flag.key
}
"""What the flag for a setting is called."""
