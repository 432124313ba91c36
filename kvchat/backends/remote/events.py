"""Bytes of a streamed answer -> the data of its events, within bounds. Knows server-sent events, nothing of what they say."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

MAX_EVENT_BYTES = 8 << 20
"""Longest single event; prompt ids of a long conversation are some hundred kilobytes."""
MAX_ANSWER_BYTES = 256 << 20
"""Most bytes of one answer: no model says so much."""


class EndlessError(Exception):
    """The server sends more than any answer has."""


class EventReader:
    """Takes bytes as they come and gives the data of each event as soon as it is whole.

    Lines end with LF or CRLF; a comment, which keeps a connection alive, is no event. After the HTML standard's
    "server-sent events", but for lines that end with a bare CR, which nobody sends.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._data: list[str] = []
        self._event_bytes = 0
        self._num_bytes = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """The events that these bytes complete. Raises EndlessError."""
        self._num_bytes += len(data)
        self._event_bytes += len(data)
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise EndlessError(f"it sent more than {MAX_ANSWER_BYTES >> 20} MiB")
        first, *lines = self._decoder.decode(data).split("\n")
        self._rest += first
        for line in lines:
            ended, self._rest = self._rest, line
            yield from self._line(ended.removesuffix("\r"))
        if self._event_bytes > MAX_EVENT_BYTES and (self._rest or self._data):
            raise EndlessError(f"it sent more than {MAX_EVENT_BYTES >> 20} MiB in one piece")

    def finish(self) -> Iterator[str]:
        """The event that the stream ended in, if it is whole but for the empty line behind it."""
        yield from self._line(self._rest.removesuffix("\r"))
        yield from self._line("")

    def _line(self, line: str) -> Iterator[str]:
        if not line:
            data, self._data, self._event_bytes = self._data, [], 0
            if data:
                yield "\n".join(data)
            return
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
