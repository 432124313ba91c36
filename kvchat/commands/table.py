"""The commands beside chatting: a table with a row for each, whose function yields lines of stdout."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kvchat.commands.flags import size_argument
from kvchat.config import Config


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `group verb` or one word, what the group is about, its help, what it yields.

    `arguments` are its own, for argparse; `flags` are those of the program that may also follow its name, beside
    EVERYWHERE's. A command that does not read the settings runs even if they are wrong, with the defaults.
    """

    name: str
    about: str
    help: str
    lines: Callable[[argparse.Namespace, Config], Iterator[str]]
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reads_settings: bool = True


def _verb(module: str, name: str) -> Callable[[argparse.Namespace, Config], Iterator[str]]:
    """A function of another command module, loaded when it is run."""

    def run(args: argparse.Namespace, config: Config) -> Iterator[str]:
        home = importlib.import_module(f"kvchat.commands.{module}")
        lines: Iterator[str] = getattr(home, name)(args, config)
        return lines

    return run


def _positive(text: str) -> int:
    """A number of things, as argparse wants it."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _days(text: str) -> float:
    """A number of days, as argparse wants it."""
    if not text.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return float(text)


_models = partial(_verb, "models")
_sessions = partial(_verb, "sessions")
_prompts = partial(_verb, "prompts")
_cache = partial(_verb, "cache")
_config = partial(_verb, "config")

_CACHE = "stored KV"
_DRY_RUN: dict[str, dict[str, Any]] = {
    "--dry-run": {"action": "store_true", "help": "say what would be done, but don't do it"}
}
_PRUNE: dict[str, dict[str, Any]] = {
    "--to": {"type": size_argument, "metavar": "SIZE", "help": "remove until no more than SIZE is left"},
    "--older-than": {"type": _days, "metavar": "DAYS", "help": "remove what was not used for so many days"},
}
_VERIFY: dict[str, dict[str, Any]] = {
    "--no-recompute": {"action": "store_true", "help": "check only the checksums, without loading the model"},
    "--sample": {
        "type": _positive,
        "default": 4,
        "metavar": "N",
        "help": "how many stored runs to compute again (4)",
    },
    "--remove": {"action": "store_true", "help": "delete what can't be used"},
}
_CONFIG = "settings"
_COMPLETION = "completion for your shell"
_AT = ("--cache-dir",)
_HOW = ("-m", "--dtype", "--device", "--weights")

_MODELS = "models on this disk"
_NAME: dict[str, dict[str, Any]] = {"name": {"metavar": "NAME", "help": "a model, named as after -m"}}
_REMOTE: dict[str, dict[str, Any]] = {
    "remote": {
        "metavar": "REMOTE",
        "nargs": "?",
        "help": "a remote of config.toml, or a URL: its models alone",
    }
}


_bench = partial(_verb, "bench")

_BENCH = "measurements on this machine"
_NUM_PROMPTS: dict[str, dict[str, Any]] = {
    "--prompts": {"metavar": "N", "type": _positive, "default": 200, "help": "prompts to answer (200)"}
}
_LENGTHS: dict[str, dict[str, Any]] = {
    "--lengths": {
        "metavar": "N",
        "type": _positive,
        "nargs": "+",
        "help": "lengths of the prompt or history to measure, in tokens",
    }
}
_RUNS: dict[str, dict[str, Any]] = {
    "--repeats": {"metavar": "N", "type": _positive, "default": 3, "help": "how often to measure each (3)"},
    "--threads": {"metavar": "N", "type": _positive, "help": "number of threads to compute with"},
}
_AGAINST: dict[str, dict[str, Any]] = {
    "--against": {"metavar": "NAMES", "help": "compare with some of nocache,transformers,llama.cpp"},
    "--llama-python": {
        "metavar": "FILE",
        "help": "a Python interpreter that has llama-cpp-python or xllamacpp",
    },
}
_PLOT: dict[str, dict[str, Any]] = {
    "--plot": {"metavar": "FILE", "help": "draw a chart to FILE.svg or FILE.png"}
}
_SESSIONS = "conversations that were saved"
_SESSION: dict[str, dict[str, Any]] = {
    "session": {
        "metavar": "SESSION",
        "nargs": "?",
        "default": "latest",
        "help": "its name or id, or how that begins; the latest if omitted",
    }
}
_LIMIT: dict[str, dict[str, Any]] = {"--limit": {"type": _positive, "metavar": "N", "help": "list at most N"}}
_EXPORT: dict[str, dict[str, Any]] = {
    "--format": {"choices": ("md", "json", "html"), "default": "md", "help": "kind of document (md)"},
    "--output": {"metavar": "FILE", "help": "write to FILE, readable only by you"},
}
_WORDS: dict[str, dict[str, Any]] = {
    "words": {"metavar": "WORD", "nargs": "+", "help": "words that all have to occur"}
}
_REMOVAL = (
    "delete sessions, also from the search index and the cache; if one of them is not there, none is deleted"
)
_SEVERAL: dict[str, dict[str, Any]] = {
    "sessions": {"metavar": "SESSION", "nargs": "+", "help": "names or ids, or how they begin"},
    "--yes": {"action": "store_true", "help": "delete without asking"},
}
_PROMPTS = "saved system prompts"
_HERE = ("--trust-prompts",)
_VAR: dict[str, dict[str, Any]] = {
    "--var": {
        "action": "append",
        "dest": "values",
        "metavar": "NAME=VALUE",
        "help": "set a variable of the prompt; may be repeated",
    }
}
_PROMPT: dict[str, dict[str, Any]] = {"name": {"metavar": "PROMPT", "help": "a prompt, named as after -t"}}
_ANY_PROMPT: dict[str, dict[str, Any]] = {
    "name": {"metavar": "PROMPT", "nargs": "?", "help": "a prompt, named as after -t; your folder if omitted"}
}
_SOME_PROMPTS: dict[str, dict[str, Any]] = {
    "names": {"metavar": "PROMPT", "nargs": "*", "help": "prompts, named as after -t; all if omitted"}
}

_TRACE: dict[str, dict[str, Any]] = {
    "--trace": {"metavar": "FILE", "help": "a trace, in Mooncake's form or kvchat's own"},
    "--make": {
        "metavar": "FILE",
        "help": "make up a trace of terminal chats first, and write it there",
    },
    "--days": {"type": _positive, "default": 60, "metavar": "N", "help": "how many days it spans (60)"},
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "which one is made up (0)"},
}

COMMANDS: tuple[Command, ...] = (
    Command("models ls", _MODELS, "list the models on this disk and of remotes", _models("listed"), _REMOTE),
    Command("models pull", _MODELS, "download or import a model", _models("pulled"), _NAME),
    Command("models rm", _MODELS, "delete a model's files", _models("removed"), _NAME),
    Command("models path", _MODELS, "print the folder of a model", _models("placed"), _NAME),
    Command("cache ls", _CACHE, "list what is stored, run by run", _cache("cache_ls"), flags=_AT),
    Command(
        "cache stat",
        _CACHE,
        "show what is stored for each model, and what it saved",
        _cache("cache_stat"),
        flags=_AT,
    ),
    Command(
        "cache verify",
        _CACHE,
        "check all checksums, and recompute a sample",
        _cache("cache_verify"),
        _VERIFY | _DRY_RUN,
        (*_AT, *_HOW, "--cache-codec"),
    ),
    Command(
        "cache prune",
        _CACHE,
        "remove what is old or over the budget",
        _cache("cache_prune"),
        _PRUNE | _DRY_RUN,
        _AT,
    ),
    Command(
        "cache trace",
        _CACHE,
        "export what was asked when, as numbers without any text",
        _cache("cache_trace"),
        {
            "what": {
                "choices": ("export",),
                "help": "print the saved conversations as a trace, a line a request",
            }
        },
    ),
    Command("cache clear", _CACHE, "remove all stored KV", _cache("cache_clear"), _DRY_RUN, _AT),
    Command("cache path", _CACHE, "print the folder that KV is stored in", _cache("cache_path"), flags=_AT),
    Command(
        "bench start",
        _BENCH,
        "time from start until the prompt takes keys, and until -p prints a word",
        _bench("started"),
        _RUNS | _AGAINST,
        _HOW,
    ),
    Command(
        "bench ttft",
        _BENCH,
        "time to the first token, by where the history is held",
        _bench("first_tokens"),
        _LENGTHS | _RUNS | _AGAINST | _PLOT,
        _HOW,
    ),
    Command(
        "bench prefill",
        _BENCH,
        "speed of computing a prompt, in tokens per second",
        _bench("prefilled"),
        _LENGTHS | _RUNS | _AGAINST | _PLOT,
        _HOW,
    ),
    Command(
        "bench decode",
        _BENCH,
        "speed of answering, in tokens per second, by length of the history",
        _bench("decoded"),
        _LENGTHS | _RUNS | _AGAINST | _PLOT,
        _HOW,
    ),
    Command(
        "bench restore",
        _BENCH,
        "time to restore KV from RAM and disk, against computing it",
        _bench("restored"),
        _LENGTHS | _RUNS,
        _HOW,
    ),
    Command(
        "bench lookup",
        _BENCH,
        "gain and cost of guessing ahead",
        _bench("looked_up"),
        _RUNS,
        (*_HOW, "--draft"),
    ),
    Command(
        "bench memory",
        _BENCH,
        "peak memory of a chat",
        _bench("remembered"),
        _LENGTHS | _AGAINST | {"--threads": _RUNS["--threads"]},
        _HOW,
    ),
    Command(
        "bench weights",
        _BENCH,
        "loss of quality through integer weights",
        _bench("weighed"),
        _LENGTHS | {"--threads": _RUNS["--threads"]},
        _HOW,
    ),
    Command(
        "bench exact",
        _BENCH,
        "whether the cache changes an answer, to the bit",
        _bench("compared"),
        _NUM_PROMPTS | {"--threads": _RUNS["--threads"]},
        (*_HOW, "--draft"),
    ),
    Command(
        "bench policy",
        _BENCH,
        "what is forgotten, replayed from a trace against LRU and the optimum",
        _bench("forgotten"),
        _TRACE,
    ),
    Command(
        "bench codec", _BENCH, "loss of quality through KV stored as int8", _bench("encoded"), _RUNS, _HOW
    ),
    Command("sessions ls", _SESSIONS, "list sessions, the latest first", _sessions("listed"), _LIMIT),
    Command("sessions show", _SESSIONS, "print a session", _sessions("shown"), _SESSION),
    Command("sessions search", _SESSIONS, "find words in all sessions", _sessions("found"), _WORDS | _LIMIT),
    Command(
        "sessions export",
        _SESSIONS,
        "write a session as a document",
        _sessions("exported_to_file"),
        _SESSION | _EXPORT,
    ),
    Command("sessions rm", _SESSIONS, _REMOVAL, _sessions("removed"), _SEVERAL),
    Command("prompts ls", _PROMPTS, "list prompts", _prompts("listed"), flags=_HERE),
    Command(
        "prompts show",
        _PROMPTS,
        "print a prompt's file, or with --var its text",
        _prompts("shown"),
        _PROMPT | _VAR,
        _HERE,
    ),
    Command("prompts new", _PROMPTS, "write a new prompt", _prompts("created"), _PROMPT),
    Command("prompts edit", _PROMPTS, "open a prompt in your editor", _prompts("edited"), _PROMPT, _HERE),
    Command(
        "prompts lint", _PROMPTS, "find what defeats the cache", _prompts("linted"), _SOME_PROMPTS, _HERE
    ),
    Command(
        "prompts warm",
        _PROMPTS,
        "compute a prompt's KV ahead of use",
        _prompts("warmed"),
        _PROMPT | _VAR,
        _HERE,
    ),
    Command("prompts rm", _PROMPTS, "delete a prompt of your own", _prompts("removed"), _PROMPT),
    Command(
        "prompts path", _PROMPTS, "print where a prompt's file is", _prompts("placed"), _ANY_PROMPT, _HERE
    ),
    Command(
        "prompts trust",
        _PROMPTS,
        "trust the prompts in ./prompts from now on",
        _prompts("trusted"),
        {"--no": {"action": "store_true", "help": "don't use them, and don't ask again"}},
    ),
    Command(
        "config path",
        _CONFIG,
        "print where config.toml is looked for",
        _config("config_path"),
        reads_settings=False,
    ),
    Command("config show", _CONFIG, "show all settings, and where each comes from", _config("config_show")),
    Command(
        "config edit",
        _CONFIG,
        "open config.toml in your editor",
        _config("config_edit"),
        reads_settings=False,
    ),
    Command(
        "completion bash",
        _COMPLETION,
        "print the script for bash",
        _verb("completion", "bash"),
        reads_settings=False,
    ),
    Command(
        "completion zsh",
        _COMPLETION,
        "print the script for zsh",
        _verb("completion", "zsh"),
        reads_settings=False,
    ),
    Command(
        "completion fish",
        _COMPLETION,
        "print the script for fish",
        _verb("completion", "fish"),
        reads_settings=False,
    ),
    Command(
        "completion names",
        _COMPLETION,
        "print names for these scripts, one per line",
        _verb("completion", "names"),
        {
            "group": {
                "metavar": "GROUP",
                "choices": ("models", "prompts", "sessions", "help"),
                "help": "kind of names",
            }
        },
    ),
    Command(
        "help",
        "",
        "show the page about a topic, or list the topics",
        _verb("help", "helped"),
        {"topic": {"metavar": "TOPIC", "nargs": "?", "help": "what to read about"}},
        reads_settings=False,
    ),
    Command(
        "doctor",
        "",
        "check this machine, its folders and the model",
        _verb("doctor", "report"),
        flags=_HOW,
        reads_settings=False,
    ),
)
