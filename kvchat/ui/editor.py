"""A text in the user's own editor. Needs the terminal to itself while it runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from kvchat.errors import KvchatError

_FALLBACK = "vi"


def edited(text: str) -> str:
    """The text as $VISUAL or $EDITOR left it, without the newline at its end. Raises KvchatError."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or _FALLBACK
    with tempfile.TemporaryDirectory(prefix="kvchat-") as folder:  # mode 0700
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            code = subprocess.call([*shlex.split(editor), str(path)])
        except (OSError, ValueError) as error:
            raise KvchatError(f"can't run the editor {editor!r}: {error}", "set VISUAL or EDITOR") from error
        if code:
            raise KvchatError(f"the editor {editor!r} exited with code {code}", "your text is unchanged")
        return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
