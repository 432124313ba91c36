"""The table of commands."""

import os
from pathlib import Path

import pytest

from kvchat.chat.prompts import Prompts
from kvchat.chat.session import Session
from kvchat.config import load_config
from kvchat.errors import UsageError
from kvchat.ui.commands import COMMANDS, common_start, completions, find, is_command
from kvchat.ui.tables import Look
from tests.scripted import ScriptedBackend


class Desk:
    def __init__(self) -> None:
        self.session = Session(ScriptedBackend())
        self.left = False
        self.look = Look(plain=True)

    def leave(self) -> None:
        self.left = True


def done(desk: Desk, text: str) -> str:
    command, argument = find(text)
    return command.run(desk, argument)


def test_two_slashes_are_no_command() -> None:
    assert is_command("/help")
    assert not is_command("//help")
    assert not is_command("see /help")


@pytest.mark.parametrize(("typed", "nearest"), [("/hlep", "/help"), ("/quit", "/exit"), ("/cls", "/clear")])
def test_an_unknown_command_names_a_near_one(typed: str, nearest: str) -> None:
    with pytest.raises(UsageError, match="did you mean /"):
        find(typed)
    if typed != "/quit":
        with pytest.raises(UsageError, match=nearest):
            find(typed)


def test_the_argument_may_have_lines() -> None:
    assert find("/system be brief\nand kind")[1] == "be brief\nand kind"
    assert find("/system\nbe brief")[1] == "be brief"


def test_help_names_every_command() -> None:
    shown = " ".join(done(Desk(), "/help").split())
    assert all(command.name in shown and command.help in shown for command in COMMANDS)


def test_the_system_prompt_is_shown_replaced_and_removed() -> None:
    desk = Desk()
    assert "no system prompt" in done(desk, "/system")
    done(desk, "/system be brief")
    assert done(desk, "/system") == "be brief"
    done(desk, "/system -")
    assert desk.session.system is None


def test_options_are_checked_by_the_settings_rules() -> None:
    desk = Desk()
    assert done(desk, "/set top_k 40") == "top_k = 40"
    assert desk.session.options.top_k == 40
    assert "top_k = 40" in done(desk, "/set").splitlines()
    with pytest.raises(UsageError, match="between 0"):
        done(desk, "/set top_p 7")
    assert done(desk, "/set top_k default") == "top_k = default"
    assert desk.session.options.top_k is None


def test_exit_leaves() -> None:
    desk = Desk()
    done(desk, "/exit")
    assert desk.left


def test_completion_names_what_a_line_may_become() -> None:
    assert completions("/st") == ["/stats"]
    assert completions("/s") == ["/sessions", "/switch", "/system", "/set", "/stats"]
    assert completions("/set top") == completions("st") == completions("//s") == []
    assert common_start(["/stats", "/status"]) == "/stat"
    assert common_start(["/set"]) == "/set"


def test_a_saved_prompts_pin_holds_until_another_system_prompt_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "kept.md").write_text("---\npin: true\n---\nYou are kept.\n")
    (tmp_path / "prompts" / "loose.md").write_text("You are not.\n")
    desk = Desk()
    for line, is_pinned in (("/prompt kept", True), ("/prompt loose", False), ("/system no more", False)):
        shown = done(desk, line)
        assert ("pinned" in shown) is is_pinned
        desk.session.ask("hello")
        system, *others = desk.session.history
        assert system.pinned is is_pinned
        assert not any(turn.pinned for turn in others)
    done(desk, "/prompt kept")
    done(desk, "/new")
    desk.session.ask("hello")
    assert desk.session.history[0].pinned
    settings = Prompts.around(tmp_path).prompt("kept").settings("You are kept.")
    config = load_config(settings | {"chat.save": False}, environ={"KVCHAT_CONFIG": os.devnull})
    assert Session.from_config(ScriptedBackend(), config).history[0].pinned


def test_before_the_first_message_there_is_none_to_say_differently() -> None:
    with pytest.raises(UsageError, match="no message to say differently: say something"):
        done(Desk(), "/edit")
