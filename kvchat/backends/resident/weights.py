"""Whether the files that an engine was loaded from are still the ones its settings name. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvchat.config import Config
from kvchat.models.gguf.parts import named_parts
from kvchat.models.sources.catalog import Catalog

Mark = frozenset[tuple[str, int, int, int]]
"""Of each file its real path, inode, size and time of change."""


def weights_mark(config: Config) -> Mark:
    """The state of a model's files, its adapter's and its template's; empty where the model is not here."""
    files = Catalog(config.paths.models, offline=True).find(config.model.name)
    if files is None:
        return frozenset()
    parts = named_parts(files.gguf) if files.gguf else []
    wanted = (config.model.adapter, config.model.chat_template, *parts)
    named = [files.folder, *(Path(path) for path in wanted if path)]
    return frozenset(state for path in named for state in _states(path))


def _states(path: Path) -> Iterator[tuple[str, int, int, int]]:
    with suppress(OSError):
        for file in sorted(path.iterdir()) if path.is_dir() else (path,):
            real = file.resolve()
            found = real.stat()
            if not real.is_dir():
                yield str(real), found.st_ino, found.st_size, found.st_mtime_ns
