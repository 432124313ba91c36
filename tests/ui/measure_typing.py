"""Measures how soon a key is seen while the model loads, while it answers and while what is typed is computed ahead.

`python -m tests.ui.measure_typing [FLAGS]` runs the real program behind a pseudo-terminal; the flags go to it (-m MODEL,
--type-ahead off). Prints a line a phase, in milliseconds.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.ui.terminal import Terminal

LETTERS = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμπρστφχψω"
BETWEEN_KEYS_S, BETWEEN_TYPED_KEYS_S = 0.03, 0.12
MESSAGE = "Tell a long story about a lighthouse, its keeper, a storm and a ship."


def echoed_ms(terminal: Terminal, letter: str) -> float:
    """Time from a key to its letter in what the program writes."""
    terminal.read()
    seen = len(terminal.raw)
    begun = time.monotonic()
    terminal.child.send(letter.encode())
    while letter.encode() not in terminal.raw[seen:]:
        terminal.read_some(10)
    return 1e3 * (time.monotonic() - begun)


def typed_while(
    terminal: Terminal, word: bytes, *, num_keys: int, between_s: float = BETWEEN_KEYS_S
) -> list[float]:
    """Times of keys until `word` is written or so many were typed; the input is cleared at times."""
    times: list[float] = []
    start = len(terminal.raw)
    while word not in terminal.raw[start:] and len(times) < num_keys:
        times.append(echoed_ms(terminal, LETTERS[len(times) % len(LETTERS)]))
        if len(times) % 50 == 0:
            terminal.child.send(b"\x15")
        time.sleep(between_s)
    terminal.child.send(b"\x15")
    return times


def report(phase: str, times: list[float]) -> None:
    """One line: how many keys, and the 50th and 99th percentile and the worst of their times."""
    ordered = sorted(times)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    print(f"{phase:<10} {len(times):4} keys  p50 {p50:5.1f}  p99 {p99:5.1f}  max {ordered[-1]:5.1f} ms")


def main(argv: list[str]) -> None:
    """Type through loading, through one answer, and then a message that is never sent."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(Path(folder), *argv, module="kvchat", own_models=False).ready()
        report("loading", typed_while(terminal, b"ready", num_keys=600))
        terminal.until(lambda: "ready" in terminal.visible[-1], "the model")
        terminal.enter(MESSAGE)
        report("answering", typed_while(terminal, b"ctx ", num_keys=600))
        terminal.until(lambda: "ready" in terminal.visible[-1], "the end of the answer")
        report("typing", typed_while(terminal, b"\0", num_keys=500, between_s=BETWEEN_TYPED_KEYS_S))
        terminal.child.close(force=True)


if __name__ == "__main__":
    main(sys.argv[1:])
