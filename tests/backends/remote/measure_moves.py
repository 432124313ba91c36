"""What a running server had of a conversation's every move: as text, and as token ids where its tokenizer is named.

    python -m tests.backends.remote.measure_moves URL [--tokenizer FOLDER] [--block 16]

The server is started by hand, docs/remotes.md says how. Prints a line a move: tokens of the prompt, those that the
server says it had, the part of the prompt's full blocks that they are, and the time to the first token. Figures of
time depend on what else the machine does: its load is printed beside them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from kvchat.backends.base import Answer, Options
from kvchat.backends.remote.backend import RemoteBackend
from kvchat.config import Config, PathsConfig, load_config
from kvchat.remotes import RemoteConfig, Target
from tests.backends.remote.station import every_move, held, last_of, session_over, stop

GREEDY = Options(temperature=0.0, max_tokens=8)
LONGER = replace(GREEDY, max_tokens=40)
Connect = Callable[[], RemoteBackend]


def moves(connect: Connect, config: Config) -> Iterator[tuple[str, Answer]]:
    """Every move, then an answer that is stopped and gone on with."""
    yield from every_move(connect, config, GREEDY)
    with session_over(connect(), config, LONGER) as session:
        yield "cancel", stop(session)
        yield "continue", last_of(session.continue_answer())


def measure(ways: dict[str, dict[str, str]], url: str, block: int) -> None:
    """Print what each way of sending gives."""
    for way, settings in ways.items():
        print(f"{way} · load {os.getloadavg()[0]:.1f}")
        with tempfile.TemporaryDirectory() as folder:
            paths = PathsConfig(models=Path(folder), cache=Path(folder) / "kv", data=Path(folder) / "data")
            config = replace(
                load_config({}, environ={"KVCHAT_CONFIG": "/dev/null", "HOME": folder}), paths=paths
            )
            target = Target("here", RemoteConfig(url, **settings))  # type: ignore[arg-type]
            said: list[int] = []
            for move, answer in moves(
                lambda config=config, target=target: RemoteBackend(config, target), config
            ):
                usage, ids = answer.usage, [*answer.prompt]
                shown = f"{usage.cached_tokens:5}/{usage.prompt_tokens:<5} {held(answer, block):7.1%}"
                is_kept = move.startswith("turn") and ids[: len(said)] == said
                print(
                    f"  {move:<9} {shown} {answer.timings.ttft_ms:8.0f} ms  {answer.cache.reason}"
                    + ("  ids kept" if ids and is_kept else ""),
                    flush=True,
                )
                said = [*answer.prompt, *answer.completion]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--tokenizer", help="a folder, a .gguf file or a hub id: token ids are measured, too")
    parser.add_argument("--block", type=int, default=16, help="tokens of one block of the server's cache")
    args = parser.parse_args()
    ways: dict[str, dict[str, str]] = {"text": {}}
    if args.tokenizer:
        ways |= {"token ids": {"tokenizer": args.tokenizer, "send": "ids"}}
    measure(ways, args.url, args.block)


if __name__ == "__main__":
    main()
