"""`kvchat bench WHAT`: measures, and yields the results as a table or as one JSON object per line; draws them if asked."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kvchat.bench import (
    codec,
    decode,
    exact,
    lookup,
    memory,
    plot,
    prefill,
    restore,
    start,
    ttft,
    typing,
    weights,
)
from kvchat.bench.contender import Setup, parse_names
from kvchat.bench.measure import Row, use_threads
from kvchat.config import Config
from kvchat.errors import UsageError
from kvchat.ui.tables import Look, Styled, table

_PIPE_COLUMNS = 240

R = TypeVar("R", bound=Row)


def started(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Time from exec to the first key and the first word."""
    rows = start.measure(_setup(args, config), repeats=args.repeats, against=parse_names(args.against))
    yield from _shown(args, rows)


def first_tokens(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Time to the first token against the length of the history."""
    yield from _shown(args, ttft.measure(*_run(args, config), **_sizes(args, ttft.LENGTHS)), chart=ttft.chart)


def typed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Time from Enter to the first word, while a message is typed."""
    lengths = args.lengths or typing.LENGTHS
    yield from _shown(args, typing.measure(_setup(args, config), lengths=lengths, messages=args.messages))


def prefilled(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Prefill speed."""
    rows = prefill.measure(*_run(args, config), **_sizes(args, prefill.LENGTHS))
    yield from _shown(args, rows, chart=prefill.chart, notes=lambda found: found[0].theory.lines())


def decoded(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Decoding speed."""
    rows = decode.measure(*_run(args, config), **_sizes(args, decode.DEPTHS))
    yield from _shown(args, rows, chart=decode.chart, notes=lambda found: found[0].theory.lines())


def restored(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """KV from the tiers against computing it."""
    use_threads(args.threads)
    yield from _shown(args, restore.measure(config, **_sizes(args, restore.LENGTHS)))


def looked_up(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What guessing ahead gains and costs."""
    yield from _shown(args, lookup.measure(_setup(args, config).config, repeats=args.repeats))


def remembered(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The peak memory of a chat."""
    lengths = args.lengths or memory.LENGTHS
    yield from _shown(
        args, memory.measure(_setup(args, config), lengths=lengths, against=parse_names(args.against))
    )


def encoded(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What int8 at rest costs in quality."""
    use_threads(args.threads)
    yield from _shown(args, codec.measure(config, texts=args.repeats))


def compared(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Whether the cache changes an answer. Raises InexactError after the table if it does."""
    use_threads(args.threads)
    rows = list(exact.measure(_setup(args, config).config, num_prompts=args.prompts))
    yield from _shown(args, rows)
    exact.check(rows)


def weighed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What integer weights cost in quality."""
    use_threads(args.threads)
    (num_tokens,) = (args.lengths or (weights.NUM_TOKENS,))[:1]
    yield from _shown(args, weights.measure(config, num_tokens=num_tokens))


def forgotten(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Which part of a trace each policy hits. Raises UsageError without a trace."""
    from kvchat.bench import chats, policy, traces

    path = args.trace or args.make
    if not path:
        raise UsageError("there is no trace to replay", "give one with --trace FILE, or --make FILE")
    if args.make:
        try:
            traces.write(chats.made(days=args.days, seed=args.seed), Path(args.make))
        except OSError as error:
            raise UsageError(f"{args.make} can't be written: {error.strerror}", "give another file") from None
    yield from _shown(args, policy.measure(Path(path)))


def _setup(args: argparse.Namespace, config: Config) -> Setup:
    """What is measured, with the model on this disk. Raises ModelUnavailableError, which a child could only quote."""
    from kvchat.models.sources.catalog import Catalog

    Catalog(config.paths.models, offline=config.model.offline).resolve(
        config.model.name, needs_template=False
    )
    model = replace(config.model, threads=args.threads or config.model.threads)
    return Setup(replace(config, model=model), model.threads, getattr(args, "llama_python", None))


def _run(args: argparse.Namespace, config: Config) -> tuple[Setup, Sequence[str]]:
    if args.plot:
        plot.check(Path(args.plot))
    return _setup(args, config), parse_names(args.against)


def _sizes(args: argparse.Namespace, lengths: Sequence[int]) -> dict[str, Any]:
    return {"lengths": args.lengths or lengths, "repeats": args.repeats}


def _shown(
    args: argparse.Namespace,
    rows: Iterable[R],
    *,
    chart: Callable[[Sequence[R]], plot.Chart] | None = None,
    notes: Callable[[Sequence[R]], list[str]] = lambda _: [],
) -> Iterator[str]:
    found: list[R] = []
    for row in rows:
        found.append(row)
        if args.json:
            yield json.dumps(row.to_json())
    if not args.json:
        yield _table(found)
        yield from notes(found)
    if chart and args.plot:
        plot.draw(chart(found), Path(args.plot))


def _table(rows: Sequence[Row]) -> Styled:
    cells = [row.cells() for row in rows]
    is_terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if is_terminal else _PIPE_COLUMNS
    look = Look(columns, color=is_terminal and not os.environ.get("NO_COLOR"))
    heading = list(cells[0])
    if is_terminal and sum(len(name) + 2 for name in heading) > columns:
        return Styled("\n\n".join(_upright(row, look) for row in cells))
    return table([list(row.values()) for row in cells], look, heading=heading)


def _upright(row: dict[str, str], look: Look) -> Styled:
    """One row as lines of name and value, where the screen is too narrow for columns."""
    return table([[name, value] for name, value in row.items()], look)
