"""Conversations in a file that was damaged at random: every command ends with one line at most and a known exit code."""

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.cli import main
from kvchat.commands.chat import Backends
from tests.scripted import ScriptedBackend

NUM_FUZZED, NUM_BY_DEFAULT = 500, 6  # one of each kind of damage
COMMANDS = (
    ("sessions", "ls"),
    ("sessions", "ls", "--json"),
    ("sessions", "show", "kept"),
    ("sessions", "search", "fox"),
    ("sessions", "search", "文章"),
    ("-c", "-p", "on"),
    ("-r", "kept", "--fork", "-p", "on"),
    ("-p", "hello"),
    ("sessions", "export", "--format", "html"),
    ("sessions", "rm", "broken"),
    ("sessions", "ls"),
)
VALUES = (
    None, "", "x", "{", "[]", "[" * 5000, '{"stop": 7, "seed": "x", "temperature": 1e999}', "\x1b[31m", -1, 0, 2**62,
    1e308, float("inf"), b"\xff\xfe\x00", b"abc", '{"usage": {"prompt_tokens": null, "x": 1}, "timings": [], "cache": 3}',
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sessions, one of them forked from another."""
    path = tmp_path_factory.mktemp("sound") / "kvchat.db"
    with Session(ScriptedBackend(), store=Store(path)) as session:
        for name in ("kept", "broken"):
            session.new(name)
            for text in ("the quick fox", "日本語の文章です", "think of it", "slow 1"):
                session.ask(text)
        session.undo()
        session.fork("forked")
        session.ask("another way")
    return path


def flip_bytes(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 3, 20, 200))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(bytes(content))


def spoil_a_page(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = 4096 * chance.randrange(len(content) // 4096)
    other = 4096 * chance.randrange(len(content) // 4096)
    content[start : start + 4096] = chance.choice(
        (bytes(4096), chance.randbytes(4096), content[other : other + 4096])
    )
    path.write_bytes(bytes(content))


def cut_off(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def spoil_the_schema(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 5))):
        content[chance.randrange(100, 4096)] = chance.choice((0xFF, 0xC3, 0x00, 0x29, 0x41))
    path.write_bytes(bytes(content))


def spoil_values(path: Path, chance: random.Random) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        tables = "exchange", "session", "token_ids", "counter", "kv_tip", "exchange_text_data"
        for _ in range(chance.choice((1, 4, 12))):
            table = chance.choice(tables)
            column = chance.choice([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
            ids = [
                row
                for (row,) in db.execute(f"SELECT {'name' if table == 'counter' else 'rowid'} FROM {table}")
            ]
            where = "name" if table == "counter" else "rowid"
            with suppress(sqlite3.Error):
                value, which = chance.choice(VALUES), chance.choice(ids or [0])
                db.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {where} = ?", (value, which))
        db.commit()


def break_the_tree(path: Path, chance: random.Random) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        ids = [row for (row,) in db.execute("SELECT id FROM exchange")]
        for _ in range(chance.choice((1, 2, 5))):
            child, parent = chance.choice(ids), chance.choice([*ids, "missing", None])
            if chance.random() < 0.5:
                db.execute("UPDATE exchange SET parent = ? WHERE id = ?", (parent, child))
            else:
                db.execute("DELETE FROM exchange WHERE id = ?", (child,))
        db.commit()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flip_bytes, spoil_a_page, cut_off, spoil_the_schema, spoil_values, break_the_tree,
)  # fmt: skip


def check(number: int, sound: Path, folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    path = folder / "data" / "kvchat.db"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    shutil.copy(sound, path)
    DAMAGES[number % len(DAMAGES)](path, random.Random(number))
    for argv in COMMANDS:
        code, _, err = run(*argv)
        said = [line for line in err.splitlines() if line and "is damaged (" not in line]
        assert code in (0, 1, 2), (number, argv, code, err)
        assert len(said) <= 1, (number, argv, err)
        assert "internal error" not in err, (number, argv, err)
    assert run("-p", "a message more")[0] == 0, (number, "a new conversation")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    for name in ("MODELS", "CACHE_DIR", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setenv("KVCHAT_DATA", str(tmp_path / "data"))

    def run(*argv: str) -> tuple[int, str, str]:
        with Path("/dev/null").open() as nothing:
            monkeypatch.setattr("sys.stdin", nothing)
            code = main(argv, backends=Backends(lambda _: ScriptedBackend(), lambda _: ScriptedBackend()))
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run


def test_a_damaged_database_costs_one_line(
    sound: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    for number in range(NUM_BY_DEFAULT):
        check(number, sound, tmp_path, run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_damaged_databases_cost_one_line_each(
    sound: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    for number in range(NUM_BY_DEFAULT, NUM_FUZZED):
        check(number, sound, tmp_path, run)
