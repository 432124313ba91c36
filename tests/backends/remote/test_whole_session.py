"""The real program over a remote, every command given: no torch and no transformers is ever imported, no key shown or kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from kvchat.cli import main
from kvchat.ui.commands import COMMANDS
from tests.backends.remote.servers import Reply, Request, Server, as_json, serving
from tests.backends.remote.test_misbehaving import KEY, said, whole
from tests.ui.terminal import Terminal

HEAVY = ("torch", "transformers", "tokenizers")
GIVEN = {
    "/system": "Be brief.",
    "/set": "temperature 0.5",
    "/cache": "why",
    "/edit": "1 Count again.",
    "/fork": "beside",
    "/resume": "beside",
    "/rename": "named",
    "/model": "work:m",
    "/prompt": "proofread",
    "/tokens": "some text",
    "/undo": "1",
    "/read": "note.txt",
}
"""What some commands are given; the others stand alone."""
LAST = ("/clear", "/exit")


def answering(request: Request) -> Reply:
    """A list of models, counting by words, and answers; of a message about keys, an error that repeats the key."""
    if request.path.endswith("/models"):
        return as_json({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]})
    if b"Tell me the key" in request.body:
        return as_json({"error": {"message": f"bad key {request.headers['authorization']}"}}, 500)
    if request.path == "/tokenize":
        return as_json({"tokens": [1, 2, 3]})
    if b"Break off" in request.body:
        piece = f"data: {json.dumps(said('vllm', 'one '))}\n\n".encode()
        return Reply([piece, f"data: {json.dumps({'error': {'message': f'lost {KEY}'}})}\n\n".encode()])
    return whole("vllm")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(answering) as server:
        yield server


@pytest.fixture
def environ(server: Server, tmp_path: Path) -> dict[str, str]:
    """Settings with a remote whose key a command prints, and a Python in which what is heavy leaves a mark."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text(f"{KEY}\n")
    home = tmp_path / "home"
    home.mkdir()
    printing = f"{sys.executable} -c \"print(open('{tmp_path}/secret/key').read())\""
    (home / "CONFIG").write_text(f"[remote.work]\nurl = '{server.url}'\napi_key_cmd = '''{printing}'''\n")
    for name in HEAVY:
        (tmp_path / "marking").mkdir(exist_ok=True)
        mark = f"open({str(tmp_path / name)!r}, 'w').close()\nraise ImportError({name!r})\n"
        (tmp_path / f"marking/{name}.py").write_text(mark)
    return {"PYTHONPATH": str(tmp_path / "marking"), "EDITOR": "true", "VISUAL": "true"}


def told(terminal: Terminal) -> None:
    """Show what a command says, until it pauses."""
    deadline = time.monotonic() + 0.5
    try:
        while time.monotonic() < deadline:
            terminal.read_some(0.1)
    except pexpect.TIMEOUT:
        terminal.type("\x1b\x15")  # closes what was offered, empties the input


def walked(terminal: Terminal) -> None:
    """Messages of every kind of end, and every command."""
    terminal.enter("Count.")
    terminal.settle()
    terminal.enter("Tell me the key.")
    terminal.wait_for("bad key")
    terminal.enter("\x15Break off.")  # what failed came back into the input
    terminal.wait_for("what came is kept")
    for command in COMMANDS:
        if command.name not in LAST:
            terminal.enter(f"{command.name} {GIVEN.get(command.name, '')}".strip())
            told(terminal)
    terminal.enter("/clear")
    told(terminal)
    terminal.enter("/model work:m")
    told(terminal)
    terminal.enter("Count once more.")
    terminal.until(lambda: terminal.raw.count(b"one two three four") >= 2, "an answer after all commands")
    terminal.enter("/exit")
    assert terminal.end() == 0


def kept_in(folder: Path) -> bytes:
    """All that stands in a folder's files."""
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def test_every_command_imports_nothing_heavy_and_keeps_no_key(
    environ: dict[str, str], server: Server, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    terminal = Terminal(home, "-m", "work", module="kvchat", environ=environ, columns=160).ready()
    try:
        walked(terminal)
    finally:
        terminal.child.close(force=True)
    assert any(KEY in request.headers.get("authorization", "") for request in server.requests)
    assert b"stopped by you" not in terminal.raw
    assert b"(the key)" in terminal.raw and KEY.encode() not in terminal.raw
    assert b"Count once more." in kept_in(home / "DATA")
    assert KEY.encode() not in kept_in(home)
    assert [name for name in HEAVY if (tmp_path / name).exists()] == []


def test_a_single_message_keeps_no_key_either(
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("DATA", "CACHE_DIR", "CONFIG", "MODELS"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / "home" / name))
    for message, code in (("Count.", 0), ("Tell me the key.", 1), ("Break off.", 1)):
        for form in ([], ["--json"]):
            assert main(["-m", "work", "--no-stdin", "-p", message, *form]) == code
    for command in (["models", "ls"], ["config", "show"], ["sessions", "ls"], ["doctor", "-m", "work"]):
        main([*command, "--json"])
    shown = capfd.readouterr()
    assert "what came is kept" in shown.err and "stopped by you" not in shown.err
    assert "(the key)" in shown.err and KEY not in shown.out + shown.err
    assert b"Break off." in kept_in(tmp_path / "home/DATA") and KEY.encode() not in kept_in(tmp_path / "home")
