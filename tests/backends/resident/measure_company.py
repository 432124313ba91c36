"""What several clients of one resident engine get at once: tokens a second, and how long an answer pauses beside a prefill.

`python -m tests.backends.resident.measure_company [tokens] [rounds]` with the embedded model, in folders of its own. Says
the machine's load beside each figure: on a busy one they are worth little.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median

from kvchat.backends.base import Done, Options, Prefilling, Text
from kvchat.backends.process import ProcessBackend
from kvchat.config import Config, load_config
from tests.backends.resident.sharing import clients, kept, user

SUBJECTS = ("the sea", "an old clock", "rain in spring", "a train", "the moon", "bread", "a forest", "ink")
LONG_TOKENS = 4000


def settings(folder: Path) -> Config:
    own = {f"paths.{name}": folder / name for name in ("cache", "data", "runtime")}
    return kept(load_config(own | {"cache.ram": "2GB"}, environ={"KVCHAT_CONFIG": str(folder / "none")}), 60)


def spoken(client: ProcessBackend, number: int, tokens: int) -> int:
    """The tokens of one answer."""
    text = f"Tell me a long story about {SUBJECTS[number % len(SUBJECTS)]} ({time.time()})."
    options = Options(max_tokens=tokens, temperature=0.8, seed=number, repeat_stop=False)
    *_, last = client.answer([user(text)], options)
    assert isinstance(last, Done)
    return last.answer.usage.completion_tokens


def rate(some: list[ProcessBackend], tokens: int) -> float:
    """Tokens a second of all clients together."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(some)) as pool:
        counts = pool.map(spoken, some, range(len(some)), [tokens] * len(some))
    return sum(counts) / (time.perf_counter() - started)


def pauses(first: ProcessBackend, second: ProcessBackend) -> tuple[list[float], float]:
    """The gaps between one client's texts while another's long message is prefilled, and how long that took, in
    seconds."""
    at: list[float] = []
    options = Options(max_tokens=2000, temperature=0.9, seed=1, repeat_stop=False)

    def read() -> None:
        for event in first.answer([user(f"Tell me a very long story ({time.time()}).")], options):
            if isinstance(event, Text):
                at.append(time.perf_counter())

    reader = threading.Thread(target=read)
    reader.start()
    while len(at) < 20:
        time.sleep(0.01)
    message = "And so it went on and on, and again. " * (LONG_TOKENS // 12) + str(time.time())
    began = time.perf_counter()
    total = 0
    for event in second.answer([user(message)], Options(max_tokens=1)):
        if isinstance(event, Prefilling):
            total = event.total
    ended = time.perf_counter()
    time.sleep(0.5)
    first.cancel()
    reader.join()
    inside = [moment for moment in at if began - 0.1 <= moment <= ended + 0.3]
    print(f"  {total} tokens prefilled in {ended - began:.1f} s beside an answer of {len(inside)} texts")
    return [b - a for a, b in pairwise(inside)], ended - began


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def measure(client: Callable[[], ProcessBackend], tokens: int, rounds: int) -> None:
    some = [client() for _ in range(4)]
    for one in some:
        one.info()
        spoken(one, 0, 4)
    ratios = []
    for _ in range(rounds):
        single, before = rate(some[:1], tokens), load()
        four = rate(some, tokens)
        again = rate(some[:1], tokens)
        ratios.append(2 * four / (single + again))
        print(f"one client {single:.1f} and {again:.1f} tokens/s, four {four:.1f} ({before}, then {load()})")
    print(f"four clients together: {median(ratios):.2f} times one")
    for _ in range(rounds):
        gaps, _ = pauses(some[0], some[1])
        gaps.sort()
        print(f"  pauses: median {median(gaps) * 1e3:.0f} ms, longest {gaps[-1] * 1e3:.0f} ms ({load()})")


def main() -> None:
    tokens, rounds = (int(value) for value in (*sys.argv[1:], "64", "3")[:2])
    with tempfile.TemporaryDirectory() as folder, clients(settings(Path(folder))) as client:
        measure(client, tokens, rounds)


if __name__ == "__main__":
    main()
