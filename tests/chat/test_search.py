"""Search in what was said."""

from pathlib import Path

import pytest

from kvchat.chat import database
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.errors import UsageError
from tests.scripted import ScriptedBackend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "kvchat.db"


def talk(path: Path, *texts: str, name: str | None = None) -> Session:
    session = Session(ScriptedBackend(), store=Store(path))
    session.new(name)
    for text in texts:
        session.ask(text)
    return session


@pytest.mark.parametrize("words", ["fox", "QUICK bro", "cafe", "answer", '"fox', "fox*"])
def test_search_finds_words_in_messages_and_answers(path: Path, words: str) -> None:
    session = talk(path, "the quick brown fox in the café", "say the answer", "nothing of it")
    found = Store(path).search(words)
    assert [row.id for row, _ in found] == [session.id]


def test_a_character_that_ends_a_text_for_sqlite_parts_words_and_leaves_the_file_as_it_is(path: Path) -> None:
    session = talk(path, "the quick brown fox")
    session.close()
    before = path.stat().st_ino, path.read_bytes()
    store = Store(path)
    assert [row.id for row, _ in store.search("quick\0fox")] == [session.id]
    assert store.search("quick\0cat") == []
    with pytest.raises(UsageError, match="nothing to look for"):
        store.search("\0")
    store.close()
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_search_follows_what_changes(path: Path) -> None:
    session = talk(path, "one")
    session.undo()
    store = Store(path)
    assert store.search("said")
    store.delete(session.id)
    assert store.search("said") == []


@pytest.mark.parametrize("is_indexed", [True, False])
def test_search_looks_at_every_text_where_words_are_not_spaced(path: Path, is_indexed: bool) -> None:
    talk(path, "日本語の文章です", "100% of a_b", "100 of acb")
    store = Store(path)
    store.database = database.Database(path, full_text=is_indexed)
    assert [hit.text for _, hit in store.search("文章")] == ["日本語の文章です"]
    if not is_indexed:
        assert len(store.search("100% a_b")) == 1
        assert [hit.text for _, hit in store.search("said 100%")] != []


def test_a_file_written_without_the_index_is_indexed_again(path: Path) -> None:
    store = Store(path)
    store.database = database.Database(path, full_text=False)
    Session(ScriptedBackend(), store=store).ask("the fox")
    assert not store.database.is_indexed
    store.close()
    assert [hit.text for _, hit in Store(path).search("fox")] == ["the fox"]


@pytest.mark.parametrize("words", ["", "  ", '"', "%"])
def test_a_search_for_nothing_is_refused(path: Path, words: str) -> None:
    talk(path, "hello")
    with pytest.raises(UsageError, match="nothing to look for"):
        Store(path).search(words)
