"""From exec until the prompt takes keys, and until one-shot mode says its first word; both as a user runs them."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kvchat.bench.contender import Entry, Setup
from kvchat.bench.measure import Spread, json_of, rounds, spreads
from kvchat.bench.prompts import token_ids
from kvchat.children import child_environment, own_command
from kvchat.config import Config, variable_name
from kvchat.errors import KvchatError

PROMPT = "Why is the sky blue?"
PROMPT_TOKENS = 32
TIMEOUT_S = 120.0

_LFLAG = 3
_LETTER = "λ"  # nothing else writes it
_POLL_S = 0.002


class StartError(KvchatError):
    """The program did not start as expected."""


@dataclass(frozen=True, slots=True)
class StartRow:
    """Milliseconds from exec: to a prompt that takes keys, to the first word of `-p`, to a contender's first token."""

    ms: dict[str, Spread]

    def to_json(self) -> dict[str, Any]:
        return {"bench": "start", "ms": json_of(self.ms)}

    def cells(self) -> dict[str, str]:
        return {f"{name} ms": str(value) for name, value in self.ms.items()}


def measure(setup: Setup, *, repeats: int = 3, against: Sequence[str] = ()) -> Iterator[StartRow]:
    """One row."""
    prompt = token_ids(setup.config, PROMPT_TOKENS)
    names = ("takes keys", "-p", *against)
    with tempfile.TemporaryDirectory(prefix="kvchat-bench-") as folder:
        environ = _environment(setup.config, Path(folder))

        def once(name: str) -> float:
            if name == "takes keys":
                return 1e3 * _takes_keys_s(environ)
            return 1e3 * (_first_word_s(environ) if name == "-p" else _first_token_s(name, setup, prompt))

        yield StartRow(spreads(rounds(names, repeats, once)))


def _environment(config: Config, folder: Path) -> dict[str, str]:
    """The same model for a child, with data and cache of its own."""
    settings = {
        variable_name("model", item): getattr(config.model, item.name) for item in fields(config.model)
    }
    given = {name: str(value) for name, value in settings.items() if value is not None}
    own = {"CACHE_DIR": folder / "kv", "DATA": folder / "data", "CONFIG": folder / "config.toml"}
    paths = {f"KVCHAT_{name}": str(path) for name, path in (own | {"MODELS": config.paths.models}).items()}
    return {**child_environment(), **given, **paths, "TERM": "xterm-256color", "KVCHAT_SHARE": "off"}


def _takes_keys_s(environ: dict[str, str]) -> float:
    """Seconds until the program shows a key that was typed once it reads keys itself."""
    started = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, own_command("kvchat"), environ)
    try:
        termios.tcsetwinsize(terminal, (24, 100))
        while termios.tcgetattr(terminal)[_LFLAG] & termios.ICANON:  # before, the kernel would show the key
            _read(terminal, started)
        os.write(terminal, _LETTER.encode())
        seen = b""
        while _LETTER.encode() not in seen:
            seen += _read(terminal, started)
        return time.perf_counter() - started
    finally:
        _end(pid, terminal)


def _read(terminal: int, started: float) -> bytes:
    if time.perf_counter() - started > TIMEOUT_S:
        raise StartError(f"the prompt took no keys within {TIMEOUT_S:.0f} s", "kvchat doctor may say why")
    if not select.select([terminal], [], [], _POLL_S)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError as error:  # the child has ended
        raise StartError("kvchat ended before its prompt was there", "kvchat doctor may say why") from error


def _end(pid: int, terminal: int) -> None:
    """End the program and wait until it is gone, engine and all, so that the next run has the machine to itself."""
    os.kill(pid, signal.SIGTERM)
    started = time.perf_counter()
    while _is_running(pid):
        if time.perf_counter() - started > TIMEOUT_S / 4:
            os.kill(pid, signal.SIGKILL)
        try:
            select.select([terminal], [], [], _POLL_S)
            os.read(terminal, 65536)
        except OSError:
            time.sleep(_POLL_S)
    os.close(terminal)


def _is_running(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == 0


def _first_word_s(environ: dict[str, str]) -> float:
    """Seconds until `-p` writes the first byte of its answer."""
    command = [*own_command("kvchat"), "-q", "--max-tokens", "4", "-p", PROMPT]
    started = time.perf_counter()
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, env=environ, stdin=quiet, stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None and child.stderr is not None
        first = child.stdout.read(1)
        seconds = time.perf_counter() - started
        errors = child.communicate()[1].decode(errors="replace").strip()
    if not first.strip() or child.returncode:
        raise StartError(f"kvchat -p gave no answer: {errors}", "kvchat doctor may say why")
    return seconds


def _first_token_s(name: str, setup: Setup, prompt: Sequence[int]) -> float:
    """Seconds until a contender that was not running has answered a short prompt."""
    started = time.perf_counter()
    child = Entry.of(name, setup).start()
    try:
        child.answer(prompt)
        return time.perf_counter() - started
    finally:
        child.close()
