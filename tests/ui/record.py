"""Records the README's picture and film from the real program: python -m tests.ui.record [FOLDER].

Behind a pseudo-terminal the embedded model is told of a page, the program is left, and `kvchat -c` goes on: that is recorded as
`session.cast` (asciicast v2, for `asciinema play`), drawn as `session.svg`, and moves in `film.svg`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.ui.drawing import Row, film, picture
from tests.ui.terminal import Terminal

FOLDER = Path(__file__).parent
PAGE = Path(__file__).parents[2] / "LICENSE"
BEFORE = f"@{PAGE.name} What is this text about? Answer in one sentence."
DIALOGUE = ("Show a hello world program in Python.", "/cache why")
COLUMNS, ROWS = 96, 34
LONGEST_PAUSE_S, KEY_S = 1.2, 0.05
FLAGS = ("--max-tokens", "120")
TITLE = "A session of kvchat in a terminal"


class Recorder(Terminal):
    """A terminal that keeps what was written and how it looked, and when."""

    timeout_s = 600.0

    def __init__(self, folder: Path, *argv: str) -> None:
        self.events: list[tuple[float, bytes]] = []
        self.frames: list[tuple[float, tuple[Row, ...]]] = []
        size: dict[str, Any] = {"columns": COLUMNS, "rows": ROWS}
        super().__init__(folder, *argv, module="kvchat", own_models=False, **size)

    def read_some(self, timeout_s: float) -> None:
        """Show what comes first, and keep it."""
        before = len(self.raw)
        super().read_some(timeout_s)
        now = time.monotonic()
        self.events.append((now, self.raw[before:]))
        buffer = self.screen.buffer
        rows = tuple(tuple(buffer[y][x] for x in range(COLUMNS)) for y in range(ROWS))
        if not self.frames or self.frames[-1][1] != rows:
            self.frames.append((now, rows))

    def say(self, text: str) -> None:
        """Type as a person does, and wait for the end of what comes of it."""
        for key in text:
            self.type(key)
            time.sleep(KEY_S)
            self.read()
        self.type("\r")
        if text.startswith("/"):
            self.wait_for("reused")
        else:
            self.settle()
        for _ in range(20):
            self.read()


def recorded(folder: Path) -> Recorder:
    """A session that is gone on with, from its first row on."""
    first = Recorder(folder, *FLAGS).ready()
    first.until(lambda: "ready" in first.visible[-1], "the model")
    first.enter(BEFORE)
    if "Enter again" in "\n".join(first.rows):
        first.type("\r")
    first.settle()
    first.leave()
    second = Recorder(folder, *FLAGS, "-c").ready()
    second.until(lambda: "ready" in second.visible[-1], "the model")
    for message in DIALOGUE:
        second.say(message)
    return second


def without_pauses(times: list[float]) -> list[float]:
    """Seconds from the first on, where nothing lasts longer than LONGEST_PAUSE_S."""
    seconds = [0.0]
    for before, after in pairwise(times):
        seconds.append(seconds[-1] + min(after - before, LONGEST_PAUSE_S))
    return seconds


def cast(events: list[tuple[float, bytes]]) -> str:
    """What was written, as asciicast v2: a header, then a line an event."""
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": TITLE, "env": {"TERM": "xterm-256color"}}
    seconds = without_pauses([at for at, _ in events])
    lines = [
        [round(at, 3), "o", data.decode(errors="replace")]
        for at, (_, data) in zip(seconds, events, strict=True)
    ]
    return "".join(json.dumps(line) + "\n" for line in (head, *lines))


def trimmed(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Without the empty rows at the end."""
    last = max(at for at, row in enumerate(rows) if any(cell.data.strip() for cell in row))
    return rows[: last + 1]


def main(folder: Path) -> None:
    """Record, and write the three files."""
    folder = folder.absolute()
    with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
        shutil.copy(PAGE, temporary)
        terminal = recorded(Path(temporary))
        num_frames = len(terminal.frames)
        terminal.leave()
    del terminal.frames[num_frames:]
    times = without_pauses([at for at, _ in terminal.frames])
    frames = [(at, rows) for at, (_, rows) in zip(times, terminal.frames, strict=True)]
    for name, text in (
        ("session.cast", cast(terminal.events)),
        ("session.svg", picture(trimmed(frames[-1][1]), TITLE)),
        ("film.svg", film(frames, TITLE)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name, len(text.encode()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
