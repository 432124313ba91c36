"""`kvchat config ...`: which settings there are, where each value comes from, and the file to edit. Loads no torch."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from kvchat.commands.flags import FLAG_NAMES, FLAGS
from kvchat.config import SECTIONS, Config, config_file, editor, load_config, origins, variable_name
from kvchat.errors import UsageError
from kvchat.remotes import without_password
from kvchat.setting import ByteSize
from kvchat.settings_file import REMOTE

_ABOUT = {
    "sampling.stop": "texts that end an answer",
    "sampling.think": "let models that can reason first do so (auto, on, off)",
    "cache.block_size": "tokens per block; nothing that was stored with another size is found",
    "cache.prepare": "compute what the next prompt begins with while nobody is waiting",
    "chat.system": "the system prompt",
    "chat.pin": "evict the system prompt's KV last",
    "chat.save": "save conversations and their KV; false leaves nothing on disk",
    "chat.titles": "let the model find a title for a conversation while nobody waits",
    "engine.share": "let all terminals use one engine; false gives each its own",
    "ui.vi": "vi keys for editing the input",
    "ui.reasoning": "show the model's reasoning",
    "ui.type_ahead_battery": "on a battery with less than so many percent left, compute nothing while you type",
    "paths.models": "folder of models that were fetched or imported",
    "paths.data": "folder of conversations and of what you typed",
    "paths.runtime": "folder of the sockets and logs of engines that are shared",
}
"""What a setting is where no flag tells, or where the flag tells how to turn it off or how to give it more than once."""

_WIDEST = 40

_EXAMPLES: dict[str, object] = {
    "model.context": 8192,
    "model.chat_template": "template.jinja",
    "model.adapter": "path/to/adapter",
    "model.draft": "off",
    "sampling.max_tokens": 512,
    "sampling.temperature": 0.7,
    "sampling.top_k": 40,
    "sampling.top_p": 0.95,
    "sampling.min_p": 0.05,
    "sampling.repetition_penalty": 1.1,
    "sampling.seed": 42,
    "sampling.stop": ["END"],
    "cache.ram": "2GiB",
    "cache.disk": "4GiB",
    "chat.system": "You are a helpful assistant.",
    "chat.when_full": "auto",
    "paths.runtime": "/run/user/1000/kvchat",
}
"""What to write for settings that have no value by default."""


_REMOTE = (
    "",
    "# Models that other machines serve have sections of their own, [remote.NAME]: see kvchat help remotes.",
)
_HIDDEN = ("headers", "cache_salt", "api_key_cmd")
"""Settings of remotes whose values may be secret."""


def config_path(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Where config.toml is looked for."""
    path = config_file()
    yield json.dumps({"path": str(path), "exists": path.exists()}) if args.json else str(path)


def config_show(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Every setting with its value and where it comes from."""
    given = origins(given_flags(args), flag_names=FLAG_NAMES)
    flat = {f"{name}.{key}": value for name, row in config.to_json().items() for key, value in row.items()}
    flat |= _of_remotes(config)
    where = {key: given[key].where if key in given else "default" for key in flat}
    if args.json:
        rows = {key: {"value": value, "from": where[key]} for key, value in flat.items()}
        yield json.dumps(rows, ensure_ascii=False)
        return
    width = max(len(key) for key in flat)
    shown = {key: _shown(value) for key, value in flat.items()}
    widest = min(_WIDEST, max(len(text) for text in shown.values()))
    for key, text in shown.items():
        yield f"{key:<{width}}  {text:<{widest}}  {where[key]}"


def _of_remotes(config: Config) -> dict[str, object]:
    """What is set of the remotes; of what may be secret only that it is set."""
    rows: dict[str, object] = {}
    for name, remote in config.remotes.items():
        for item in fields(remote):
            value = getattr(remote, item.name)
            if value != item.default and value:
                is_plain = item.name not in _HIDDEN
                value = without_password(value) if item.name == "proxy" else value
                shown = value if is_plain else list(value) if item.name == "headers" else "(hidden)"
                rows[f"{REMOTE}.{name}.{item.name}"] = str(shown) if isinstance(shown, Path) else shown
    return rows


def given_flags(args: argparse.Namespace) -> dict[str, object]:
    """The settings among the arguments, which are called `section.key`."""
    return {name: value for name, value in vars(args).items() if "." in name}


def _shown(value: object) -> str:
    if value is None or value == () or value == []:
        return "-"
    return as_toml(value)


def config_edit(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Open config.toml in the user's editor, with all settings as comments when it is new.

    Raises UsageError when the editor can't be run, or for what is wrong in the file afterwards.
    """
    path = config_file()
    _create(path)
    command = editor()
    try:
        code = subprocess.run([*shlex.split(command), str(path)]).returncode
    except (OSError, ValueError) as error:
        raise UsageError(f"can't run the editor {command!r}: {error}", "set VISUAL or EDITOR") from None
    if code:
        raise UsageError(f"the editor {command!r} ended with {code}", "set VISUAL or EDITOR to another")
    load_config({})
    yield json.dumps({"path": str(path)}) if args.json else str(path)


def _create(path: Path) -> None:
    from kvchat.chat.export import write_private

    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, template())
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}", "check its folder's permissions") from None


def described(section: str, item: Field[Any]) -> str:
    """What a setting is, on its own: as the template and the page about settings say it."""
    key = f"{section}.{item.name}"
    about = {flag.key: flag.help for flags in FLAGS.values() for flag in flags if flag.key} | _ABOUT
    choices = item.metadata.get("choices")
    return about[key] + (f" ({', '.join(choices)})" if choices else "")


def template() -> str:
    """A config.toml in which every setting stands as a comment, with its default or an example."""
    lines = [
        "# Settings of kvchat. To change one, remove the # in front of it.",
        "# Environment variables override this file, and flags override both.",
    ]
    for section, values in Config().to_json().items():
        lines += ["", f"[{section}]"]
        for item in fields(SECTIONS[section]):
            key = f"{section}.{item.name}"
            lines.append(f"# {described(section, item)} [{variable_name(section, item)}]")
            example = _EXAMPLES.get(key, item.metadata.get("none", values[item.name]))
            lines.append(f"# {item.name} = {as_toml(example)}")
    lines += _REMOTE
    return "\n".join(lines) + "\n"


def as_toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, ByteSize | int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)
