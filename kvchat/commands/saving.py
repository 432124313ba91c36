"""Writes settings into config.toml and leaves the rest of it as it is. Knows no setting by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kvchat.chat.export import write_private
from kvchat.commands.config import as_toml
from kvchat.config import config_file, load_config
from kvchat.errors import UsageError, reason_of


def save_settings(values: Mapping[str, object]) -> Path:
    """Write each `section.key` with its value, or remove it where that is None; the file.

    Raises UsageError where it can't be written, or would not be read again; it is then as it was.
    """
    path = config_file()
    before = ""
    try:
        if path.exists():
            before = path.read_text(encoding="utf-8-sig")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        after = before
        for key, value in values.items():
            after = with_setting(after, key, value)
        write_private(path, after)
        load_config({})
    except (OSError, ValueError) as error:
        raise UsageError(f"can't write {path}: {reason_of(error)}", "check its permissions") from None
    except UsageError:
        write_private(path, before)
        raise
    return path


def with_setting(text: str, key: str, value: object) -> str:
    """TOML with one setting changed, or without it where `value` is None; all other lines stay."""
    section, _, name = key.partition(".")
    lines = text.splitlines()
    headers = [at for at, line in enumerate(lines) if line.strip().startswith("[")]
    start = next(
        (at for at in headers if lines[at].strip().partition("#")[0].strip() == f"[{section}]"), None
    )
    if start is None:
        new = ["", f"[{section}]", f"{name} = {as_toml(value)}"] if value is not None else []
        return "\n".join([*lines, *(new if lines else new[1:])]) + "\n"
    end = next((at for at in headers if at > start), len(lines))
    own = re.compile(rf"\s*{re.escape(name)}\s*=")
    at = next((at for at in range(start + 1, end) if own.match(lines[at])), None)
    written = [] if value is None else [f"{name} = {as_toml(value)}"]
    lines[slice(start + 1, start + 1) if at is None else slice(at, at + 1)] = written
    return "\n".join(lines) + "\n"
