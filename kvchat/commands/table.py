"""The commands beside chatting: a table with a row for each, whose function yields lines of stdout."""

from __future__ import annotations

from functools import partial

from kvchat.commands.arguments import (
    ANY_PROMPT,
    DRY_RUN,
    EXPORT,
    LIMIT,
    NAME,
    PID,
    PROMPT,
    PRUNE,
    REMOTE,
    SERVE,
    SESSION,
    SEVERAL,
    SOME_PROMPTS,
    VAR,
    VERIFY,
    WORDS,
)
from kvchat.commands.benches import BENCHES, HOW
from kvchat.commands.command import Command, verb

_models = partial(verb, "models")
_sessions = partial(verb, "sessions")
_prompts = partial(verb, "prompts")
_cache = partial(verb, "cache")
_config = partial(verb, "config")
_engine = partial(verb, "engine")

_CACHE = "stored KV"
_CONFIG = "settings"
_COMPLETION = "completion for your shell"
_AT = ("--cache-dir",)

_MODELS = "models on this disk"


_ENGINE = "engines that terminals share"
_SESSIONS = "conversations that were saved"
_REMOVAL = (
    "delete sessions, also from the search index and the cache; if one of them is not there, none is deleted"
)
_PROMPTS = "saved system prompts"
_HERE = ("--trust-prompts",)

_SERVED_WITH = (
    "--threads",
    "--context",
    "--adapter",
    "--draft",
    "--chat-template",
    "--max-tokens",
    "--temperature",
    "--top-k",
    "--top-p",
    "--min-p",
    "--repetition-penalty",
    "--think",
    "--seed",
    "--cache",
    "--cache-dir",
    "--cache-ram",
    "--cache-disk",
)

COMMANDS: tuple[Command, ...] = (
    Command("models ls", _MODELS, "list the models on this disk and of remotes", _models("listed"), REMOTE),
    Command("models pull", _MODELS, "download or import a model", _models("pulled"), NAME),
    Command("models rm", _MODELS, "delete a model's files", _models("removed"), NAME),
    Command("models path", _MODELS, "print the folder of a model", _models("placed"), NAME),
    Command(
        "cache ls",
        _CACHE,
        "list what is stored, run by run",
        _cache("cache_ls"),
        flags=_AT,
        nothing="nothing is stored yet: a chat stores what it computes",
    ),
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
        VERIFY | DRY_RUN,
        (*_AT, *HOW, "--cache-codec"),
    ),
    Command(
        "cache prune",
        _CACHE,
        "remove what is old or over the budget",
        _cache("cache_prune"),
        PRUNE | DRY_RUN,
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
    Command("cache clear", _CACHE, "remove all stored KV", _cache("cache_clear"), DRY_RUN, _AT),
    Command("cache path", _CACHE, "print the folder that KV is stored in", _cache("cache_path"), flags=_AT),
    *BENCHES,
    Command(
        "engine ls",
        _ENGINE,
        "list the engines that run, their clients and memory",
        _engine("listed"),
        nothing="no engine is running: the next chat starts one",
    ),
    Command(
        "engine stop",
        _ENGINE,
        "end an engine, or all of them, once what it computed is written",
        _engine("stopped"),
        PID | {"--all": {"action": "store_true", "help": "end all engines"}},
    ),
    Command("engine log", _ENGINE, "print what an engine says about itself", _engine("logged"), PID),
    Command(
        "sessions ls",
        _SESSIONS,
        "list sessions, the latest first",
        _sessions("listed"),
        LIMIT,
        nothing="no session is saved yet: kvchat begins one",
    ),
    Command("sessions show", _SESSIONS, "print a session", _sessions("shown"), SESSION),
    Command(
        "sessions search",
        _SESSIONS,
        "find words in all sessions",
        _sessions("found"),
        WORDS | LIMIT,
        nothing="nothing that was said has these words in it",
    ),
    Command(
        "sessions export",
        _SESSIONS,
        "write a session as a document",
        _sessions("exported_to_file"),
        SESSION | EXPORT,
    ),
    Command("sessions rm", _SESSIONS, _REMOVAL, _sessions("removed"), SEVERAL),
    Command("prompts ls", _PROMPTS, "list prompts", _prompts("listed"), flags=_HERE),
    Command(
        "prompts show",
        _PROMPTS,
        "print a prompt's file, or with --var its text",
        _prompts("shown"),
        PROMPT | VAR,
        _HERE,
    ),
    Command("prompts new", _PROMPTS, "write a new prompt", _prompts("created"), PROMPT),
    Command("prompts edit", _PROMPTS, "open a prompt in your editor", _prompts("edited"), PROMPT, _HERE),
    Command("prompts lint", _PROMPTS, "find what defeats the cache", _prompts("linted"), SOME_PROMPTS, _HERE),
    Command(
        "prompts warm",
        _PROMPTS,
        "compute a prompt's KV ahead of use",
        _prompts("warmed"),
        PROMPT | VAR,
        _HERE,
    ),
    Command("prompts rm", _PROMPTS, "delete a prompt of your own", _prompts("removed"), PROMPT),
    Command(
        "prompts path", _PROMPTS, "print where a prompt's file is", _prompts("placed"), ANY_PROMPT, _HERE
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
        verb("completion", "bash"),
        reads_settings=False,
    ),
    Command(
        "completion zsh",
        _COMPLETION,
        "print the script for zsh",
        verb("completion", "zsh"),
        reads_settings=False,
    ),
    Command(
        "completion fish",
        _COMPLETION,
        "print the script for fish",
        verb("completion", "fish"),
        reads_settings=False,
    ),
    Command(
        "completion names",
        _COMPLETION,
        "print names for these scripts, one per line",
        verb("completion", "names"),
        {
            "group": {
                "metavar": "GROUP",
                "choices": ("models", "prompts", "sessions", "help"),
                "help": "kind of names",
            }
        },
    ),
    Command(
        "serve",
        "",
        "serve the model to other programs, over HTTP",
        verb("serve", "served"),
        SERVE,
        (*HOW, *_SERVED_WITH),
    ),
    Command(
        "help",
        "",
        "show the page about a topic, or list the topics",
        verb("help", "helped"),
        {"topic": {"metavar": "TOPIC", "nargs": "?", "help": "what to read about"}},
        reads_settings=False,
    ),
    Command(
        "doctor",
        "",
        "check this machine, its folders and the model",
        verb("doctor", "report"),
        flags=HOW,
        reads_settings=False,
    ),
)
