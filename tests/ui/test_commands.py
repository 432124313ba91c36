"""The table of commands."""

import os
from pathlib import Path

import pytest

from kvchat.backends.base import ModelInfo
from kvchat.chat.session import Session
from kvchat.config import load_config
from kvchat.errors import UntrustedCodeError, UsageError
from kvchat.prompts.shelves import Prompts
from kvchat.trust import trust_for_now
from kvchat.ui.commands import COMMANDS, common_start, completions, find, is_command
from kvchat.ui.desk import Choice, Surroundings
from kvchat.ui.elsewhere import ALIASES
from kvchat.ui.tables import Look
from tests.scripted import ScriptedBackend


class Desk:
    def __init__(self) -> None:
        self.session = Session(ScriptedBackend())
        self.surroundings = Surroundings()
        self.offered: list[Choice] = []
        self.left = False
        self.look = Look(plain=True)

    def leave(self) -> None:
        self.left = True

    def offer(self, title: str, choices: list[Choice], at: int = 0) -> None:
        self.offered = choices

    def show_loading(self, backend: object) -> None:
        pass


def done(desk: Desk, text: str) -> str:
    command, argument = find(text)
    return command.run(desk, argument)


def test_two_slashes_are_no_command() -> None:
    assert is_command("/help")
    assert not is_command("//help")
    assert not is_command("see /help")


@pytest.mark.parametrize(("typed", "nearest"), [("/hlep", "/help"), ("/exti", "/exit"), ("/cls", "/clear")])
def test_an_unknown_command_names_a_near_one(typed: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {nearest}?"):
        find(typed)


def test_an_unknown_command_that_is_near_to_none_names_none() -> None:
    with pytest.raises(UsageError, match="/help lists them all"):
        find("/xyzzy")


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_the_words_of_other_programs_are_known(alias: str, name: str) -> None:
    assert find(f"{alias} and more") == (find(name)[0], "and more")


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
    assert done(desk, "/set top_k 40").split() == ["top_k", "=", "40", "/set"]
    assert desk.session.options.top_k == 40
    assert done(desk, "/set top_k 40") in done(desk, "/set").splitlines()
    with pytest.raises(UsageError, match="between 0"):
        done(desk, "/set top_p 7")
    assert done(desk, "/set top_k default").split() == ["top_k", "=", "-", "default"]
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
    trust_for_now(desk.surroundings.trust)
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
    settings = (
        Prompts.around(tmp_path, is_trusted=lambda folder: True).prompt("kept").settings("You are kept.")
    )
    config = load_config(settings | {"chat.save": False}, environ={"KVCHAT_CONFIG": os.devnull})
    assert Session.from_config(ScriptedBackend(), config).history[0].pinned


def test_a_prompt_beside_the_work_is_taken_once_the_user_trusts_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "theirs.md").write_text("You are theirs.")
    (tmp_path / "prompts" / "explain.md").write_text("You explain it their way.")
    desk = Desk()
    assert "their way" not in done(desk, "/prompt explain"), "the shipped one counts"
    assert done(desk, "/prompt theirs") == ""
    (choice,) = desk.offered
    assert str(tmp_path / "prompts") in choice.label and desk.session.system != "You are theirs."
    shown = done(desk, choice.command)
    assert desk.session.system == "You are theirs."
    assert f"from {tmp_path}/prompts/theirs.md (here)" in shown
    assert "their way" in done(desk, "/prompt explain")
    done(desk, "/prompt")
    assert any("theirs · here" in choice.label for choice in desk.offered)


def test_code_that_comes_with_a_model_is_asked_about_and_the_model_stays_until_then() -> None:
    desk, trusted = Desk(), []

    class NeedsCode(ScriptedBackend):
        def info(self) -> ModelInfo:
            raise UntrustedCodeError("theirs needs code of its own", "-m theirs --trust-remote-code")

    desk.surroundings = Surroundings(
        open_model=lambda name: ScriptedBackend() if trusted else NeedsCode(), trust_code=trusted.append
    )
    before = desk.session.backend
    assert "needs code of its own" in done(desk, "/model theirs")
    assert desk.session.backend is before and not trusted
    (choice,) = desk.offered
    assert "theirs answers from now on" in done(desk, choice.command)
    assert trusted == ["theirs"] and desk.session.backend is not before


def test_before_the_first_message_there_is_none_to_say_differently() -> None:
    with pytest.raises(UsageError, match="no message to edit: say something"):
        done(Desk(), "/edit")
