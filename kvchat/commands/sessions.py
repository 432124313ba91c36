"""What `kvchat sessions VERB` does: each function yields lines of stdout. Loads no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from kvchat.chat.store import FILE_NAME, SessionRow, Store
from kvchat.chat.warmth import Warmth, warmth
from kvchat.chat.writes import Deleted
from kvchat.commands.terminal import for_terminal
from kvchat.config import Config
from kvchat.ui.asking import agrees, can_ask
from kvchat.ui.clean import one_line

_HISTORY_NAME = "history"
"""Where the dialogue keeps what is typed."""


def listed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """All sessions, the one changed last first."""
    from kvchat.cache.maintenance import stored_tips
    from kvchat.chat.export import session_json

    store = _store(config)
    rows = store.sessions(-1 if args.limit is None else args.limit)
    warm = warmth(store, rows, stored_tips(config.paths.cache)) if rows else {}
    for row in rows:
        held = warm.get(row.id, Warmth())
        if args.json:
            figures = {"tokens_warm": held.tokens, "evicted": held.was_stored and not held.tokens}
            yield json.dumps(session_json(row) | figures, ensure_ascii=False)
        else:
            yield _line(row, held)


def shown(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One session as Markdown, or as JSON."""
    yield for_terminal(_document(args.session, config, "json" if args.json else "md"))


def found(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What was said with these words in it, the newest first."""
    from kvchat.chat.export import local_time, session_json

    hits = _store(config).search(" ".join(args.words), args.limit or 20)
    for row, hit in hits:
        if args.json:
            yield json.dumps(
                session_json(row) | {"exchange": hit.exchange, "text": hit.text}, ensure_ascii=False
            )
        else:
            yield for_terminal(f"{row.id}  {local_time(hit.created)}  {hit.text}")


def exported_to_file(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One session as a document, on stdout or in a file."""
    from kvchat.ui.clipboard import write_new

    document = _document(args.session, config, "json" if args.json else args.format)
    if args.output is None:
        yield for_terminal(document)
        return
    write_new(args.output, document)
    yield args.output


def removed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Delete sessions, and what only they had in the search index and in the cache; all are looked up first.

    A person at a terminal is asked once, unless they gave --yes.
    """
    from kvchat.backends.resident.asking import forget as forget_in_ram
    from kvchat.cache.removal import forget

    store = _store(config)
    rows = {row.id: row for row in map(store.session, args.sessions)}
    if not (args.yes or args.json) and can_ask() and not _confirmed(list(rows.values())):
        return
    kv_tips: set[tuple[str, str]] = set()
    for row in rows.values():
        gone = store.delete(row.id)
        kv_tips |= gone.kv_tips
        if args.json:
            yield json.dumps({"id": row.id, "title": row.title, "turns_kept": gone.kept})
        else:
            yield for_terminal(f"removed {row.id}  {one_line(row.label)}")
            yield from map(for_terminal, _shared(gone))
    forget_in_ram(config.paths.runtime)
    try:
        forget(config.paths.cache, kv_tips, store.kv_tips())
    finally:
        is_scrubbed = store.database.scrub()
    if not args.json:
        yield from map(for_terminal, _left(config, is_scrubbed))


def _confirmed(rows: list[SessionRow]) -> bool:
    """Whether the user wants these sessions deleted."""
    labels = ", ".join(repr(row.label or row.id) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
    which = f"the session {labels}" if len(rows) == 1 else f"{len(rows)} sessions ({labels})"
    return agrees(f"delete {which} for good?") is True


def _shared(gone: Deleted) -> Iterator[str]:
    """What of a session stays because others have it."""
    if gone.kept:
        turns = "1 turn" if gone.kept == 1 else f"{gone.kept} turns"
        yield f"  its first {turns} stay, because {one_line(', '.join(gone.sharers))} began with them"


def _left(config: Config, is_scrubbed: bool) -> Iterator[str]:
    """Where what was deleted may still stand."""
    data = config.paths.data
    places = [str(path) for path in sorted(data.glob(f"{FILE_NAME}.damaged-*"))]
    if (data / _HISTORY_NAME).exists():
        places.append(f"{data / _HISTORY_NAME}, which has everything you typed")
    if not is_scrubbed:
        places.append(f"{data / FILE_NAME}, until something is removed while no other kvchat is running")
    if places:
        yield f"the text may still be in {'; '.join(places)}"


def _store(config: Config) -> Store:
    """What was saved, also under `--no-save`; an empty one in memory if there is nothing, for looking creates none."""
    path = config.paths.data / FILE_NAME
    return Store(path, saves=path.exists())


def _document(key: str, config: Config, kind: str) -> str:
    from kvchat.chat.export import exported

    store = _store(config)
    row = store.session(key)
    return exported(row, store.tree(row).path(row.tip), kind)


def _line(row: SessionRow, held: Warmth) -> str:
    from kvchat.chat.export import local_time

    count = f"{row.num_exchanges:>4} {'turn ' if row.num_exchanges == 1 else 'turns'}"
    turns = f"{count} {row.num_tokens:>7} tokens {held!s:>12}"
    return for_terminal(f"{row.id}  {local_time(row.updated)}  {turns}  {one_line(row.label)}")
