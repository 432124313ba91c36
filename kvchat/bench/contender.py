"""Contenders: each a child of ours with a model of its own, asked over its pipes, so that their threads never meet."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvchat.bench.measure import isolated, one_by_one
from kvchat.children import child_environment, child_folder, own_command
from kvchat.config import Config
from kvchat.errors import KvchatError, UsageError

OURS = "kvchat"
NAMES = ("nocache", "transformers", "llama.cpp")
"""What kvchat can be measured against: itself without reuse, stock transformers, llama.cpp on the same GGUF."""

_LLAMA = Path(__file__).with_name("llama_child.py")


class ContenderError(KvchatError):
    """A contender can't be started here, or ended in the middle."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How contenders are run: so many threads (None: as many as torch takes), and llama.cpp by this interpreter."""

    config: Config
    threads: int | None = None
    llama_python: str | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds to the first token, and from there to the last."""

    first_s: float
    rest_s: float


class Contender:
    """A running child. `facts` is what it said of itself when it was ready, `spawned_s` how long that took."""

    def __init__(self, name: str, command: Sequence[str], hello: Mapping[str, Any]) -> None:
        self.name = name
        pipe = subprocess.PIPE
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # open as long as the child
        started = time.perf_counter()
        self._child = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=self._errors,
            text=True,
            cwd=child_folder(),
            env=child_environment(),
        )
        self.facts = self._ask(hello)
        self.spawned_s = time.perf_counter() - started

    def answer(self, prompt: Sequence[int], num_tokens: int = 1, *, reuse: bool = True) -> Timing:
        """The times of one greedy answer of `num_tokens`; with `reuse` what it holds of the prompt is not computed."""
        said = self._ask({"prompt": list(prompt), "num_tokens": num_tokens, "reuse": reuse})
        return Timing(said["first_s"], said["rest_s"])

    def peak_bytes(self) -> int:
        """The child's peak of resident memory."""
        return int(self._ask({"memory": True})["peak_bytes"])

    def close(self) -> None:
        """End the child."""
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._errors.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # what it said is on its stderr
        line = self._child.stdout.readline()
        said = json.loads(line) if line.startswith("{") else {"error": self._last_words()}
        if "error" in said:
            self.close()
            raise ContenderError(f"{self.name}: {said['error']}", said.get("remedy", ""))
        return dict(said)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def parse_names(text: str | None) -> list[str]:
    """The contenders in `nocache,llama.cpp`. Raises UsageError for another name."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise UsageError(f"kvchat can't be compared with {name!r}", f"use some of {', '.join(NAMES)}")
    return list(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender that can be started: its command, and what it is told first."""

    name: str
    command: Sequence[str]
    hello: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, setup: Setup) -> Entry:
        """The contender of that name. Raises ContenderError with what to do if it can't be had."""
        if name == "llama.cpp":
            return _llama(setup)
        config = one_by_one(isolated(setup.config, mode="off" if name == "nocache" else "rw"))
        hello = {"kind": name, "config": config.to_json(), "threads": setup.threads}
        return cls(name, own_command("kvchat.bench.child"), hello)

    def start(self) -> Contender:
        """It, ready to answer. Raises ContenderError."""
        return Contender(self.name, self.command, self.hello)


@contextmanager
def running(names: Sequence[str], setup: Setup) -> Iterator[dict[str, Contender]]:
    """The contenders by name; all but the first use as many threads as the first does. They end with the context."""
    entries = [Entry.of(name, setup) for name in names]  # refuses before any is started
    with ExitStack() as leave:
        children: dict[str, Contender] = {}
        for entry in entries:
            if children:
                threads = next(iter(children.values())).facts["threads"]
                entry = replace(entry, hello={**entry.hello, "threads": threads})
            children[entry.name] = entry.start()
            leave.callback(children[entry.name].close)
        yield children


def _llama(setup: Setup) -> Entry:
    from kvchat.models.sources.catalog import Catalog

    wanted = setup.config.model
    files = Catalog(setup.config.paths.models, offline=wanted.offline).resolve(
        wanted.name, needs_template=False
    )
    if files.gguf is None:
        raise ContenderError(
            f"{files.name} is no GGUF, which llama.cpp needs", "take the default model or a .gguf file"
        )
    hello = {"gguf": str(files.gguf), "threads": setup.threads, "context": wanted.context}
    return Entry("llama.cpp", [setup.llama_python or sys.executable, str(_LLAMA)], hello)
