"""Conversations on disk: what is kept, and what becomes of it after damage, kills and other processes."""

import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import CacheReport, Options, Role, Turn
from kvchat.backends.inspection import CacheTotals
from kvchat.chat.session import Session
from kvchat.chat.store import SessionRow, Store
from kvchat.chat.tree import Exchange, title_of
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


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def damage_header(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)


def damage_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(bytes(content))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


def child(path: Path, body: str) -> subprocess.Popen[str]:
    code = (
        "import sys\nfrom pathlib import Path\nfrom kvchat.chat.session import Session\n"
        "from kvchat.chat.store import Store\nfrom tests.scripted import ScriptedBackend\n"
        "session = Session(ScriptedBackend(), store=Store(Path(sys.argv[1])))\n" + body
    )
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_nothing_is_opened_before_something_is_said(path: Path) -> None:
    Session(ScriptedBackend(), store=Store(path))
    assert not path.parent.exists()


def test_the_files_are_private(path: Path) -> None:
    session = talk(path, "hello")
    assert mode(path.parent) == 0o700
    assert {mode(file) for file in path.parent.iterdir()} == {0o600}
    session.close()
    assert [file.name for file in path.parent.iterdir()] == ["kvchat.db"]


def test_a_session_knows_its_turns_and_tokens(path: Path) -> None:
    talk(path, "one", "two words")
    row = Store(path).session()
    assert (row.num_exchanges, row.num_tokens, row.title) == (2, 7 + 3, "one")


def test_sampling_options_are_kept_with_what_was_asked(path: Path) -> None:
    options = Options(temperature=0.5, stop=("a", "b"))
    session = Session(ScriptedBackend(), options, store=Store(path))
    session.ask("hello")
    exchange = Store(path).exchanges(Store(path).session().tree)[0]
    assert exchange.options == options


def test_ids_of_two_tokenizers_stand_beside_each_other(path: Path) -> None:
    session = talk(path, "hello")
    tip = session.tip
    assert tip
    assert tip.answer
    Store(path).add_token_ids(tip.id, "letters", (70000, 2**31 - 1))
    assert Store(path).token_ids(tip.id) == {"words": (0, 1, 2), "letters": (70000, 2**31 - 1)}
    exchange = Store(path).exchanges(Store(path).session().tree)[0]
    assert exchange.turns[1].tokens == (0, 1, 2)
    assert exchange.turns_for("words")[1].tokens == (0, 1, 2)
    assert exchange.turns_for("letters")[1].tokens == (70000, 2**31 - 1)


def test_an_answer_that_goes_on_has_the_ids_of_all_of_it_alone(path: Path) -> None:
    tip = talk(path, "hello").tip
    assert tip
    assert tip.answer
    store = Store(path)
    store.add_token_ids(tip.id, "letters", (7,))
    store.save_answer(
        store.session(), [replace(tip, answer=replace(tip.answer, text="more", completion=(1, 2)))]
    )
    assert store.token_ids(tip.id) == {"words": (1, 2)}


def test_a_session_is_found_by_name_id_and_the_beginning_of_its_id(path: Path) -> None:
    first = talk(path, "one", name="holiday")
    second = talk(path, "two")
    store = Store(path)
    assert store.session().id == second.id
    for key in ("holiday", first.id, first.id[:6]):
        assert store.session(key).id == first.id
    with pytest.raises(UsageError, match="did you mean 'holiday'"):
        store.session("holidya")
    with pytest.raises(UsageError, match="no session is called 'x%'"):
        store.session("x%")


def test_an_ambiguous_beginning_is_refused(path: Path) -> None:
    store = Store(path)
    for number in range(2):
        exchange = Exchange(f"e{number}", None, Turn(Role.USER, "hello"))
        assert store.move(SessionRow(f"abcd{number}", f"t{number}"), [exchange], None)
    with pytest.raises(UsageError, match="beginning of 2"):
        store.session("abcd")


def test_an_empty_store_says_how_to_begin(path: Path) -> None:
    with pytest.raises(UsageError, match="no sessions yet"):
        Store(path).session()


def test_deleting_a_session_spares_the_tree_that_a_fork_shares(path: Path) -> None:
    session = talk(path, "one", "two")
    first, tree = session.id, Store(path).session().tree
    session.fork()
    store = Store(path)
    store.delete(first)
    assert [row.id for row in store.sessions()] == [session.id]
    assert len(store.exchanges(tree)) == 2
    store.delete(session.id)
    assert (store.sessions(), store.exchanges(tree)) == ([], [])


def test_a_session_deleted_elsewhere_is_saved_again_as_it_goes_on(path: Path) -> None:
    session = talk(path, "one")
    Store(path).delete(session.id)
    session.ask("two")
    row = Store(path).session()
    assert (row.id, row.num_exchanges) == (session.id, 2)


