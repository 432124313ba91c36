"""The dialogue with a real engine in a child process, behind a real pseudo-terminal; the model is tiny and random."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ui.terminal import Terminal, figures

Open = Callable[..., Terminal]
ENDLESS = ("--max-tokens", "29000", "--repeat-stop", "off")


@pytest.fixture
def open_terminal(long_path: Path, tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*argv: str) -> Terminal:
        flags = ["-m", str(long_path), "--dtype", "float32", "--temperature", "0"]
        flags += ["--max-tokens", "12", "--cache-disk", "200MB"]
        opened.append(Terminal(tmp_path, *flags, *argv, module="kvchat", columns=160).ready())
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.child.close(force=True)


def engine_of(terminal: Terminal) -> int:
    """The engine's process id."""
    for _ in range(200):
        found = subprocess.run(
            ["pgrep", "-P", str(terminal.child.pid)], capture_output=True, text=True
        ).stdout.split()
        if found:
            return int(found[0])
        time.sleep(0.05)
    raise AssertionError("no engine")


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
        ).stdout.strip()
        if not state or state.startswith("Z"):
            return True
        time.sleep(0.05)
    return False


def test_turns_compute_only_what_is_new(open_terminal: Open) -> None:
    terminal = open_terminal()
    for message in ("hello", "world", "and so on"):
        terminal.enter(message)
        terminal.settle()
    lines = figures(terminal.rows)
    cached, asked, prefilled = zip(
        *(map(int, re.findall(r"(\d+)/(\d+) .*prefill (\d+)", line)[0]) for line in lines), strict=True
    )
    assert cached[0] == 0
    for turn in (1, 2):
        assert cached[turn] >= asked[turn - 1]
        assert cached[turn] + prefilled[turn] == asked[turn]
    engine = engine_of(terminal)
    terminal.leave()
    assert has_ended(engine)


def test_an_answer_stopped_by_ctrl_c_is_held_and_the_conversation_goes_on(open_terminal: Open) -> None:
    terminal = open_terminal(*ENDLESS)
    terminal.enter("hello")
    terminal.until(lambda: "answering" in terminal.visible[-1], "some text")
    terminal.type("\x03")
    terminal.settle()
    terminal.enter("/set max_tokens 4")
    terminal.enter("go on")
    terminal.settle()
    first, second = figures(terminal.rows)
    assert any(row.startswith("stopped by you") for row in terminal.rows)
    said = int(re.findall(r"(\d+) tok ", first)[0])
    asked, cached = (int(re.findall(pattern, second)[0]) for pattern in (r"/(\d+) ", r"cached (\d+)"))
    assert asked > cached >= said
    terminal.leave()


def test_a_ctrl_c_right_after_enter_is_not_lost(open_terminal: Open) -> None:
    terminal = open_terminal(*ENDLESS)
    terminal.until(lambda: "ready" in terminal.visible[-1], "the model")
    for number, pause_s in enumerate((0.0, 0.005, 0.02, 0.1)):
        before = terminal.raw.count(b"stopped")
        terminal.type(f"hello {number}\r")
        time.sleep(pause_s)
        terminal.type("\x03")

        def is_over(text: str = f"> hello {number}", before: int = before) -> bool:
            """Taken back before it began, or stopped."""
            given_back = terminal.visible[-2] == text and "ready" in terminal.visible[-1]
            return given_back or terminal.raw.count(b"stopped") > before

        terminal.until(is_over, "the end")
        terminal.until(lambda: "ready" in terminal.visible[-1], "an idle engine")
        terminal.type("\x05\x15")
    terminal.leave()


