"""What files contain, as hashes: computed once, remembered under inode, size and times; after any doubt computed anew."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from kvchat.errors import ModelUnavailableError
from kvchat.models.remembered import recall, remember

MEMORY_NAME = "weights.json"
MAX_REMEMBERED = 4096
"""So many hashes are remembered; the oldest go first."""
_DOUBT_NS = 2_000_000_000
"""A file that changed so lately may change again under the same time: clocks of file systems tick slowly."""
_CHUNK_BYTES = 1 << 22
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


class Contents:
    """Hashes of files, remembered in `folder` between runs. `now_ns` tells the time as files do."""

    def __init__(self, folder: Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = folder / MEMORY_NAME
        self._now_ns = now_ns

    def xxh3(self, path: Path) -> str:
        """The xxh3-128 of a file's bytes, as hex."""
        return self._remembered("xxh3", path.resolve(), file_xxh3)

    def identity(self, path: Path) -> str:
        """What stands for a file's bytes: of a blob in the hub's own layout the SHA-256 that it is named by.

        That name is proved once. Raises ModelUnavailableError for a blob that is not what its name says.
        """
        real = path.resolve()
        if real.parent.name != "blobs" or not _BLOB_NAME.fullmatch(real.name):
            return self.xxh3(real)
        if self._remembered("sha256", real, _file_sha256) == real.name:
            return real.name
        raise ModelUnavailableError(
            f"{path} is damaged (its SHA-256 is not the one that the hub gave it)",
            f"delete {real} and fetch the model again",
        )

    def _remembered(self, kind: str, real: Path, compute: Callable[[Path], str]) -> str:
        state = real.stat()
        times = f"{state.st_ctime_ns}|{state.st_mtime_ns}"
        key = f"{kind}|{real}|{state.st_dev}|{state.st_ino}|{state.st_size}|{times}"
        memory = self._read()
        if key in memory:
            return memory[key]
        started_ns = self._now_ns()
        digest = compute(real)
        if started_ns - state.st_ctime_ns > _DOUBT_NS:  # never of one from the future
            self._write(memory | {key: digest})
        return digest

    def _read(self) -> dict[str, str]:
        return {key: value for key, value in recall(self._path).items() if isinstance(value, str)}

    def _write(self, hashes: dict[str, str]) -> None:
        remember(self._path, dict(list(hashes.items())[-MAX_REMEMBERED:]))


def file_xxh3(path: Path) -> str:
    """The xxh3-128 of a file's bytes, as hex; always read."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
