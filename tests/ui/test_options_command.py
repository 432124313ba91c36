"""The options in force, where each comes from, and how they are kept."""

from pathlib import Path

import pytest

from kvchat.backends.base import Options
from kvchat.chat.session import Session
from kvchat.chat.tree import Preset
from kvchat.commands.saving import save_settings, with_setting
from kvchat.config import load_config
from kvchat.errors import UsageError
from kvchat.ui.desk import Surroundings
from kvchat.ui.options_command import run_set
from tests.scripted import ScriptedBackend


class Desk:
    """What `/set` touches of a dialogue."""

    def __init__(self, surroundings: Surroundings | None = None) -> None:
        self.session = Session(ScriptedBackend(), Options(top_k=7))
        self.surroundings = surroundings or Surroundings()


def row(desk: Desk, name: str) -> list[str]:
    return run_set(desk, name).split(maxsplit=3)  # type: ignore[arg-type]


def test_each_option_says_what_is_in_force_and_from_where() -> None:
    desk = Desk(Surroundings(origins={"sampling.top_k": "--top-k"}))
    assert row(desk, "top_k") == ["top_k", "=", "7", "--top-k"]
    assert row(desk, "max_tokens") == ["max_tokens", "=", "4096", "default"]
    run_set(desk, "top_k 9")  # type: ignore[arg-type]
    assert row(desk, "top_k") == ["top_k", "=", "9", "/set"]
    assert row(desk, "repeat_stop") == ["repeat_stop", "=", "on", "default"]


def test_a_prompts_options_come_with_it_show_and_go_with_it() -> None:
    desk = Desk()
    desk.session.set_system("brief", preset=Preset("short", {"max_tokens": 30, "temperature": 0.2}))
    assert row(desk, "max_tokens") == ["max_tokens", "=", "30", "the prompt short"]
    assert desk.session.chosen == Options(top_k=7, max_tokens=30, temperature=0.2)
    run_set(desk, "temperature 0.9")  # type: ignore[arg-type]
    assert desk.session.chosen.temperature == 0.9, "what the user says counts"
    desk.session.set_system("another")
    assert desk.session.chosen == Options(top_k=7, temperature=0.9)


def test_an_option_that_is_none_is_told_the_near_one_only_where_it_is_near() -> None:
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        run_set(Desk(), "temprature 1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there are max_tokens"):
        run_set(Desk(), "zzz 1")  # type: ignore[arg-type]


def test_saving_keeps_the_file_and_new_conversations_begin_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# mine\n[sampling]\ntop_k = 3  # few\n\n[ui]\nvi = true\n")
    monkeypatch.setenv("KVCHAT_CONFIG", str(path))
    desk = Desk(Surroundings(save_settings=save_settings))
    assert "nothing was changed" in run_set(desk, "--save")  # type: ignore[arg-type]
    assert str(path) in run_set(desk, "temperature 0.5 --save")  # type: ignore[arg-type]
    run_set(desk, "top_k 40")  # type: ignore[arg-type]
    run_set(desk, "--save")  # type: ignore[arg-type]
    config = load_config({})
    assert (config.sampling.top_k, config.sampling.temperature, config.ui.vi) == (40, 0.5, True)
    assert path.read_text().startswith("# mine\n[sampling]\n")


def test_a_setting_is_written_into_its_section_or_a_new_one() -> None:
    assert with_setting("", "ui.vi", True) == "[ui]\nvi = true\n"
    assert with_setting("[a]\nb = 1\n", "ui.vi", False) == "[a]\nb = 1\n\n[ui]\nvi = false\n"
    assert with_setting("[ui]\nvi = true\nplain = true\n", "ui.vi", None) == "[ui]\nplain = true\n"


def test_a_value_that_would_not_be_read_again_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[sampling]\ntop_k = 3\n")
    monkeypatch.setenv("KVCHAT_CONFIG", str(path))
    with pytest.raises(UsageError):
        save_settings({"sampling.top_k": "many"})
    assert path.read_text() == "[sampling]\ntop_k = 3\n"
