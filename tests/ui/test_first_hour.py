"""Sixty tasks of a first hour, each done by the words or keys that people bring along."""

from __future__ import annotations

import io
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvchat.cli import main
from kvchat.commands.chat import Backends
from kvchat.commands.elsewhere import WORDS, said_here
from kvchat.errors import UsageError
from kvchat.ui.commands import find
from kvchat.ui.elsewhere import ADVICE
from tests.scripted_cli import scripted
from tests.ui.first_hour import CHAT, SHELL, Task
from tests.ui.terminal import Terminal

ESCAPE, WAIT = "\x1b", "wait for "
AFTER_ESCAPE_S = 1.0  # sooner behind it, a key would be one with Alt
ORDERS = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()].")


def do(terminal: Terminal, task: Task) -> None:
    """Press the task's keys, and wait for what is to be seen in what was written since."""
    before = len(terminal.raw)

    def wait_for(pattern: str) -> None:
        wanted = re.compile(pattern, re.MULTILINE)
        terminal.until(
            lambda: wanted.search(written(terminal, before)) is not None,
            f"{task.what} as in {task.known_from}: {pattern}",
        )

    for keys in task.said:
        if keys.startswith(WAIT):
            wait_for(keys.removeprefix(WAIT))
        else:
            terminal.type(keys)
            terminal.read()
    wait_for(task.seen)
    if task.said[-1] == ESCAPE:
        time.sleep(AFTER_ESCAPE_S)
    terminal.until(lambda: terminal.visible[-1].startswith("scripted · ready"), "its end")


def written(terminal: Terminal, start: int) -> str:
    """What the program has written since, without orders to the terminal."""
    return ORDERS.sub(b"", terminal.raw[start:]).decode(errors="replace").replace("\r", "")


def test_a_first_hour_in_the_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(CHAT) + len(SHELL) >= 60
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("milk and honey\n")
    terminal = Terminal(tmp_path, rows=40).ready()
    for task in CHAT[:-1]:
        do(terminal, task)
    terminal.enter("exit")
    terminal.wait_for("kvchat -c")
    assert terminal.end() == 0


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What the program makes of signals is undone."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_a_first_hour_in_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG", "RUNTIME"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    for task in SHELL:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        try:
            code = main(task.said, backends=Backends(oneshot=scripted, dialogue=scripted))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        shown = "".join(capsys.readouterr())
        assert code == 0, f"{task}: {shown}"
        assert re.search(task.seen, shown), f"{task}: {shown}"


@pytest.mark.parametrize("word", ADVICE)
def test_what_is_no_command_here_says_what_to_do_instead(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        find(f"{word} and more")
    assert refused.value.remedy == ADVICE[word]


def test_words_from_elsewhere_hide_no_command_and_no_mistyped_one() -> None:
    commands = {"models", "sessions", "help", "cache"}
    assert not commands & set(WORDS)
    assert said_here(["models", "rm", "x"], commands) == ["models", "rm", "x"]
    assert said_here(["sesions", "rm", "x"], commands) == ["sesions", "rm", "x"]
    assert said_here(["tell", "me", "--json"], commands) == ["tell", "me", "--json"]
    assert said_here(["hello"], commands) == ["hello"]
    assert said_here(["run", "tiny"], commands) == ["-m", "tiny"]


@pytest.mark.parametrize(
    ("line", "name", "argument"),
    [
        ("exit", "/exit", ""),
        ("Quit", "/exit", ""),
        ("/set system be\nkind", "/system", "be\nkind"),
        ("/set systematic 1", "/set", "systematic 1"),
        ("/show", "/model", ""),
        ("/showy", "", ""),
    ],
)
def test_lines_from_elsewhere_are_commands_here(line: str, name: str, argument: str) -> None:
    if not name:
        with pytest.raises(UsageError):
            find(line)
        return
    command, rest = find(line)
    assert (command.name, rest) == (name, argument)
