"""`kvchat completion SHELL`: scripts that complete commands, flags, their choices and names. From the tables alone.

Names come from others (a file in a repository is called as somebody likes), so no script ever lets its shell evaluate
one: each is read as a line, compared as text, and quoted by the shell itself where it is put into the command line.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvchat.commands.flags import EVERYWHERE, FLAGS, Flag
from kvchat.config import Config

_FILES = ("FILE", "DIR")
_NAMED = {"-m": "models", "-t": "prompts", "-r": "sessions"}
"""Flags whose value is a name that `kvchat completion names GROUP` lists, by their first name."""
_LISTED = ("NAME", "PROMPT", "SESSION", "TOPIC")


@dataclass(frozen=True, slots=True)
class Option:
    """A flag: all its names, whether a value follows, and which: `choices`, the names of `group`, or files."""

    names: tuple[str, ...]
    help: str
    takes_value: bool = False
    choices: tuple[str, ...] = ()
    group: str = ""
    is_file: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What may follow the command words of `route`: more of them with their help, options, and names of `group`."""

    route: str
    words: dict[str, str]
    options: tuple[Option, ...]
    group: str = ""


def places() -> tuple[Place, ...]:
    """All places of the command line, the bare program first."""
    from kvchat.commands.table import COMMANDS

    top = tuple(_option(flag) for flags in FLAGS.values() for flag in flags)
    groups: dict[str, dict[str, str]] = {}
    found: list[Place] = []
    for row in COMMANDS:
        group, _, verb = row.name.partition(" ")
        groups.setdefault(group, {})
        if verb:
            groups[group][verb] = row.help
        flags = [Flag(name, rest.get("help", ""), None, rest) for name, rest in row.arguments.items()]
        own = [_option(flag) for flag in flags if flag.names.startswith("-")]
        shared = [option for option in top if option.names[0] in (*EVERYWHERE, *row.flags)]
        listed = any(flag.rest.get("metavar") in _LISTED for flag in flags if not flag.names.startswith("-"))
        found.append(Place(row.name, {}, (*own, *shared), group if listed else ""))
    about = {row.name.split()[0]: row.about or row.help for row in COMMANDS}
    menus = [Place(group, verbs, ()) for group, verbs in groups.items() if verbs]
    standing = (Option(("-h", "--help"), "show the help and end"), Option(("--version",), "show the version"))
    return Place("", about, (*top, *standing)), *menus, *found


def _option(flag: Flag) -> Option:
    names, rest = tuple(flag.names.split()), flag.rest
    takes_value = not str(rest.get("action", "")).startswith("store_")
    return Option(
        names,
        flag.help,
        takes_value,
        tuple(rest.get("choices", ())),
        _NAMED.get(names[0], ""),
        rest.get("metavar") in _FILES or names[0] == "-m",
    )


def _routes() -> list[str]:
    return [place.route for place in places() if place.route]


def _valued() -> list[Option]:
    """Every option that takes a value, once."""
    by_name = {option.names: option for place in places() for option in place.options if option.takes_value}
    return list(by_name.values())


