"""`kvchat help TOPIC`: the pages in kvchat/docs, which ship with the program. Loads no torch and reads no settings."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files

from kvchat.commands.terminal import is_terminal
from kvchat.config import Config
from kvchat.errors import UsageError

_WIDEST = 100
"""Columns of a rendered page; longer lines are hard to follow."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


def topics() -> dict[str, str]:
    """Every page's name and its text, in alphabetical order."""
    pages = sorted(page.name for page in files("kvchat").joinpath("docs").iterdir())
    return {name.removesuffix(".md"): _text(name) for name in pages if name.endswith(".md")}


def _text(name: str) -> str:
    return files("kvchat").joinpath("docs", name).read_text(encoding="utf-8")


def summary(page: str) -> str:
    """What a page is about: the first sentence below its heading, in one line and without marks."""
    paragraphs = [part for part in page.split("\n\n") if part.strip() and not part.startswith("#")]
    first = " ".join(paragraphs[0].split()) if paragraphs else page.strip("# \n")
    return re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]", r"\1", _SENTENCE_END.split(first)[0])


def helped(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One page, rendered where a person reads it; without a topic the list. Raises UsageError for one there is not."""
    pages = topics()
    if args.topic is None:
        yield from _listed(pages, as_json=args.json)
        return
    if args.topic not in pages:
        raise _unknown(args.topic, list(pages))
    page = pages[args.topic]
    if args.json:
        yield json.dumps({"topic": args.topic, "text": page}, ensure_ascii=False)
    elif is_terminal():
        yield from _rendered(page)
    else:
        yield page.rstrip("\n")


def _listed(pages: dict[str, str], *, as_json: bool) -> Iterator[str]:
    if as_json:
        yield from (json.dumps({"topic": name, "about": summary(page)}) for name, page in pages.items())
        return
    width = max(map(len, pages))
    columns = shutil.get_terminal_size().columns if is_terminal() else None
    for name, page in pages.items():
        line = f"{name:<{width}}  {summary(page)}"
        yield line if columns is None or len(line) < columns else f"{line[: columns - 2]}…"


def _rendered(page: str) -> Iterator[str]:
    """The page for a terminal; nothing if a pager has shown it."""
    import os

    from kvchat.ui.markdown import MarkdownBlocks
    from kvchat.ui.pager import page_through
    from kvchat.ui.tables import Styled

    size = shutil.get_terminal_size()
    blocks = MarkdownBlocks(color=not os.environ.get("NO_COLOR"))
    blocks.take(page)
    text = blocks.finished(min(size.columns, _WIDEST), whole=True)
    if text.count("\n") + 1 < size.lines or not page_through(text):
        yield Styled(text)


def _unknown(topic: str, names: list[str]) -> UsageError:
    from kvchat.commands.table import COMMANDS

    if topic in {row.name.split()[0] for row in COMMANDS}:
        return UsageError(f"there is no page about {topic!r}", f"see kvchat {topic} --help")
    nearest = difflib.get_close_matches(topic[:40], names, n=1, cutoff=0.0)
    return UsageError(
        f"there is no page about {topic[:40]!r}", f"did you mean {nearest[0]!r}? kvchat help lists all"
    )
