"""The log of uses: which chains were used and when, as hashes, for all processes on one cache folder; learns nothing from it.

    <root>/.uses      96 bytes a record, little-endian; the first one says how many were left out before the second

A record is appended in one write, without the lock, and carries a checksum: what a killed process left half-written is
passed over. Whoever holds the lock may replace the file by a shorter one.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import xxhash

from kvchat.cache.entry import EntryError
from kvchat.cache.folder import TEMPORARY, put_file
from kvchat.cache.ownership import open_own
from kvchat.cache.rates import Use

USES_NAME = ".uses"
MOST_USES = 2048
"""So many are kept when the file is made shorter, at twice as many."""

_RECORD = struct.Struct("<16s16s16s16s16sQI")  # what it goes on from, four names, ms, flags; then a checksum
_HEAD = struct.Struct("<8sI16sQ")  # magic, version, which file this is, records that were left out
_CHECK = struct.Struct("<I")
_BYTES = _RECORD.size + _CHECK.size
_MAGIC, _VERSION = b"kvchatUS", 1
_NONE = bytes(16)
_SHARED = 1


class _Head(NamedTuple):
    """Which file this is, and how many records were left out before its first."""

    file_id: bytes
    num_before: int


class UseLog:
    """One process's view of it. Not safe for threads. None of it raises: what can't be read or written is not known."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / USES_NAME
        self._head = _Head(b"", 0)
        self._num_read = 0
        self.num_records = 0
        """How many the file held when it was read last."""

    def new(self) -> list[Use]:
        """The uses that were not read yet, the earliest first."""
        try:
            descriptor = open_own(self._path)
        except (OSError, EntryError):
            return []
        try:
            return list(self._read(descriptor))
        except OSError:
            return []
        finally:
            os.close(descriptor)

    def append(self, use: Use) -> bool:
        """Tell of a use. False when it could not be written."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                begin = (
                    _packed_head(_Head(secrets.token_bytes(16), 0)) if size == 0 else bytes(-size % _BYTES)
                )
                os.write(descriptor, begin + _packed(use))
            finally:
                os.close(descriptor)
        except OSError:
            return False
        return True

    def _read(self, descriptor: int) -> Iterator[Use]:
        """Uses from where the last reading ended. Raises OSError."""
        head = _head(os.pread(descriptor, _BYTES, 0))
        if head is None:
            return
        if head.file_id != self._head.file_id:
            self._num_read = 0
        self._head = head
        self.num_records = os.fstat(descriptor).st_size // _BYTES - 1
        first = max(self._num_read - head.num_before, self.num_records - 2 * MOST_USES, 0)
        content = os.pread(descriptor, (self.num_records - first) * _BYTES, (1 + first) * _BYTES)
        self._num_read = head.num_before + first + len(content) // _BYTES
        for at in range(0, len(content) - _BYTES + 1, _BYTES):
            if use := _unpacked(content[at : at + _BYTES]):
                yield use


def shorten(root: Path) -> None:
    """Leave out the earliest uses where there are many. Needs the lock."""
    _rewrite(root, lambda records: records[-MOST_USES:] if len(records) > 2 * MOST_USES else records)


def make_nameless(root: Path, kept: Set[bytes]) -> None:
    """Take the hashes of what is not `kept` any more out of the log. Needs the lock.

    `kept` are hashes of the last blocks of what is stored. In place of other hashes there are numbers that nobody can
    find again, equal ones for equal ones: when chains were used, and went on, may still be learned from.
    """
    secret = secrets.token_bytes(32)

    def nameless(records: list[bytes]) -> list[bytes]:
        uses = [use for record in records if (use := _unpacked(record))]
        known = {name for use in uses if not kept.isdisjoint(use.names) for name in (*use.names, use.before)}

        def other(name: bytes) -> bytes:
            return name if name in known or not name else blake2b(name, key=secret, digest_size=16).digest()

        return [
            _packed(use._replace(names=tuple(map(other, use.names)), before=other(use.before)))
            for use in uses
        ]

    _rewrite(root, nameless)


def _rewrite(root: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    with suppress(OSError, EntryError):
        descriptor = open_own(root / USES_NAME)
        try:
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)
        head = _head(content[:_BYTES])
        records = [content[at : at + _BYTES] for at in range(_BYTES, len(content) - _BYTES + 1, _BYTES)]
        changed = change(records) if head else []
        if changed != records and head:
            num_before = head.num_before + len(records) - len(changed)
            content = _packed_head(_Head(head.file_id, num_before)) + b"".join(changed)
            put_file(root / USES_NAME, root / f"{USES_NAME}{TEMPORARY}", [memoryview(content)])


def _packed(use: Use) -> bytes:
    names = [*use.names[:4], *[_NONE] * 4][:4]
    time_ms = min(2**63, max(0, round(use.time_s * 1000)))
    body = _RECORD.pack(use.before or _NONE, *names, time_ms, _SHARED * use.is_shared)
    return body + _CHECK.pack(xxhash.xxh32_intdigest(body))


def _unpacked(record: bytes) -> Use | None:
    body = record[: _RECORD.size]
    if _CHECK.pack(xxhash.xxh32_intdigest(body)) != record[_RECORD.size :]:
        return None
    before, *names, time_ms, flags = _RECORD.unpack(body)
    return Use(
        tuple(name for name in names if name != _NONE),
        b"" if before == _NONE else before,
        time_ms / 1000,
        bool(flags & _SHARED),
    )


def _packed_head(head: _Head) -> bytes:
    return _HEAD.pack(_MAGIC, _VERSION, *head).ljust(_BYTES, b"\0")


def _head(record: bytes) -> _Head | None:
    if len(record) < _BYTES:
        return None
    magic, version, *head = _HEAD.unpack_from(record)
    return _Head(*head) if (magic, version) == (_MAGIC, _VERSION) else None
