"""An engine in a child process: how it is started, how it ends, and why it did. Knows no call and never imports torch.

The child has a session of its own, so that Ctrl-C is the terminal's alone, and ends when its standard input closes,
however that came about.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from contextlib import suppress
from io import BufferedReader
from typing import IO, Any, cast

from kvchat.backends.base import Phase
from kvchat.backends.connection import Connection
from kvchat.children import child_environment, child_folder, own_command
from kvchat.config import Config
from kvchat.errors import reason_of

CLOSE_TIMEOUT_S = 10.0
"""How long the engine may take to write what it still has to write."""
SIGN_TIMEOUT_S = 3.0
"""How long it may take to notice that it is to end: one that was stopped never does."""
SEATS = "has_seats"
"""What an engine's first message has beside its settings."""

_LAST_WORDS_S = 1.0
_GONE_S = 5.0


class EngineChild:
    """One engine process, and the connection to it. A thread of the connection starts it, so nobody waits for that."""

    def __init__(self, config: Config, *, has_seats: bool = False) -> None:
        """If it `has_seats`, calls name the seat that they are made at; those at different ones are answered at once."""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_started = threading.Event()
        self._is_gone = threading.Event()
        self._why = ""
        self._last_words: deque[str] = deque(maxlen=20)
        self._hearer = threading.Thread(target=self._hear, name="kvchat-stderr", daemon=True)
        hello = {**config.to_json(), SEATS: has_seats}
        self.connection = Connection(hello, self._spawn, self._bury)

    @property
    def has_loaded(self) -> bool:
        """Whether it came so far that it answered calls."""
        return self.connection.status.phase not in (Phase.STARTING, Phase.LOADING)

    @property
    def pid(self) -> int | None:
        """Its process id; waits until it has one. None if it could not be started."""
        self._is_started.wait()
        return self._process.pid if self._process else None

    def obituary(self) -> str:
        """Why it ended, in a few words; known once its connection is dead."""
        return self._why

    def end(self) -> None:
        """Let it drain its writes and go; kill it when it takes too long."""
        has_ended = self.connection.close(SIGN_TIMEOUT_S, CLOSE_TIMEOUT_S)
        if self._process and not has_ended:
            self._process.kill()
        if self._process:
            self._is_gone.wait(_GONE_S)

    def _spawn(self) -> tuple[IO[bytes], IO[bytes]]:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                own_command("kvchat.backends.engine_process"),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                start_new_session=True,
                cwd=child_folder(),
                env=child_environment(),
            )
        except OSError as error:
            self._why = f"it could not be started: {reason_of(error)}"
            raise
        finally:
            self._is_started.set()
        self._hearer.start()
        assert self._process.stdin and self._process.stdout
        return self._process.stdin, BufferedReader(cast(Any, self._process.stdout))

    def _bury(self) -> None:
        """Nothing more will come: see to it that the process is gone, and find out why."""
        if self._process is not None:
            try:
                self._process.wait(_LAST_WORDS_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            with suppress(RuntimeError):  # it could not be started
                self._hearer.join(_LAST_WORDS_S)
            self._why = self._cause(self._process.returncode)
        self._is_gone.set()

    def _cause(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
            return f"killed by {name}{hint}"
        said = next((line for line in reversed(self._last_words) if line.strip()), "")
        return said.strip()[:200] or f"exit code {code}"

    def _hear(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        with BufferedReader(cast(Any, self._process.stderr)) as errors:
            for line in errors:
                self._last_words.append(line.decode(errors="replace"))


assert os.name == "posix", "kvchat runs on Linux and macOS"
