"""Clients that find one engine, or start it; in every test they have a runtime folder of their own."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Done, FinishReason, Notice, Options, Text, Turn
from kvchat.backends.local import LocalBackend
from kvchat.backends.process import ProcessBackend
from kvchat.backends.resident.asking import Resident, residents, stop
from kvchat.backends.resident.attaching import AttachedEngine, Attaching
from kvchat.backends.resident.identity import key_of, place_of
from kvchat.backends.resident.place import last_line, socket_folder
from kvchat.config import Config
from tests.backends.resident.sharing import answered, clients, is_alive, kept, kill_all, user, wait_until
from tests.tiny import tiny_config


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return kept(make_config(), 60)


@pytest.fixture
def client(config: Config) -> Iterator[Callable[..., ProcessBackend]]:
    with clients(config) as make:
        yield make


@pytest.fixture(scope="module")
def standing(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Settings whose engine goes on from test to test: an engine takes long to start."""
    config = kept(tiny_config(tiny_path, tmp_path_factory.mktemp("standing")), 300)
    yield config
    kill_all(config.paths.runtime)


@pytest.fixture
def visitor(standing: Config) -> Iterator[Callable[..., ProcessBackend]]:
    with clients(standing, ends=False) as make:
        yield make


@pytest.fixture(scope="module")
def talkative(long_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """The same with a model whose answers do not end by themselves."""
    config = kept(tiny_config(long_path, tmp_path_factory.mktemp("talkative")), 300)
    yield config
    kill_all(config.paths.runtime)


def engines(config: Config) -> list[Resident]:
    return residents(config.paths.runtime)


def test_the_second_client_attaches_to_the_first_ones_engine(
    visitor: Callable[..., ProcessBackend], standing: Config
) -> None:
    first, second = visitor(), visitor()
    assert answered(first, [user("hello")]).completion == answered(second, [user("hello")]).completion
    assert first.pid == second.pid != os.getpid()
    (engine,) = engines(standing)
    assert engine.about is not None
    assert engine.pid == engine.about.pid == first.pid
    assert engine.about.clients == (os.getpid(), os.getpid())
    assert engine.about.memory_bytes > engine.about.live_bytes > 0


def test_the_socket_is_its_users_alone(visitor: Callable[..., ProcessBackend], standing: Config) -> None:
    visitor().info()
    (engine,) = engines(standing)
    assert stat.S_IMODE(engine.place.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(engine.place.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(engine.place.log.stat().st_mode) == 0o600


def test_an_engine_outlives_its_clients_and_is_warm_for_the_next(
    visitor: Callable[..., ProcessBackend], standing: Config
) -> None:
    first = visitor()
    history = [user("the quick brown fox jumps over the lazy dog " * 3)]
    said = answered(first, history)
    pid = first.pid
    first.close()
    second = visitor()
    again = answered(second, [*history, said.turn(), user("and")])
    assert second.pid == pid
    assert again.usage.cached_tokens >= len(said.prompt) // 16 * 16 > 0


def test_it_ends_when_nobody_is_attached_for_as_long_as_the_last_client_said(
    client: Callable[..., ProcessBackend], config: Config
) -> None:
    first, second = client(), client(kept(config, 1))
    first.info()
    second.info()
    pid = first.pid
    assert pid is not None
    second.close()
    assert not wait_until(lambda: not is_alive(pid), 1.5)
    first.close()
    assert wait_until(lambda: not is_alive(pid), 30.0)
    assert engines(config) == []
    assert "nobody was attached" in last_line(place_of(config).log)


def test_what_it_had_to_write_is_written_when_it_ends(
    client: Callable[..., ProcessBackend], config: Config
) -> None:
    one = client()
    history = [user("the quick brown fox jumps over the lazy dog " * 3)]
    said = answered(one, history)
    (engine,) = engines(config)
    assert stop(engine)
    assert not is_alive(engine.pid)
    alone = LocalBackend(config)
    *_, last = alone.answer([*history, said.turn(), user("and")], Options(max_tokens=1))
    alone.close()
    assert isinstance(last, Done)
    assert last.answer.cache.tiers.get("disk", 0) >= len(said.prompt) // 16 * 16 > 0


@pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_fifty_clients_that_start_in_the_same_instant_make_one_engine(config: Config, rounds: int) -> None:
    for _ in range(rounds):
        with clients(config) as client:
            everybody = [client() for _ in range(50)]
            gate = threading.Barrier(50)

            def begin(one: ProcessBackend, gate: threading.Barrier = gate) -> None:
                gate.wait()
                one.start()

            threads = [threading.Thread(target=begin, args=(one,)) for one in everybody]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len({one.pid for one in everybody}) == 1
            (engine,) = engines(config)
            assert engine.about is not None
            assert wait_until(lambda: len(engines(config)[0].about.clients) == 50)  # type: ignore[union-attr]
        assert wait_until(lambda pid=engine.pid: not is_alive(pid))


def test_a_socket_that_nobody_listens_at_is_replaced(
    client: Callable[..., ProcessBackend], config: Config
) -> None:
    place = place_of(config)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(place.socket))
    stale.close()
    assert engines(config) == []
    place.socket.write_text("nor is a file in its way")
    assert answered(client(), [user("hello")]).completion


@pytest.mark.slow
def test_an_engine_killed_between_two_answers_is_started_again_once(
    client: Callable[..., ProcessBackend], config: Config
) -> None:
    both = [client(), client()]
    for one in both:
        one.info()
    pid = both[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for one in both:
        assert answered(one, [user("hello")]).completion
    assert both[0].pid == both[1].pid != pid


def test_an_engine_killed_with_five_clients_in_mid_answer_goes_on_for_all(talkative: Config) -> None:
    with clients(talkative, ends=False) as client:
        everybody = [client() for _ in range(5)]
        everybody[0].info()
        pid = everybody[0].pid
        assert pid is not None
        is_answering = threading.Event()
        ends: list[tuple[str, list[str], Done]] = []

        def ask(one: ProcessBackend) -> None:
            shown, notices = "", []
            for event in one.answer([user("hello")], Options(max_tokens=3000, repeat_stop=False)):
                if isinstance(event, Text):
                    shown += event.text
                    is_answering.set()
                elif isinstance(event, Notice):
                    notices.append(event.message)
                elif isinstance(event, Done):
                    ends.append((shown, notices, event))

        threads = [threading.Thread(target=ask, args=(one,)) for one in everybody]
        for thread in threads:
            thread.start()
        is_answering.wait()
        os.kill(pid, signal.SIGKILL)
        for one in everybody:
            wait_until(lambda one=one: one.pid not in (pid, None))
        for one in everybody:
            one.cancel()
        for thread in threads:
            thread.join(60)
        assert len(ends) == 5
        for shown, notices, done in ends:
            assert done.answer.text == shown
            assert len(notices) == 1 and "was started again" in notices[0] and "killed" in notices[0]
        assert len({one.pid for one in everybody}) == 1


def test_a_client_that_is_killed_takes_nothing_from_the_others(talkative: Config) -> None:
    with clients(talkative, ends=False) as client:
        one = client()
        one.info()
        child = os.fork()
        if child == 0:  # a client that asks for an answer without end
            lost = ProcessBackend(talkative, one._open_engine)
            for event in lost.answer([user("hello")], Options(max_tokens=25_000, repeat_stop=False)):
                if isinstance(event, Text):
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(1)
        os.waitpid(child, 0)
        assert len(answered(one, [user("hello")]).completion) == 8
        (engine,) = engines(talkative)
        assert engine.about is not None
        assert wait_until(lambda: engines(talkative)[0].about.clients == (os.getpid(),))  # type: ignore[union-attr]


def test_another_version_other_settings_and_other_weights_are_never_shared(
    client: Callable[..., ProcessBackend], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = key_of(config, {})
    assert key_of(replace(config, model=replace(config.model, context=128)), {}) != own
    assert key_of(replace(config, cache=replace(config.cache, codec="int8")), {}) != own
    assert key_of(config, {"OMP_NUM_THREADS": "2"}) != own
    monkeypatch.setattr("kvchat.backends.resident.identity.program", lambda: "another version")
    assert key_of(config, {}) != own


def test_what_a_call_brings_along_makes_no_other_engine(config: Config) -> None:
    own = key_of(config, {})
    private = replace(config, chat=replace(config.chat, save=False, system="be brief"))
    assert key_of(private, {}) == own
    assert key_of(replace(config, cache=replace(config.cache, mode="off", prepare=False)), {}) == own
    assert key_of(replace(config, sampling=replace(config.sampling, temperature=1.0)), {}) == own
    assert key_of(replace(config, model=replace(config.model, offline=True)), {"PWD": "/"}) == own


def test_weights_that_changed_bring_a_new_engine_and_leave_the_old_one_its_clients(
    config: Config, tmp_path: Path, tiny_path: Path
) -> None:
    import shutil

    model = shutil.copytree(tiny_path, tmp_path / "changing")
    changing = replace(config, model=replace(config.model, name=str(model)))
    with clients(changing) as client:
        first = client()
        before = answered(first, [user("hello")])
        weights = model / "model.safetensors"
        os.utime(weights, ns=(0, 0))
        second = client()
        answered(second, [user("hello")])
        assert second.pid != first.pid
        assert answered(first, [user("hello")]).completion == before.completion
        old = first.pid
        assert old is not None
        first.close()
        assert wait_until(lambda: not is_alive(old))
        assert [engine.pid for engine in engines(changing)] == [second.pid]


def test_the_wrong_model_is_an_error_and_leaves_no_engine(config: Config, tmp_path: Path) -> None:
    nowhere = replace(config, model=replace(config.model, name=str(tmp_path / "nowhere")))
    with clients(nowhere) as client:
        one = client()
        with pytest.raises(Exception, match="there is no model at"):
            one.info()
        pid = one.pid
        assert pid is not None
        one.close()
        assert wait_until(lambda: not is_alive(pid))


def test_cancelling_ends_ones_own_answer_alone(talkative: Config) -> None:
    with clients(talkative, ends=False) as client:
        first, second = client(), client()
        ends: list[Done] = []

        def ask() -> None:
            *_, last = second.answer([user("world")], Options(max_tokens=20, repeat_stop=False))
            assert isinstance(last, Done)
            ends.append(last)

        thread = threading.Thread(target=ask)
        for event in first.answer([user("hello")], Options(max_tokens=25_000, repeat_stop=False)):
            if isinstance(event, Text) and not thread.ident:
                thread.start()
                wait_until(lambda: second.pid is not None)
                second.count("by now it is attached")
                first.cancel()
        assert isinstance(event, Done) and event.answer.finish_reason is FinishReason.CANCELLED
        thread.join(60)
        assert len(ends[0].answer.completion) == 20


def test_concurrent_chats_get_what_each_gets_alone(
    visitor: Callable[..., ProcessBackend], standing: Config
) -> None:
    alone = LocalBackend(replace(standing, cache=replace(standing.cache, disk=0)))  # type: ignore[arg-type]
    results: dict[int, list[tuple[int, ...]]] = {}

    def chat(number: int, backend: ProcessBackend | LocalBackend) -> list[tuple[int, ...]]:
        history: list[Turn] = []
        said = []
        for turn in range(4):
            history.append(user(f"{number} and {turn}, so on"))
            *_, last = backend.answer(history, Options(max_tokens=6, temperature=0.0))
            assert isinstance(last, Done)
            history.append(last.answer.turn())
            said.append(last.answer.completion)
        return said

    def in_background(number: int, backend: ProcessBackend) -> None:
        results[number] = chat(number, backend)

    threads = [threading.Thread(target=in_background, args=(n, visitor())) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: chat(number, alone) for number in range(4)}
    alone.close()


def test_who_leaves_does_not_wait_to_see_whether_the_engine_has_died(standing: Config) -> None:
    engine = AttachedEngine(standing)
    assert engine.pid is not None
    engine.end()
    assert engine.obituary() == "it was left"


@pytest.mark.slow
def test_three_hundred_clients_that_come_and_go_leave_nothing(config: Config) -> None:
    with clients(config) as client:
        client().info()

        def memory_after(num_clients: int) -> int:
            for number in range(num_clients):
                with closing(client()) as one:
                    answered(one, [user(f"hello {number % 4}")], Options(max_tokens=2))
            (engine,) = engines(config)
            assert engine.about is not None
            assert wait_until(lambda: len(engines(config)[0].about.clients) == 1)  # type: ignore[union-attr]
            return engine.about.memory_bytes

        first = memory_after(100)
        assert memory_after(200) < first + 8 * 2**20


def test_a_terminal_that_can_not_attach_has_an_engine_of_its_own(make_config: Callable[..., Config]) -> None:
    config = make_config()
    folder = socket_folder(config.paths.runtime)
    folder.parent.mkdir(exist_ok=True, parents=True)
    folder.write_text("a file where the folder should be")
    with closing(ProcessBackend(config, Attaching())) as backend:
        events = list(backend.answer([user("hello")], Options(max_tokens=2)))
        assert isinstance(events[-1], Done)
        notices = [event.message for event in events if isinstance(event, Notice)]
        assert any("could not be started" in notice for notice in notices), notices
    folder.unlink()
