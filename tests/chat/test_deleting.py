"""Deleted is gone: what only a removed session had stands neither in the file, nor in its index, nor in the cache."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvchat.backends.local import LocalBackend
from kvchat.cache.maintenance import read_tokens
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.cli import main
from kvchat.config import Config
from kvchat.models.kinds import GENERATED
from tests.scripted import ScriptedBackend

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name, folder in {
        "MODELS": "models",
        "CACHE_DIR": "cache",
        "DATA": "data",
        "CONFIG": "none.toml",
    }.items():
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / folder))

    def run(*argv: str) -> tuple[int, str]:
        return main(argv), capsys.readouterr().out

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def talk(data: Path, name: str, *texts: str) -> Session:
    session = Session(ScriptedBackend(), store=Store(data / "kvchat.db"))
    session.new(name)
    for text in texts:
        session.ask(text)
    return session


def stands_in(data: Path, word: str) -> bool:
    return any(word.encode() in file.read_bytes() for file in data.iterdir())


def test_the_text_of_a_removed_session_stands_nowhere_in_the_file(run: Run, data: Path) -> None:
    other = talk(data, "kept", "harmless")
    talk(data, "secret", *(f"xylophone{n} {'long ' * 300}" for n in range(30))).close()
    assert stands_in(data, "xylophone")
    assert run("sessions", "rm", "secret")[0] == 0
    assert not stands_in(data, "xylophone")
    assert not stands_in(data, "ylophone")
    other.ask("more")
    assert run("sessions", "search", "harmless")[1].count("\n") == 1
    assert run("sessions", "search", "xylophone29") == (0, "")


def test_what_another_session_shares_stays_and_is_named(run: Run, data: Path) -> None:
    session = talk(data, "first", "shared", "also")
    session.fork("second")
    session.ask("marimba")
    code, out = run("sessions", "rm", "second")
    assert (code, out.splitlines()[1]) == (0, "  its first 2 turns stay, because first began with them")
    assert not stands_in(data, "marimba")
    assert stands_in(data, "also")
    assert json.loads(run("sessions", "show", "--json", "first")[1])["turns"] == 2


def test_branches_behind_what_is_removed_go_too(run: Run, data: Path) -> None:
    session = talk(data, "first", "shared")
    session.fork("second")
    session.ask("tail")
    session.ask("marimba")
    session.undo(1)
    session.ask("celesta")
    run("sessions", "rm", "second")
    assert not any(stands_in(data, word) for word in ("marimba", "celesta", "tail"))


def test_where_it_may_still_stand_is_said(run: Run, data: Path) -> None:
    talk(data, "secret", "hello").close()
    (data / "history").write_text("+hello\n")
    (data / "kvchat.db.damaged-20260101-000000").write_text("x")
    last = run("sessions", "rm", "secret")[1].splitlines()[-1]
    assert last.startswith("the text may still be in ")
    assert str(data / "history") in last
    assert "damaged-20260101" in last


def test_nothing_is_removed_if_one_is_not_there(run: Run, data: Path) -> None:
    talk(data, "one", "hello").close()
    assert run("sessions", "rm", "one", "nobody")[0] == 2
    assert run("sessions", "rm", "one", "one")[0] == 0
    assert run("sessions", "rm", "one")[0] == 2


@pytest.fixture
def local(make_config: Callable[..., Config], data: Path) -> Iterator[Session]:
    config = make_config(sampling__max_tokens=20)
    with Session.from_config(LocalBackend(config), config) as session:
        yield session


BLOCK_TOKENS = 16


def stored(folder: Path) -> list[tuple[int, ...]]:
    return [read_tokens(file) for file in (folder / "cache").rglob("*.kv")]


def holds(folder: Path, tokens: tuple[int, ...]) -> bool:
    """Whether ids stand in a file of the cache, as ids or anywhere in its bytes."""
    packed = struct.pack(f"<{len(tokens)}i", *tokens)
    files = [file for file in (folder / "cache").rglob("*") if file.is_file()]
    return any(packed in text for file in files for text in _texts(file.read_bytes()))


def _a_block(tokens: tuple[int, ...]) -> tuple[int, ...]:
    """The last block of some tokens, which one file holds whole."""
    end = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
    return tokens[end - BLOCK_TOKENS : end]


def _texts(content: bytes) -> Iterator[bytes]:
    """A file's bytes, and with the ids in them freed from their kind, wherever a word begins."""
    yield content
    for start in range(min(4, len(content))):
        words = np.frombuffer(content, "<i4", (len(content) - start) // 4, start)
        yield (words & ~GENERATED).tobytes()


def test_the_ids_of_a_removed_session_stand_in_no_file_of_the_cache(
    run: Run, local: Session, tmp_path: Path
) -> None:
    ids: dict[str, tuple[int, ...]] = {}
    for name, said in (("kept", "the quick brown fox"), ("secret", "a lazy dog jumps over")):
        local.new(name)
        for _ in range(2):
            local.ask(f"{said} " * 8)
        assert local.last
        ids[name] = _a_block(local.last.prompt[:60])
    local.fork("forked")
    local.ask("and so on " * 8)
    assert local.last
    tail = _a_block(local.last.prompt[:-20])
    local.close()
    assert all(holds(tmp_path, each) for each in (*ids.values(), tail))
    assert run("sessions", "rm", "forked")[0] == 0
    assert not holds(tmp_path, tail)
    assert all(holds(tmp_path, each) for each in ids.values())
    assert run("sessions", "rm", "secret")[0] == 0
    assert holds(tmp_path, ids["kept"])
    assert not holds(tmp_path, ids["secret"])
    assert stored(tmp_path)
    warm = json.loads(run("sessions", "ls", "--json")[1])["tokens_warm"]
    assert warm >= 60