def test_an_engine_killed_in_mid_answer_costs_one_line_and_no_word(open_terminal: Open) -> None:
    terminal = open_terminal(*ENDLESS)
    terminal.enter("hello")
    counts = re.compile(r"(\d+) tok")
    terminal.until(lambda: any(int(n) > 50 for n in counts.findall(terminal.visible[-1])), "some text")
    engine = engine_of(terminal)
    os.kill(engine, signal.SIGKILL)
    terminal.wait_for("was started again")
    terminal.enter("/set max_tokens 4")
    terminal.enter("go on")
    terminal.until(lambda: "ctx" in terminal.rows[-2] or bool(figures(terminal.rows)), "the next answer")
    assert sum("was started again" in row for row in terminal.rows) == 1
    asked = int(re.findall(r"/(\d+) ", figures(terminal.rows)[-1])[0])
    assert asked > 60, "what was said before is part of the next prompt"
    terminal.leave()


def test_an_engine_killed_twice_while_it_loads_is_there_again_by_itself(open_terminal: Open) -> None:
    terminal = open_terminal()
    killed: set[int] = set()
    while len(killed) < 2:
        if (engine := engine_of(terminal)) not in killed:
            os.kill(engine, signal.SIGKILL)
            killed.add(engine)
    terminal.until(lambda: "ready" in terminal.visible[-1], "the model")
    terminal.enter("hello")
    terminal.settle()
    assert engine_of(terminal) not in killed
    terminal.leave()


@pytest.mark.parametrize(
    ("answering", "way"),
    [
        (False, "ctrl-d"),
        (False, "SIGKILL"),
        *((True, way) for way in ("ctrl-d", "SIGTERM", "SIGKILL", "hang up")),
        pytest.param(True, "SIGHUP", marks=pytest.mark.slow),
    ],
)
def test_no_engine_is_left_behind(open_terminal: Open, way: str, answering: bool) -> None:
    terminal = open_terminal(*ENDLESS)
    engine = engine_of(terminal)
    if answering:
        terminal.enter("hello")
        terminal.until(lambda: "answering" in terminal.visible[-1], "some text")
        terminal.type("\x03" if way == "ctrl-d" else "")
    if way == "ctrl-d":
        if answering:
            terminal.settle()
        terminal.leave()
    elif way == "hang up":
        terminal.hang_up()
    else:
        terminal.kill(getattr(signal, way))
    assert has_ended(engine)


def test_a_sigint_to_the_foreground_group_kills_neither(open_terminal: Open) -> None:
    terminal = open_terminal()
    engine = engine_of(terminal)
    terminal.enter("hello")
    terminal.settle()
    os.killpg(os.getpgid(terminal.child.pid), signal.SIGINT)
    terminal.wait_for("Ctrl-C again leaves")
    terminal.enter("still there")
    terminal.settle()
    assert engine_of(terminal) == engine
    terminal.leave()


def test_two_hundred_pasted_lines_are_one_message(open_terminal: Open) -> None:
    terminal = open_terminal("--max-tokens", "2")
    terminal.paste("\n".join(f"line {n}" for n in range(200)))
    terminal.read()
    assert not figures(terminal.rows)
    terminal.type("\r")
    terminal.settle()
    (line,) = figures(terminal.rows)
    assert int(re.findall(r"prefill (\d+)", line)[0]) > 600
    terminal.leave()


def test_a_model_that_is_not_there_ends_in_one_line_and_exit_code_three(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "-m", str(tmp_path / "nowhere"), module="kvchat")
    assert terminal.end() == 3
    assert any("nowhere" in row for row in terminal.rows)


def test_a_dialogue_goes_on_past_its_context_and_says_what_is_kept(open_terminal: Open) -> None:
    terminal = open_terminal("--when-full", "auto", "--context", "400", "--no-share")
    for number in range(9):
        terminal.enter(f"message {number}: " + "and so on " * 3)
        terminal.settle()
    terminal.wait_for("older messages are")
    told = "".join(terminal.rows)
    assert "from here on" in told
    assert "do not fit" not in told
    terminal.enter("/expand")
    terminal.wait_for("the model is told the whole conversation")
    terminal.leave()
