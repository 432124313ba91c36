"""Files as parts of messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvchat.errors import UsageError
from kvchat.ui.files import MAX_BYTES, file_part, with_files


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_is_no_file_stays_a_word() -> None:
    for text in ("write to a@b.org", "ask @alice", "@", '@"" and @/', "@\0"):
        assert with_files(text) == text


@pytest.mark.parametrize("mention", ["@a b.txt", '@"a b.txt"', "(@a.txt)", "@a.txt.", "see @a.txt, then"])
def test_quotes_and_punctuation_around_a_name(mention: str) -> None:
    Path("a.txt").write_text("plain")
    Path("a b.txt").write_text("spaced")
    found = [name for name in ("a.txt", "a b.txt") if f"## {name}\n" in with_files(mention)]
    assert found == {"@a b.txt": [], '@"a b.txt"': ["a b.txt"], "(@a.txt)": []}.get(mention, ["a.txt"])


def test_a_file_is_added_once_even_if_the_message_is_edited_later() -> None:
    Path("a.txt").write_text("plain")
    once = with_files("@a.txt and @a.txt")
    assert once.count("plain") == 1
    assert with_files(once) == once


def test_a_fence_is_longer_than_any_in_the_file() -> None:
    Path("a.md").write_text("````\ncode\n````\n")
    assert file_part("a.md") == "## a.md\n\n`````\n````\ncode\n````\n`````"


def test_no_text_and_too_much_are_refused() -> None:
    Path("picture").write_bytes(b"\x00\x01")
    Path("latin").write_bytes("naïve".encode("latin-1"))
    Path("huge").write_text("x" * (MAX_BYTES + 1))
    for name, words in (
        ("picture", "is not a text file"),
        ("latin", "is not a text file"),
        ("huge", "larger than 256 KiB"),
    ):
        with pytest.raises(UsageError, match=words):
            with_files(f"@{name}")
    with pytest.raises(UsageError, match="No such file"):
        file_part("nothing")
    with pytest.raises(UsageError, match="Is a directory"):
        file_part(".")
