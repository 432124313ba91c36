"""`kvchat bench WHAT`: runs a measurement and yields its lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from kvchat.bench import codec, ttft
from kvchat.config import Config


def ttft_lines(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Time to the first token against the length of the history."""
    rows: list[ttft.Row] = []
    for row in ttft.measure(config, lengths=args.lengths or ttft.LENGTHS, repeats=args.repeats):
        rows.append(row)
        if args.json:
            yield json.dumps(row.to_json())
    if not args.json:
        yield from ttft.report(rows)


def codec_lines(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What int8 at rest costs in quality."""
    rows = list(codec.measure(config, texts=args.repeats))
    yield from (json.dumps(row.to_json()) for row in rows) if args.json else codec.report(rows)
