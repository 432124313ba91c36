"""What is piped in, named as a file or given as a flag: its size is looked at first, its byte order mark last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvchat.ui.files
from kvchat.errors import ContextOverflowError, UsageError
from kvchat.ui.cost import check_length
from kvchat.ui.questions import messages_of, open_turns
from tests.scripted import CONTEXT, ScriptedBackend

MEBIBYTE = 2**20


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "KVCHAT_SHARE" or not name.startswith("KVCHAT_")
    }
    return kept | {
        f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")
    }


def ran(environ: dict[str, str], *argv: str, piped: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tests.scripted_cli", *argv]
    return subprocess.run(command, input=piped, env=environ, capture_output=True, timeout=100)


def test_a_byte_order_mark_reaches_no_prompt(environ: dict[str, str], tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    assert ran(environ, piped=mark + b"hello").stdout == b"[1] you said: hello\n"
    assert (
        ran(environ, "--turns", "-", piped=mark + b"one\ntwo\n").stdout
        == b"[1] you said: one\n[3] you said: two\n"
    )
    (tmp_path / "turns").write_bytes(mark + b'"one"\r\ntwo\r\n')
    assert (
        ran(environ, "--turns", str(tmp_path / "turns")).stdout == b"[1] you said: one\n[3] you said: two\n"
    )
    (tmp_path / "system").write_bytes(mark + b"be brief")
    ran(environ, "-s", f"@{tmp_path / 'system'}", "-p", "x")
    shown = subprocess.run(
        [sys.executable, "-m", "kvchat", "sessions", "show"], env=environ, capture_output=True
    )
    assert b"be brief" in shown.stdout
    assert mark not in shown.stdout


def test_a_loop_keeps_its_input_with_no_stdin(environ: dict[str, str]) -> None:
    loop = f'while read -r line; do {sys.executable} -m tests.scripted_cli -p "$line" %s; done'
    command = ["bash", "-c", loop % "--no-stdin"]
    kept = subprocess.run(command, input=b"one\ntwo\n", env=environ, capture_output=True, timeout=100)
    assert kept.stdout == b"[1] you said: one\n[1] you said: two\n"
    command = ["bash", "-c", loop % ""]
    swallowed = subprocess.run(command, input=b"one\ntwo\n", env=environ, capture_output=True, timeout=100)
    assert swallowed.stdout == b"[1] you said: two\n\none\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [(("--no-stdin",), b"nothing to ask"), (("--no-stdin", "--turns", "-"), b"--turns - reads stdin")],
)
def test_with_no_stdin_there_has_to_be_something_else_to_ask(
    environ: dict[str, str], argv: tuple[str, ...], said: bytes
) -> None:
    result = ran(environ, *argv, piped=b"hello")
    assert (result.returncode, said in result.stderr) == (2, True)


@pytest.mark.parametrize("value", ["-1", "-0.5", "-1e-3", "-.1"])
def test_a_negative_temperature_is_refused(environ: dict[str, str], value: str) -> None:
    for argv in (("--temperature", value), (f"--temperature={value}",)):
        result = ran(environ, *argv, "-p", "x")
        assert (result.returncode, result.stdout) == (2, b"")
        assert b"--temperature" in result.stderr


def test_more_than_any_model_takes_is_refused_unread(environ: dict[str, str]) -> None:
    shell = f"head -c {100 * MEBIBYTE} /dev/zero | tr '\\0' x | {sys.executable} -m tests.scripted_cli"
    result = subprocess.run(["bash", "-c", shell], env=environ, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert result.stderr == "kvchat: the piped text is larger than 64 MiB: pipe only the part that matters\n"
    for argv in (("-s", "@/dev/zero", "-p", "x"), ("--turns", "/dev/zero")):
        endless = ran(environ, *argv)
        assert endless.returncode == 2
        assert endless.stderr.count(b"\n") == 1


def test_a_message_that_can_not_fit_is_neither_saved_nor_sent(
    environ: dict[str, str], tmp_path: Path
) -> None:
    result = ran(environ, piped=b"word " * MEBIBYTE)
    assert result.returncode == 4
    assert result.stderr.startswith(
        b"kvchat: the message has 5242880 characters, the context of scripted 8192 tokens"
    )
    assert not any(path.stat().st_size > MEBIBYTE for path in (tmp_path / "DATA").rglob("*"))


def test_only_what_is_surely_too_long_is_refused_by_its_length() -> None:
    backend = ScriptedBackend()
    check_length(backend, "=" * 128 * CONTEXT)
    with pytest.raises(ContextOverflowError):
        check_length(backend, "=" * 257 * CONTEXT)


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kvchat.ui.questions.MAX_INPUT_BYTES", 1000)
    (tmp_path / "turns").write_text("short\n" + "x" * 2000)
    messages = messages_of(open_turns(str(tmp_path / "turns"), sys.stdin))
    assert next(messages) == "short"
    with pytest.raises(UsageError, match="a line has more than 1000 characters"):
        next(messages)
    assert kvchat.ui.files.MAX_INPUT_BYTES == 64 * MEBIBYTE


def test_a_large_text_is_refused_by_the_model_within_a_bound_of_memory(
    environ: dict[str, str], long_path: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("the quick brown fox " * 45_000)  # 900 kB: 30 characters for each token of the context
    measure = (  # by a small process: a child is charged with what its parent has when it begins
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stderr=subprocess.STDOUT).returncode;"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "kvchat", "-m", str(long_path), "--dtype", "float32", "--no-save"]
    with text.open() as stdin:
        run = subprocess.run(
            [sys.executable, "-c", measure, *command],
            stdin=stdin,
            capture_output=True,
            text=True,
            env=environ,
        )
    *words, result = run.stdout.splitlines()
    code, used = result.split()
    assert code == "4", run.stdout
    assert "the conversation is more than" in "\n".join(words)
    assert int(used) < 1024 * 1024  # in KiB; most of it is torch
