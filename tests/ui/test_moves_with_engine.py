"""Moves through a conversation with a real engine: what they find in the cache, and that they destroy nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvchat.backends.base import FinishReason
from kvchat.chat.store import FILE_NAME, Store
from kvchat.chat.tree import Exchange, Tree
from tests.ui.terminal import Terminal

BLOCK = 16
Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal(long_path: Path, tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*argv: str) -> Terminal:
        flags = ["-m", str(long_path), "--dtype", "float32", "--temperature", "0", "--max-tokens", "12"]
        flags += ["--repeat-stop", "off"]
        flags += ["--cache-disk", "200MB", "--cache-ram", "100MB"]
        opened.append(Terminal(tmp_path, *flags, *argv, module="kvchat", columns=120, rows=40).ready())
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.child.close(force=True)


def path_of(folder: Path, key: str = "latest") -> tuple[Exchange, ...]:
    """What is saved of a session."""
    store = Store(folder / "DATA" / FILE_NAME)
    row = store.session(key)
    path = Tree(store.exchanges(row.tree)).path(row.tip)
    store.close()
    return path


def cached_and_asked(exchange: Exchange) -> tuple[int, int]:
    assert exchange.answer
    return exchange.answer.usage.cached_tokens, exchange.answer.usage.prompt_tokens


def end_of(exchange: Exchange) -> int:
    """Tokens up to the end of an answer."""
    assert exchange.answer
    return exchange.answer.usage.total_tokens


def is_partly_saved(folder: Path) -> bool:
    *_, last = path_of(folder)
    return last.user.text == "go on" and last.answer is not None and len(last.answer.text) > 20


def say(terminal: Terminal, text: str) -> None:
    terminal.enter(text)
    terminal.settle()


def test_retry_edit_fork_and_switch_compute_nothing_twice_and_destroy_nothing(
    open_terminal: Open, tmp_path: Path
) -> None:
    terminal = open_terminal()
    for number in range(1, 7):
        say(terminal, f"message number {number} of six")
    first = path_of(tmp_path)

    say(terminal, "/retry")
    retried = path_of(tmp_path)
    cached, asked = cached_and_asked(retried[-1])
    assert asked == cached_and_asked(first[-1])[1]
    assert cached == asked - 1, "one token is always computed"

    say(terminal, "/edit 2 something else instead")
    edited = path_of(tmp_path)
    assert [exchange.user.text for exchange in edited] == [
        "message number 1 of six",
        "something else instead",
    ]
    cached, asked = cached_and_asked(edited[-1])
    assert cached > end_of(first[0]), "the common prefix reaches into the second message's frame"

    terminal.enter("/fork beside")
    terminal.wait_for("you are now in session beside")
    say(terminal, "and on")
    cached, asked = cached_and_asked(path_of(tmp_path, "beside")[-1])
    assert cached >= end_of(edited[-1]) - 1

    terminal.enter(f"/switch {first[-1].id}")
    terminal.wait_for("> message number 6 of six")
    say(terminal, "back again")
    back = path_of(tmp_path, "beside")
    assert back[:-1] == first
    cached, asked = cached_and_asked(back[-1])
    assert cached >= (end_of(first[-1]) - 1) // BLOCK * BLOCK

    store = Store(tmp_path / "DATA" / FILE_NAME)
    kept = {exchange.id for exchange in store.exchanges(store.session().tree)}
    assert kept >= {exchange.id for path in (first, retried, edited, back) for exchange in path}
    terminal.leave()


def test_continue_after_ctrl_c_and_after_a_restart_gives_the_uninterrupted_text(
    open_terminal: Open, tmp_path: Path
) -> None:
    terminal = open_terminal("--max-tokens", "29000")
    terminal.enter("hello")
    terminal.until(lambda: "answering" in terminal.visible[-1], "some text")
    terminal.type("\x03")
    terminal.settle()
    (stopped,) = path_of(tmp_path)
    assert stopped.answer
    assert stopped.answer.finish_reason is FinishReason.CANCELLED
    terminal.enter("/set max_tokens 21")
    say(terminal, "/continue")
    terminal.leave()

    terminal = open_terminal("-c", "--max-tokens", "33")
    terminal.wait_for("/continue goes on")
    say(terminal, "/continue")
    (joined,) = path_of(tmp_path)
    assert joined.answer
    count = len(joined.answer.completion)
    assert count == len(stopped.answer.completion) + 21 + 33

    terminal.enter("/new whole")
    terminal.enter(f"/set max_tokens {count}")
    say(terminal, "hello")
    (whole,) = path_of(tmp_path, "whole")
    assert whole.answer
    assert whole.answer.completion == joined.answer.completion
    assert whole.answer.text == joined.answer.text
    terminal.leave()


def test_after_kill_9_in_mid_answer_little_is_computed_again(open_terminal: Open, tmp_path: Path) -> None:
    terminal = open_terminal()
    terminal.paste("the quick brown fox jumps over the lazy dog and so on " * 250)
    terminal.type("\r")
    terminal.settle()
    assert 2500 < end_of(path_of(tmp_path)[0]) < 6000
    terminal.enter("/set max_tokens 24000")
    terminal.enter("go on")
    terminal.until(lambda: is_partly_saved(tmp_path), "some of the answer on disk")
    terminal.kill(signal.SIGKILL)
    terminal.until(lambda: not terminal.child.isalive(), "its end")

    terminal = open_terminal("-c")
    terminal.wait_for("(it stopped here; /continue goes on)")
    before = path_of(tmp_path)
    assert [exchange.user.text[:5] for exchange in before] == ["the q", "go on"]
    assert before[1].answer
    assert len(before[1].answer.text) > 20
    say(terminal, "and then")
    now = path_of(tmp_path)
    assert [exchange.user.text[:5] for exchange in now] == ["the q", "go on", "and t"]
    assert now[1].answer
    assert now[1].answer.text == before[1].answer.text
    cached, asked = cached_and_asked(now[2])
    num_partial = len(now[1].answer.completion)
    assert num_partial > 0
    frame_and_message = 60
    assert asked - cached <= BLOCK + num_partial + frame_and_message
    assert cached > 2500
    terminal.enter("/sessions")
    terminal.wait_for(" warm · the quick")
    terminal.type("\x1b")
    terminal.leave()
