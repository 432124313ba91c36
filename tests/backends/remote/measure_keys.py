"""How soon the terminal over a remote takes keys: python -m tests.backends.remote.measure_keys [RUNS] [URL].

Runs the real program behind a pseudo-terminal and types a letter from the beginning on, until the program itself, and no
longer the kernel, shows one. Without a URL the remote is one that never answers, the slowest there is. Prints the times
from exec and the processor's time for it, in seconds, their medians, and the load, without which the former say nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import termios
import time
from pathlib import Path

import pexpect

from tests.backends.remote.servers import Reply, serving
from tests.ui.terminal import LFLAG, Terminal


def processor_s(pid: int) -> float:
    """What a process has had of the processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_key_s(folder: Path, url: str) -> tuple[float, float]:
    """Seconds from exec until a typed letter is shown by the program: by the clock, and of the processor."""
    begun = time.monotonic()
    terminal = Terminal(folder, "--url", url, "-m", "m", module="kvchat")
    try:
        while termios.tcgetattr(terminal.child.child_fd)[LFLAG] & termios.ICANON:
            time.sleep(0.002)
        terminal.type("Ω")
        while "Ω".encode() not in terminal.raw:
            try:
                terminal.read_some(0.01)
            except pexpect.TIMEOUT:
                continue
        return time.monotonic() - begun, processor_s(terminal.child.pid)
    finally:
        terminal.child.close(force=True)


def measure(runs: int, url: str) -> None:
    """Print the times; the first run, which reads and compiles everything, is left out."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled
    times: list[tuple[float, float]] = []
    for _ in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            times.append(first_key_s(Path(folder), url))
    clock, processor = zip(*times[1:], strict=True)
    for name, found in (("clock", clock), ("processor", processor)):
        print(
            f"{name:<9} {' '.join(f'{one:.2f}' for one in found)} · median {statistics.median(found):.2f} s"
        )
    print(f"first of all {times[0][0]:.2f} s · load {os.getloadavg()[0]:.1f}")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    if len(sys.argv) > 2:
        measure(runs, sys.argv[2])
        return
    with serving(lambda request: Reply([], end="hang")) as silent:
        measure(runs, silent.url)


if __name__ == "__main__":
    main()
