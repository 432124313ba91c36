"""The arguments of the commands beside chatting, as argparse takes them."""

from __future__ import annotations

import argparse
from typing import Any

from kvchat.commands.flags import size_argument

Arguments = dict[str, dict[str, Any]]
"""By name: what argparse needs to know of each."""


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


DRY_RUN: Arguments = {
    "--dry-run": {"action": "store_true", "help": "say what would be done, but don't do it"}
}
PRUNE: Arguments = {
    "--to": {"type": size_argument, "metavar": "SIZE", "help": "remove until no more than SIZE is left"},
    "--older-than": {"type": _days, "metavar": "DAYS", "help": "remove what was not used for so many days"},
}
VERIFY: Arguments = {
    "--no-recompute": {"action": "store_true", "help": "check only the checksums, without loading the model"},
    "--sample": {
        "type": _positive,
        "default": 4,
        "metavar": "N",
        "help": "how many stored runs to compute again (4)",
    },
    "--remove": {"action": "store_true", "help": "delete what can't be used"},
}
NAME: Arguments = {"name": {"metavar": "NAME", "help": "a model, named as after -m"}}
REMOTE: Arguments = {
    "remote": {
        "metavar": "REMOTE",
        "nargs": "?",
        "help": "a remote of config.toml, or a URL: its models alone",
    }
}
NUM_PROMPTS: Arguments = {
    "--prompts": {"metavar": "N", "type": _positive, "default": 200, "help": "prompts to answer (200)"}
}
NUM_MESSAGES: Arguments = {
    "--messages": {"metavar": "N", "type": _positive, "default": 10, "help": "messages to type (10)"}
}
LENGTHS: Arguments = {
    "--lengths": {
        "metavar": "N",
        "type": _positive,
        "nargs": "+",
        "help": "lengths of the prompt or history to measure, in tokens",
    }
}
RUNS: Arguments = {
    "--repeats": {"metavar": "N", "type": _positive, "default": 3, "help": "how often to measure each (3)"},
    "--threads": {"metavar": "N", "type": _positive, "help": "number of threads to compute with"},
}
AGAINST: Arguments = {
    "--against": {"metavar": "NAMES", "help": "compare with some of nocache,transformers,llama.cpp"},
    "--llama-python": {
        "metavar": "FILE",
        "help": "a Python interpreter that has llama-cpp-python or xllamacpp",
    },
}
PLOT: Arguments = {"--plot": {"metavar": "FILE", "help": "draw a chart to FILE.svg or FILE.png"}}
SESSION: Arguments = {
    "session": {
        "metavar": "SESSION",
        "nargs": "?",
        "default": "latest",
        "help": "its name or id, or how that begins; the latest if omitted",
    }
}
LIMIT: Arguments = {"--limit": {"type": _positive, "metavar": "N", "help": "list at most N"}}
EXPORT: Arguments = {
    "--format": {"choices": ("md", "json", "html"), "default": "md", "help": "kind of document (md)"},
    "--output": {"metavar": "FILE", "help": "write to FILE, readable only by you"},
}
WORDS: Arguments = {"words": {"metavar": "WORD", "nargs": "+", "help": "words that all have to occur"}}
SEVERAL: Arguments = {
    "sessions": {"metavar": "SESSION", "nargs": "+", "help": "names or ids, or how they begin"},
    "--yes": {"action": "store_true", "help": "delete without asking"},
}
VAR: Arguments = {
    "--var": {
        "action": "append",
        "dest": "values",
        "metavar": "NAME=VALUE",
        "help": "set a variable of the prompt; may be repeated",
    }
}
PROMPT: Arguments = {"name": {"metavar": "PROMPT", "help": "a prompt, named as after -t"}}
ANY_PROMPT: Arguments = {
    "name": {"metavar": "PROMPT", "nargs": "?", "help": "a prompt, named as after -t; your folder if omitted"}
}
SOME_PROMPTS: Arguments = {
    "names": {"metavar": "PROMPT", "nargs": "*", "help": "prompts, named as after -t; all if omitted"}
}

TRACE: Arguments = {
    "--trace": {"metavar": "FILE", "help": "a trace, in Mooncake's form or kvchat's own"},
    "--make": {
        "metavar": "FILE",
        "help": "make up a trace of terminal chats first, and write it there",
    },
    "--days": {"type": _positive, "default": 60, "metavar": "N", "help": "how many days it spans (60)"},
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "which one is made up (0)"},
}

SERVE: Arguments = {
    "--host": {
        "metavar": "HOST",
        "default": "127.0.0.1",
        "help": "where to listen (127.0.0.1); others need a key",
    },
    "--port": {"metavar": "N", "type": int, "default": 11435, "help": "port to listen at (11435)"},
    "--api-key": {
        "metavar": "KEY",
        "help": "a key that clients have to give; others may see it in a list of processes",
    },
    "--api-key-file": {"metavar": "FILE", "help": "a file with that key"},
    "--save": {"action": "store_true", "help": "keep computed KV on disk, too"},
}
PID: Arguments = {
    "pid": {
        "metavar": "PID",
        "nargs": "?",
        "type": _positive,
        "help": "process id of the engine; not needed if there is only one",
    }
}
