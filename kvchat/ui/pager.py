"""A text that is longer than the screen, in the user's own pager. Knows nothing of what the text is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from kvchat.config import pager

_LESS = "FRX"
"""How less is run where LESS says nothing: colours as they are, no clearing, no waiting for a short text."""
_NOT_RUN = (126, 127)
"""What a shell's wrapper ends with if there was nothing to run."""


def page_through(text: str) -> bool:
    """Show a text in the pager and wait for its end; False, with nothing shown, where none can be run."""
    command = pager()
    if not command:
        return False
    sys.stdout.flush()
    environ = {"LESS": _LESS, "LV": "-c"} | dict(os.environ)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environ, text=True, encoding="utf-8")
    except OSError:
        return False
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pager's key
    try:
        process.communicate(text + "\n")
    except BrokenPipeError:  # it was left before the end
        process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return process.returncode not in _NOT_RUN
