"""Saved conversations and prompts from the command line, in one process. A model is scripted."""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvchat.cli import main
from kvchat.commands.chat import Backends
from kvchat.config import Config
from tests.scripted import ScriptedBackend

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs kvchat in an empty folder: its exit code, stdout and stderr. Without input, and without a terminal."""
    for name in [name for name in os.environ if name.startswith("KVCHAT_")]:
        monkeypatch.delenv(name)
    for name in ("MODELS", "CACHE_DIR", "DATA"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setenv("KVCHAT_CONFIG", str(tmp_path / "config" / "config.toml"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def backend(config: Config) -> ScriptedBackend:
        return ScriptedBackend(missing=config.model.name == "nobody")

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", Path(os.devnull).open())  # noqa: SIM115
        code = main(argv, backends=Backends(backend, backend))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def rows(run: Run, *argv: str) -> list[dict[str, Any]]:
    code, out, _ = run(*argv, "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def test_c_goes_on_with_the_latest_session(run: Run) -> None:
    run("-p", "one")
    assert run("-c", "-p", "two")[1] == "[3] you said: two\n"
    (row,) = rows(run, "sessions", "ls")
    assert (row["title"], row["turns"]) == ("one", 2)


def test_r_goes_on_with_a_session_by_the_beginning_of_its_id(run: Run) -> None:
    run("-p", "one")
    run("-p", "other")
    first = rows(run, "sessions", "ls")[1]
    assert run("-r", first["id"][:5], "-p", "two")[1] == "[3] you said: two\n"
    assert [row["title"] for row in rows(run, "sessions", "ls")] == ["one", "other"]


def test_fork_leaves_the_session_as_it_was(run: Run) -> None:
    run("-p", "one")
    run("-c", "--fork", "-p", "two")
    assert [row["turns"] for row in rows(run, "sessions", "ls")] == [2, 1]


def test_a_resumed_session_keeps_its_model_and_system_prompt_unless_told_otherwise(run: Run) -> None:
    run("-m", "nobody", "-p", "x")
    run("-m", "first", "-s", "be brief", "-p", "one")
    assert run("-c", "-p", "two")[1] == "[4] you said: two\n"
    assert rows(run, "sessions", "ls")[0]["model"] == "first"
    run("-c", "-m", "second", "-s", "be long", "-p", "three")
    shown = json.loads(run("sessions", "show", "--json")[1])
    assert (shown["model"], shown["messages"][0]["content"]) == ("second", "be long")
    assert [m["model"] for m in shown["messages"] if "model" in m] == ["first", "first", "second"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("-c",), "there are no sessions yet"),
        (("-r", "none"), "no session is called 'none'"),
        (("--fork",), "--fork needs a session to branch from"),
    ],
)
def test_what_can_not_be_resumed_is_one_line(run: Run, argv: tuple[str, ...], said: str) -> None:
    code, out, err = run(*argv, "-p", "x")
    assert (code, out, err.count("\n"), said in err) == (2, "", 1, True)


@pytest.mark.parametrize("spoilt", ["\n", "\r", "\u2028", "\x85"])
def test_a_name_in_an_old_file_makes_no_line_of_its_own(run: Run, tmp_path: Path, spoilt: str) -> None:
    run("-p", "one")
    with closing(sqlite3.connect(tmp_path / "DATA" / "kvchat.db", isolation_level=None)) as db:
        db.execute("UPDATE session SET name = ?", (f"mine{spoilt}0123456789ab  another",))
    (line,) = run("sessions", "ls")[1].splitlines()
    assert line.endswith("mine⏎0123456789ab  another")
    (line,) = run("sessions", "rm", "latest")[1].splitlines()
    assert line.endswith("mine⏎0123456789ab  another")


def test_no_save_writes_nothing(run: Run, tmp_path: Path) -> None:
    run("--no-save", "-p", "one")
    assert not (tmp_path / "DATA").exists()
    run("-p", "one")
    assert run("--no-save", "-c", "-p", "two")[1] == "[3] you said: two\n"
    assert [row["turns"] for row in rows(run, "sessions", "ls")] == [1]


def test_sessions_are_searched_shown_and_removed(run: Run) -> None:
    run("-p", "the quick fox")
    run("-p", "something else")
    (hit,) = rows(run, "sessions", "search", "QUICK", "fox")
    assert (hit["title"], hit["text"]) == ("the quick fox", "the quick fox")
    assert "# something else\n\n## User" in run("sessions", "show")[1]
    assert run("sessions", "rm", "nothing", hit["id"])[0] == 2
    assert run("sessions", "rm", hit["id"])[1] == f"removed {hit['id']}  the quick fox\n"
    assert [row["title"] for row in rows(run, "sessions", "ls")] == ["something else"]


def test_looking_for_sessions_creates_none(run: Run, tmp_path: Path) -> None:
    assert run("sessions", "ls") == (0, "", "")
    assert run("sessions", "search", "x") == (0, "", "")
    assert run("sessions", "show")[0] == 2
    assert run("sessions", "rm", "x")[0] == 2
    assert not (tmp_path / "DATA").exists()


def test_a_session_is_removed_also_where_none_is_saved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("-p", "one")
    monkeypatch.setenv("KVCHAT_SAVE", "no")
    (row,) = rows(run, "sessions", "ls")
    assert run("sessions", "rm", row["id"])[0] == 0
    assert rows(run, "sessions", "ls") == []


def test_an_export_is_private_and_its_html_is_escaped(run: Run, tmp_path: Path) -> None:
    run("-p", "<script>alert(1)</script>")
    page = tmp_path / "page.html"
    assert run("sessions", "export", "--format", "html", "--output", str(page))[0] == 0
    assert "&lt;script&gt;" in page.read_text()
    assert "<script" not in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert run("sessions", "export", "--output", str(tmp_path / "no" / "file"))[0] == 2


def test_an_export_overwrites_no_file_and_goes_to_a_device(run: Run, tmp_path: Path) -> None:
    run("-p", "hello")
    page = tmp_path / "page.md"
    page.write_text("precious")
    code, _, err = run("sessions", "export", "--output", str(page))
    assert code == 2
    assert "already exists: name another file; nothing is overwritten" in err
    assert page.read_text() == "precious"
    assert run("sessions", "export", "--output", "/dev/null")[0] == 0


def test_the_ids_of_the_prompt_are_told_who_asks_for_them(run: Run) -> None:
    lines = run("--json", "--tokens", "-p", "hello you")[1].splitlines()
    (report,) = [json.loads(line) for line in lines]
    assert report["tokens"]["prompt"] == [0, 1]


def test_a_saved_prompt_begins_a_conversation(run: Run, tmp_path: Path) -> None:
    (tmp_path / "work" / "prompts").mkdir()
    text = "---\ndescription: x\noptions: {max_tokens: 2}\nvars: {who: }\n---\nYou are {{ who }}."
    (tmp_path / "work" / "prompts" / "pirate.md").write_text(text)
    run("prompts", "trust")
    assert run("-t", "pirate", "--var", "who=Ann", "-p", "slow 5")[1] == "word0 word1 \n"
    assert (
        run("-t", "pirate", "--var", "who=Ann", "--max-tokens", "3", "-p", "slow 5")[1].split()[-1] == "word2"
    )
    shown = json.loads(run("sessions", "show", "--json")[1])
    assert shown["messages"][0]["content"] == "You are Ann."
    for argv in (("-t", "pirate"), ("-t", "pirat"), ("-t", "pirate", "-s", "x"), ("--var", "a=b")):
        assert run(*argv, "-p", "x")[0] == 2


def test_prompts_are_made_listed_linted_and_removed(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "config" / "prompts" / "mine.md"
    assert run("prompts", "new", "mine")[1] == f"{own}\n"
    modes = [path.stat().st_mode & 0o777 for path in (own, own.parent, own.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    assert run("prompts", "new", "mine")[0] == 2
    assert run("prompts", "path", "mine")[1] == f"{own}\n"
    own.write_text("---\ndescription: Mine\n---\n{{ today() }} and so on")
    assert {"name": "mine", "shelf": "yours", "path": str(own), "description": "Mine", "error": None} in rows(
        run, "prompts", "ls"
    )
    code, out, _ = run("prompts", "lint", "mine")
    assert (code, out.startswith(f"{own}:4: the clock today()")) == (1, True)
    assert run("prompts", "rm", "mine")[0] == 0
    assert run("prompts", "show", "mine")[0] == 2
    assert "is not among your own prompts" in run("prompts", "rm", "git")[2]


def test_a_broken_prompt_is_listed_with_what_is_wrong(run: Run, tmp_path: Path) -> None:
    (tmp_path / "work" / "prompts").mkdir()
    (tmp_path / "work" / "prompts" / "broken.md").write_text("---\nno end")
    (tmp_path / "work" / "prompts" / "bare.md").write_text("You are brief.")
    run("prompts", "trust")
    (row,) = [row for row in rows(run, "prompts", "ls") if row["name"] == "broken"]
    assert "line 1: the head is never closed" in row["error"]
    lines = {line.split()[0]: line for line in run("prompts", "ls")[1].splitlines()}
    assert "! " in lines["broken"]
    assert lines["bare"].split() == ["bare", "here"]


def test_a_shipped_prompt_is_edited_as_a_copy(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "config" / "prompts" / "git.md"
    assert run("prompts", "edit", "git")[1] == f"{own}\n"
    assert "handbook" in own.read_text()


def test_what_a_model_said_is_harmless_in_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("-p", "say fine\x1b]0;title\x07\\x1b]0;title\\x07")
    for argv in (("show",), ("export",), ("search", "fine"), ("ls",)):
        assert "\x1b" in run("sessions", *argv)[1], argv
    monkeypatch.setattr("kvchat.commands.terminal.is_terminal", lambda: True)
    for argv in (("show",), ("export",), ("search", "fine"), ("ls",)):
        shown = run("sessions", *argv)[1]
        assert "fine" in shown
        assert "\x1b" not in shown