def test_totals_add_up_over_processes(path: Path) -> None:
    talk(path, "one two", "three").close()
    Store(path).add_totals(CacheTotals(tier_tokens={"ram": 5}, saved_s=0.5))
    totals = Store(path).totals()
    assert (totals.asked_tokens, totals.live_tokens, totals.tier_tokens["ram"], totals.saved_s) == (
        2 + 8,
        7,
        5,
        0.5,
    )


def test_a_title_is_the_first_line_and_not_longer_than_sixty_characters() -> None:
    assert title_of("\n  What is\ta cache? \nmore") == "What is a cache?"
    assert title_of("x" * 60) == "x" * 60
    assert title_of("x" * 61) == "x" * 59 + "…"
    assert title_of("") == ""


@pytest.mark.parametrize("damage", [damage_header, damage_pages, cut_off])
def test_a_damaged_file_is_set_aside_with_one_warning(
    path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    talk(path, "hello").close()
    damage(path)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "kvchat"):
        assert Store(path).sessions() == []
    assert len(caplog.records) == 1
    assert "is damaged" in caplog.text
    assert [file.name.startswith("kvchat.db.damaged-") for file in sorted(path.parent.iterdir())].count(
        True
    ) == 1
    talk(path, "again")
    assert [row.title for row in Store(path).sessions()] == ["again"]


def test_a_file_damaged_while_it_is_used_costs_nothing_of_the_open_session(path: Path) -> None:
    session = talk(path, "one", "two")
    session.store.close()
    damage_pages(path)
    session.ask("three")
    assert [exchange.user.text for exchange in session.path] == ["one", "two", "three"]
    assert Store(path).session().num_exchanges == 3


def test_threads_share_a_store(path: Path) -> None:
    session = talk(path, "one")
    threads = [threading.Thread(target=session.store.sessions) for _ in range(4)]
    for thread in threads:
        thread.start()
    session.ask("two")
    for thread in threads:
        thread.join()
    assert Store(path).session().num_exchanges == 2


def test_kill_in_mid_answer_loses_no_message_and_at_most_a_second_of_text(path: Path) -> None:
    body = (
        "session.ask('before')\n"
        "for number, text in enumerate(session.stream('slow 1000')):\n"
        "    print(number, flush=True)\n"
    )
    with child(path, body) as process:
        assert process.stdout
        num_seen = 0
        while num_seen < 70:  # 20 ms a word: at least two savings, a second apart
            num_seen = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    session = Session(ScriptedBackend(), store=Store(path))
    session.resume()
    assert [exchange.user.text for exchange in session.path] == ["before", "slow 1000"]
    assert session.last
    words = session.last.text.split()
    assert len(words) >= num_seen - 60
    assert words == [f"word{n}" for n in range(len(words))]
    assert session.ask("after") == "[5] you said: after"


def test_two_processes_write_at_once(path: Path) -> None:
    body = "for number in range(20): session.ask(f'message {number}')\n"
    processes = [child(path, body) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert [row.num_exchanges for row in Store(path).sessions()] == [20, 20]
    for process in processes:
        assert process.stdout
        process.stdout.close()


def test_a_report_of_before_tiers_had_names_in_it_is_read_with_its_tiers() -> None:
    from kvchat.chat.rows import exchange_from_row

    def report(cache: str) -> CacheReport:
        row = (
            "e",
            None,
            "hi",
            "m",
            "{}",
            1.0,
            0,
            None,
            "hello",
            "",
            "stop",
            f'{{"cache": {cache}}}',
            "t",
            b"",
        )
        answer = exchange_from_row(row, {}).answer
        assert answer is not None
        return answer.cache

    old = '{"live": 5, "ram": 16, "disk": 32, "diverged_at": 53, "reason": "new text"}'
    assert report(old) == CacheReport(5, {"ram": 16, "disk": 32}, 53, "new text")
    assert report('{"live": 5, "tiers": {"attic": 3, "ram": "x"}}') == CacheReport(5, {"attic": 3}, 0, "")
    assert report('{"live": 5, "tiers": [1]}').tiers == {}


def test_of_a_tree_only_the_exchanges_that_are_not_known_are_read(tmp_path: Path) -> None:
    session = Session(ScriptedBackend(), store=Store(tmp_path / "kvchat.db"))
    for number in range(5):
        session.ask(f"message {number}")
    ids = [exchange.id for exchange in session.path]
    tree = session.store.session(session.id).tree
    assert [each.id for each in session.store.exchanges(tree, ids[:3])] == ids[3:]
    assert session.store.exchanges(tree, ids) == []
    assert [each.id for each in session.store.exchanges(tree)] == ids
