"""What stands above the input while a command is typed: the commands that it may become. Takes no key."""

from __future__ import annotations

from kvchat.ui.commands import COMMANDS, is_command

NUM_ROWS = 8
"""Most commands that are shown at once."""


def menu_rows(text: str, columns: int) -> list[str]:
    """The commands that begin as `text` does, or else have it in their name or description, one a row; none unless
    `text` is the beginning of a command's name."""
    if not is_command(text) or any(char.isspace() for char in text):
        return []
    found = [command for command in COMMANDS if command.name.startswith(text)]
    if not found:
        word = text[1:].casefold()
        found = [command for command in COMMANDS if word in f"{command.name} {command.help}".casefold()]
    names = [f"{command.name} {command.arguments}".strip() for command in found]
    width = max(map(len, names), default=0)
    rows = [f"  {name:<{width}}  {command.help}" for name, command in zip(names, found, strict=True)]
    if len(rows) > NUM_ROWS:
        rows = [*rows[: NUM_ROWS - 1], f"  … {len(rows) - NUM_ROWS + 1} more; type on, Tab completes"]
    return [row[: columns - 1] for row in rows]
