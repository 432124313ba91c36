"""The saved conversations as a trace: which blocks each prompt asked for, by the tree of turns and its lengths; no text.

Blocks are numbered by where they stand in the tree: those behind an answer are its own, and those before it are its
parent's. So two numbers are equal exactly where two prompts have the same past, but for the part of a first prompt
that is a system prompt: it is taken to be shared by the sessions of one model with the same one, at four characters a token.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvchat.bench.traces import Request, Trace, lines
from kvchat.chat.rows import SessionRow
from kvchat.chat.store import Store
from kvchat.chat.tree import Exchange

_CHARACTERS_A_TOKEN = 4


class _Numbers:
    """Gives out block numbers, and remembers the blocks behind each exchange and each system prompt."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._next = 0
        self._shared: dict[tuple[str, str], tuple[int, ...]] = {}

    def shared(self, session: SessionRow) -> tuple[int, ...]:
        """The blocks of a session's system prompt."""
        system = session.system or ""
        key = session.model, system
        if key not in self._shared:
            self._shared[key] = self.behind((), len(system) // _CHARACTERS_A_TOKEN)
        return self._shared[key]

    def behind(self, blocks: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
        """The full blocks of so many tokens: as many of those given as belong to them, then new ones."""
        num_full = num_tokens // self._block_size
        new = range(self._next, self._next + max(0, num_full - len(blocks)))
        self._next += len(new)
        return (*blocks[:num_full], *new)


def trace_lines(store: Store, block_size: int) -> Iterator[str]:
    """A line an answer, in the order of their times."""
    numbers = _Numbers(block_size)
    requests: list[Request] = []
    seen: set[str] = set()
    for session in store.sessions():
        if session.tree not in seen:
            seen.add(session.tree)
            requests += _requests(session, store.exchanges(session.tree), numbers)
    requests.sort(key=lambda request: request.time_s)
    return lines(Trace(block_size, tuple(requests)))


def _requests(session: SessionRow, exchanges: list[Exchange], numbers: _Numbers) -> Iterator[Request]:
    """The answers of one tree; a parent comes before its children."""
    behind: dict[str | None, tuple[int, ...]] = {None: numbers.shared(session)}
    for exchange in sorted(exchanges, key=lambda exchange: exchange.created):
        if exchange.answer is None:
            continue
        usage = exchange.answer.usage
        asked = numbers.behind(behind.get(exchange.parent, ()), usage.prompt_tokens)
        blocks = numbers.behind(asked, usage.total_tokens)
        behind[exchange.id] = blocks
        yield Request(exchange.created, usage.prompt_tokens, usage.completion_tokens, blocks, len(asked))
