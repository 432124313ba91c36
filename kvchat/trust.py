"""Whom the user trusts: folders of prompts and models that bring code, by path and owner. Asks nobody, runs nothing."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Any

from kvchat.config import Config
from kvchat.errors import UsageError, reason_of

_MAX_BYTES = 2**22


class Kind(StrEnum):
    """What is trusted: the prompts of a folder, or the code of a model's folder."""

    PROMPTS = "prompts"
    CODE = "code"


class Trust:
    """Decisions of this run and, if there is a `file`, of earlier runs, which it keeps.

    A decision holds for a folder's real path, as long as the folder belongs to the same user.
    """

    def __init__(self, file: Path | None = None, *, remembers: bool = True) -> None:
        self._file = file
        self._remembers = remembers and file is not None
        self._now: dict[str, Any] = {}

    @classmethod
    def from_config(cls, config: Config) -> Trust:
        """Trust under these settings: where nothing is saved, nothing is remembered."""
        return cls(config.paths.data / "trusted.json", remembers=config.chat.save)

    def verdict(self, kind: Kind, folder: Path) -> bool | None:
        """Whether the user trusts a folder; None if that was never decided."""
        key, owner = _identity(folder)
        for decided in (self._now, self._read()):
            entry = decided.get(kind, {}).get(key)
            if isinstance(entry, dict) and entry.get("owner") == owner and owner is not None:
                return entry.get("trusted") is True
        return None

    def trusts(self, kind: Kind, folder: Path) -> bool:
        """Whether the user said yes to a folder."""
        return self.verdict(kind, folder) is True

    def decide(self, kind: Kind, folder: Path, trusted: bool, *, for_now: bool = False) -> None:
        """Record the user's decision about a folder, `for_now` in this run only. Raises UsageError if it can't be saved."""
        key, owner = _identity(folder)
        entry = {key: {"owner": owner, "trusted": trusted}}
        self._now[kind] = self._now.get(kind, {}) | entry
        if self._remembers and not for_now:
            known = self._read()
            self._write(known | {kind.value: known.get(kind, {}) | entry})

    def _read(self) -> dict[str, Any]:
        """What was saved; nothing, if somebody else may have written the file."""
        if self._file is None:
            return {}
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                is_own = found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o022
                if not (is_own and stat.S_ISREG(found.st_mode)):
                    return {}
                value = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return {kind: value[kind] for kind in Kind if isinstance(value, dict) and _is_mapping(value, kind)}

    def _write(self, value: dict[str, Any]) -> None:
        assert self._file is not None
        folder = self._file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".trusted-", delete=False) as file:
                json.dump(value, file, indent=1)  # 0600, as all that tempfile makes
            Path(file.name).replace(self._file)
        except OSError as error:
            raise UsageError(
                f"can't save that decision in {self._file}: {reason_of(error)}",
                "check the folder's permissions",
            ) from error


def trust_for_now(trust: Trust) -> None:
    """Trust the prompts beside the user's work in this run."""
    folder = Path.cwd() / "prompts"
    if folder.is_dir():
        trust.decide(Kind.PROMPTS, folder, True, for_now=True)


def owner_of(folder: Path) -> str:
    """The name of a folder's owner, or the number of one without a name."""
    import pwd

    uid = folder.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _identity(folder: Path) -> tuple[str, int | None]:
    """A folder's real path and its owner, None if that can't be told."""
    real = folder.resolve()
    try:
        return str(real), real.stat().st_uid
    except OSError:
        return str(real), None


def _is_mapping(value: dict[str, Any], kind: Kind) -> bool:
    return isinstance(value.get(kind), dict)
