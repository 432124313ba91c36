"""Whatever is raised below the command line, it ends in one line and an exit code, never in a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvchat.backends.base import Backend
from kvchat.cli import main
from kvchat.commands.chat import Backends
from kvchat.config import Config
from kvchat.errors import KvchatError
from tests.scripted import ScriptedBackend


class PanicException(BaseException):
    """What native code raises when it panics: no Exception."""


ERRORS: list[tuple[BaseException, int, str]] = [
    (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply"),
    (
        PanicException("called `Option::unwrap()`\non a `None` value"),
        1,
        "internal error: PanicException: called",
    ),
    (MemoryError(), 5, "out of memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "out of memory"),
    (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files"),
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "can't write /x/y: the disk is full"),
    (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "can't use /x/y: Permission denied"),
    (ValueError("one\ntwo\x1b[2J"), 1, "ValueError: one two␛[2J"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), 1, "UnicodeDecodeError"),
    (SyntaxError("bad"), 1, "SyntaxError"),
    (SystemError("odd"), 1, "SystemError"),
    (AssertionError("ours"), 1, "AssertionError: ours"),
    (KvchatError("x" * 10**6, "mend it"), 1, "mend it"),
    (KeyboardInterrupt(), 130, ""),
]


@pytest.mark.parametrize(("error", "code", "said"), ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("is_json", [False, True])
def test_every_error_is_one_line_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
    is_json: bool,
) -> None:
    for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setattr("sys.stdin", Path(os.devnull).open())  # noqa: SIM115

    def broken(config: Config) -> Backend:
        raise error

    assert main(["-p", "x", *(["--json"] if is_json else [])], backends=Backends(broken, broken)) == code
    err = capsys.readouterr().err
    assert err.count("\n") == (code != 130)
    assert "Traceback" not in err
    if is_json and err:
        assert json.loads(err)["error"]["exit_code"] == code
    else:
        assert said in err
        assert len(err) < 2200


def test_a_thread_that_fails_is_one_line_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setattr("sys.stdin", Path(os.devnull).open())  # noqa: SIM115

    def fail() -> None:
        raise ValueError("in a\nthread")

    def backend(config: Config) -> Backend:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return ScriptedBackend()

    before = threading.excepthook
    assert main(["-p", "x"], backends=Backends(backend, backend)) == 0
    said = capsys.readouterr()
    assert said.out == "[1] you said: x\n"
    assert "Traceback" not in said.err
    assert [record.getMessage() for record in caplog.records] == ["internal error: ValueError: in a thread"]
    assert threading.excepthook is before


@pytest.mark.parametrize(
    "line", ["-t nobody -p x 2>/dev/full", "-t nobody -p x 2>&-", "-t nobody -p x 2>&- >&-"]
)
def test_an_error_that_nobody_can_be_told_has_its_exit_code_all_the_same(tmp_path: Path, line: str) -> None:
    folders = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")}
    shell = f"{sys.executable} -m kvchat {line}"
    result = subprocess.run(
        ["bash", "-c", shell], env=os.environ | folders, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")