def names(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The names of a group, one a line; none that has a character which a line of a terminal can't show."""
    for name in _NAMES[args.group](config):
        if name.isprintable():
            yield name


def _models(config: Config) -> Iterable[str]:
    from kvchat.models.sources.catalog import Catalog

    return [entry.name for entry in Catalog(config.paths.models, offline=True).entries()]


def _prompts(config: Config) -> Iterable[str]:
    from kvchat.commands.trusting import prompts_around
    from kvchat.trust import Trust

    return prompts_around(Trust.from_config(config)).paths()


def _sessions(config: Config) -> Iterable[str]:
    from kvchat.chat.store import FILE_NAME, Store

    path = config.paths.data / FILE_NAME
    rows = Store(path).sessions() if path.exists() else []
    return [name for row in rows for name in (row.name, row.id) if name]


def _topics(config: Config) -> Iterable[str]:
    from kvchat.commands.help import topics

    return topics()


_NAMES: dict[str, Callable[[Config], Iterable[str]]] = {
    "models": _models,
    "prompts": _prompts,
    "sessions": _sessions,
    "help": _topics,
}

_BASH_HEAD = """\
# Completion of kvchat in bash; to use it: source <(kvchat completion bash)
_kvchat_words() {  # offers those of the arguments that begin with what was typed
    local word
    for word; do [[ $word == "$cur"* ]] && COMPREPLY+=("$word"); done
}
_kvchat_names() {  # offers the names of a group, quoted; behind an open quote those that need none
    local name quoted typed=${cur#[\\"\\']}
    while IFS= read -r name; do
        printf -v quoted %q "$name"
        if [[ $cur == *[\\"\\']* ]]; then
            [[ $name == "$typed"* && $name == "$quoted" ]] && COMPREPLY+=("$name")
        elif [[ $quoted == "$cur"* || $name == "$cur"* ]]; then
            COMPREPLY+=("$quoted")
        fi
    done < <(kvchat completion names "$1" 2>/dev/null)
}
_kvchat_files() { compopt -o default 2>/dev/null; }  # readline's own, where nothing else is offered
_kvchat() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} route="" i
    if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
    COMPREPLY=()"""


def bash(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The script for bash: `source <(kvchat completion bash)`."""
    yield from (
        _BASH_HEAD,
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        '        case "${route:+$route }${COMP_WORDS[i]}" in',
        f'            {_patterns(_routes())}) route="${{route:+$route }}${{COMP_WORDS[i]}}";;',
        "        esac",
        "    done",
        '    case "$prev" in',
    )
    for option in _valued():
        yield f"        {'|'.join(option.names)}) {_bash_values(option)}return;;"
    yield from ("    esac", '    case "$route" in')
    for place in places():
        words = [*place.words, *(name for option in place.options for name in option.names)]
        listed = f"_kvchat_names {place.group}; " if place.group else ""
        yield f"        {shlex.quote(place.route)}) {listed}_kvchat_words {' '.join(words)};;"
    yield from ("    esac", "}", "complete -F _kvchat kvchat")


def _patterns(words: Iterable[str]) -> str:
    return "|".join(shlex.quote(word) for word in words)


def _bash_values(option: Option) -> str:
    words = f"_kvchat_words {' '.join(option.choices)}; " if option.choices else ""
    listed = f"_kvchat_names {option.group}; " if option.group else ""
    return words + listed + ("_kvchat_files; " if option.is_file else "")


def zsh(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The script for zsh: `source <(kvchat completion zsh)`, or a file `_kvchat` in a folder of $fpath."""
    yield from (
        "#compdef kvchat",
        "# Completion of kvchat in zsh; to use it: source <(kvchat completion zsh)",
        '_kvchat_names() { local -a names; names=(${(f)"$(kvchat completion names $1 2>/dev/null)"}); compadd -a names }',
        "_kvchat() {",
        '    local route="" word prev=$words[CURRENT-1]',
        "    local -a items options",
        "    for word in ${words[2,CURRENT-1]}; do",
        '        case "${route:+$route }$word" in',
        f'            ({_patterns(_routes())}) route="${{route:+$route }}$word";;',
        "        esac",
        "    done",
        "    case $prev in",
    )
    for option in _valued():
        yield f"        ({'|'.join(option.names)}) {_zsh_values(option)}return;;"
    yield from ("    esac", "    case $route in")
    for place in places():
        yield f"        ({shlex.quote(place.route)})"
        yield f"            items=({_described(place.words.items())})"
        options = ((name, option.help) for option in place.options for name in option.names)
        yield f"            options=({_described(options)})"
        yield f"            {f'_kvchat_names {place.group}' if place.group else ':'};;"
    yield from (
        "    esac",
        "    (( $#items )) && _describe -t commands command items",
        "    (( $#options )) && _describe -o -t options option options",
        "}",
        'if [[ $funcstack[1] == _kvchat ]]; then _kvchat "$@"; else compdef _kvchat kvchat; fi',
    )


def _described(pairs: Iterable[tuple[str, str]]) -> str:
    return " ".join(shlex.quote(f"{name}:{text}") for name, text in pairs)


def _zsh_values(option: Option) -> str:
    values = f"compadd -- {' '.join(option.choices)}; " if option.choices else ""
    values += f"_kvchat_names {option.group}; " if option.group else ""
    return values + ("_files; " if option.is_file else "")


def fish(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The script for fish: `kvchat completion fish | source`."""
    yield from (
        "# Completion of kvchat in fish; to use it: kvchat completion fish | source",
        "function __kvchat_names",
        "    kvchat completion names $argv[1] 2>/dev/null | string match -v -- '~*'  # fish would expand these",
        "end",
        "function __kvchat_at",
        "    set -l route",
        "    for word in (commandline -opc)[2..-1]",
        f"        contains -- (string join -- ' ' $route $word) {' '.join(map(_fish_quote, _routes()))}; and set -a route $word",
        "    end",
        "    set -l joined (string join -- ' ' $route)",
        '    test "$joined" = "$argv[1]"',
        "end",
        "complete -c kvchat -f",
    )
    for place in places():
        at = f"complete -c kvchat -n {_fish_quote(f'__kvchat_at {_fish_quote(place.route)}')}"
        for word, text in place.words.items():
            yield f"{at} -a {word} -d {_fish_quote(text)}"
        if place.group:
            yield f"{at} -a '(__kvchat_names {place.group})'"
        for option in place.options:
            yield f"{at} {_fish_option(option)}"


def _fish_option(option: Option) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    values = " ".join(option.choices) or (f"(__kvchat_names {option.group})" if option.group else "")
    parts = [*names, f"-d {_fish_quote(option.help)}"]
    if option.takes_value:
        parts.append("-r" if option.is_file else "-x")
    if option.is_file:
        parts.append("-F")
    if values:
        parts.append(f"-a {_fish_quote(values)}")
    return " ".join(parts)


def _fish_quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
