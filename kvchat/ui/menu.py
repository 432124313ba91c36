"""What stands above the input: the messages that wait, and the commands that what is typed may become. Takes no key."""

from __future__ import annotations

from collections.abc import Collection

from kvchat.ui.clean import sanitize
from kvchat.ui.commands import COMMANDS, is_command

NUM_ROWS = 8
"""Most commands that are shown at once."""

_QUEUED_ROWS = 3


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


def queued_rows(waiting: Collection[str], columns: int) -> list[str]:
    """The messages that wait, a row each; of many the first, and how many more."""
    begun = (" ".join(sanitize(text[: 4 * columns]).split()) for text in waiting)
    shown = [f"queued: {text}"[: columns - 1] for text in begun]
    if len(shown) > _QUEUED_ROWS:
        shown = [*shown[: _QUEUED_ROWS - 1], f"… and {len(shown) - _QUEUED_ROWS + 1} more"]
    return shown
