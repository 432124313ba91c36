"""`@` with a folder or a pattern: which files it stands for, and that the user sees their size before they are sent."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvchat.errors import UsageError
from kvchat.ui.mentions import MAX_FILES, mentioned_files, mentions_several
from tests.ui.terminal import Terminal


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("src/b.py", "src/a.py", "src/deep/c.py", "src/.hidden.py", "src/__pycache__/a.py", "top.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    (tmp_path / "src" / "picture.png").write_bytes(b"\x89PNG\0\xff\xfe" * 50)
    (tmp_path / "src" / "umlauts.txt").write_text("ä" * 5000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("see @src", ["src/a.py", "src/b.py", "src/umlauts.txt", "src/deep/c.py"]),
        ("see @src/, please", ["src/a.py", "src/b.py", "src/umlauts.txt", "src/deep/c.py"]),
        ("see @src/*.py.", ["src/a.py", "src/b.py"]),
        ("@src/**/*.py", ["src/a.py", "src/b.py", "src/deep/c.py"]),
        ("@top.md and @src/b.py and @top.md", ["top.md", "src/b.py"]),
        ("@src/b.py first, then @src/*.py", ["src/b.py", "src/a.py"]),
        ('in @"src/deep" only', ["src/deep/c.py"]),
        ("mail me@src or @nobody or @*.zip", []),
        ("what is @src/picture.png", ["src/picture.png"]),
    ],
)
def test_a_mention_stands_for_these_files_in_this_order(tree: Path, text: str, files: list[str]) -> None:
    assert mentioned_files(text) == files


def test_only_folders_and_patterns_are_several(tree: Path) -> None:
    for text in ("@src", "@src/", "@src/*.py", "@*.zip", 'x @"src"'):
        assert mentions_several(text), text
    for text in ("@top.md", "@top.md?", "@nobody", "plain", "a * b", "me@src"):
        assert not mentions_several(text), text


def test_too_many_files_are_refused_before_any_is_read(tree: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tree / "src" / f"{number}.txt").write_text("x")
    with pytest.raises(UsageError, match=f"more than {MAX_FILES} files"):
        mentioned_files("@src")


PIECES = [
    "@",
    "src",
    "/",
    "*",
    "**",
    "a",
    ".py",
    "top.md",
    "deep",
    '"',
    " ",
    "?",
    "[",
    "]",
    ".",
    "~",
    "\n",
    "\0",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(typed=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_whatever_is_typed_names_files_or_nothing(tree: Path, typed: str) -> None:
    text = re.sub(r"(?<=[@\"])/+|\.\.+", "", typed)  # within the folder
    names = mentioned_files(text)
    assert all((tree / name).is_file() for name in names) and len(set(names)) == len(names)
    assert not any(Path(name).name.startswith(".") or "__pycache__" in name for name in names)
    assert not names or re.search(r"(?<!\S)@", text)
    assert mentions_several(text) or len(names) <= text.count("@")


def test_a_folder_is_sent_by_a_second_enter_once_its_size_was_said(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "one.txt").write_text("remember the milk")
    (folder / "two.txt").write_text("and the bread")
    terminal = Terminal(tmp_path).ready()
    terminal.enter(f"count what @{folder} says")
    terminal.wait_for("with 2 files it has ")
    assert "you said" not in "\n".join(terminal.rows)
    terminal.type("\r")
    terminal.settle()
    assert "\n".join(terminal.rows).count("the bread") == 1, "it is in the answer, and not echoed"
    assert [row for row in terminal.rows if row.startswith("> count what @")]
    terminal.leave()


def test_whoever_changes_the_message_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("remember the milk")
    terminal = Terminal(tmp_path).ready()
    terminal.enter(f"count @{tmp_path}/*.txt")
    terminal.wait_for("with 1 file it has ")
    terminal.type(" now")
    terminal.until(lambda: not any("with 1 file" in row for row in terminal.visible), "the line to go")
    terminal.type("\x03")
    terminal.leave()
