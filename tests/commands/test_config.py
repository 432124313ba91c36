"""`kvchat config ...`."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from kvchat.cli import main
from kvchat.commands.config import template
from kvchat.config import SECTIONS, load_config
from tests.commands.settings_page import PAGE, with_table

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs kvchat with folders of its own; (exit code, stdout, stderr)."""
    for name in ("CACHE_DIR", "MODELS", "DATA"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setenv("KVCHAT_CONFIG", str(tmp_path / "own" / "config.toml"))
    monkeypatch.delenv("VISUAL", raising=False)

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        return (code, *capsys.readouterr())

    return run


def uncommented() -> str:
    return re.sub(r"^# (\w+ = )", r"\1", template(), flags=re.MULTILINE)


def test_the_template_names_every_setting_and_changes_none(tmp_path: Path) -> None:
    assert all(value == {} for value in tomllib.loads(template()).values())
    given = tomllib.loads(uncommented())
    assert {name: set(values) for name, values in given.items()} == {
        name: {item.name for item in fields(cls)} for name, cls in SECTIONS.items()
    }


def test_every_line_of_the_template_is_right_once_it_is_uncommented(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(uncommented())
    config = load_config({}, {"KVCHAT_CONFIG": str(file)})
    assert (config.cache.ram, config.sampling.stop) == (2 * 2**30, ("END",))


def test_no_setting_of_the_template_shows_a_word_of_python() -> None:
    assert not re.search(r'= "?(None|True|False)\b', template())


def test_the_page_about_settings_lists_them_as_they_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python -m tests.commands.settings_page"


def test_show_says_where_each_value_comes_from(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own" / "config.toml"
    file.parent.mkdir()
    file.write_text("[sampling]\n\ntop_k = 7\n")
    monkeypatch.setenv("KVCHAT_SYSTEM", "be brief")
    code, out, _ = run("--cache-ram", "1GiB", "config", "show", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows["sampling.top_k"] == {"value": 7, "from": f"{file}:3"}
    assert rows["chat.system"] == {"value": "be brief", "from": "KVCHAT_SYSTEM"}
    assert rows["cache.ram"] == {"value": 2**30, "from": "--cache-ram"}
    assert rows["model.name"] == {"value": "smollm2-135m", "from": "default"}
    lines = run("config", "show")[1].splitlines()
    assert len(lines) == len(rows)
    assert re.search(r"^sampling.top_k +7 +" + re.escape(f"{file}:3"), "\n".join(lines), re.MULTILINE)


def test_path_is_the_file_whether_it_is_there_or_not(run: Run, tmp_path: Path) -> None:
    assert run("config", "path") == (0, f"{tmp_path}/own/config.toml\n", "")
    assert json.loads(run("config", "path", "--json")[1])["exists"] is False


def test_edit_creates_the_file_for_its_owner_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", "sed -i s/^#.top_k.=.*/top_k=3/")
    file = tmp_path / "own" / "config.toml"
    assert run("config", "edit") == (0, f"{file}\n", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_config({}, {"KVCHAT_CONFIG": str(file)}).sampling.top_k == 3
    monkeypatch.setenv("EDITOR", "true")
    before = file.read_text()
    run("config", "edit")
    assert file.read_text() == before


def test_a_broken_file_can_be_edited_and_its_error_names_the_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own" / "config.toml"
    file.parent.mkdir()
    file.write_text("[ui]\nvim = true\n")
    monkeypatch.setenv("EDITOR", "true")
    code, _, err = run("config", "edit")
    assert (code, err) == (2, f"kvchat: {file}:2: no setting is called 'vim': did you mean 'vi'?\n")
    monkeypatch.setenv("EDITOR", "sed -i s/vim/vi/")
    assert run("config", "edit")[0] == 0


@pytest.mark.parametrize(("editor", "said"), [("no-such-editor", "can't run"), ("false", "ended with 1")])
def test_an_editor_that_fails_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, editor: str, said: str
) -> None:
    monkeypatch.setenv("EDITOR", editor)
    code, _, err = run("config", "edit")
    assert (code, editor in err, said in err) == (2, True, True)
