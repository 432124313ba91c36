from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from kvchat.engine.worker import JobKind, Worker
from kvchat.errors import EngineDiedError


def endless(thing: str, is_cancelled: Callable[[], bool]) -> Iterator[str]:
    yield thing
    while not is_cancelled():
        yield "more"
    yield "cancelled"


def test_a_job_runs_in_the_workers_thread_with_what_was_loaded() -> None:
    worker = Worker(lambda: "model")

    def job(thing: str, _: Callable[[], bool]) -> Iterator[tuple[str, str]]:
        yield thing, threading.current_thread().name

    assert list(worker.run(job)) == [("model", "kvchat-engine")]
    worker.close()


def test_cancelling_ends_the_job_that_runs_and_those_that_wait() -> None:
    worker = Worker(lambda: "model")
    first, second = worker.run(endless, owner=worker), worker.run(endless, owner=worker)
    assert next(first) == "model"
    worker.cancel(worker)
    assert list(first)[-1] == "cancelled"
    assert list(second) == ["model", "cancelled"]
    worker.close()


def test_closing_the_stream_waits_until_the_job_let_go() -> None:
    worker = Worker(lambda: "model")
    let_go = threading.Event()

    def job(_: str, is_cancelled: Callable[[], bool]) -> Iterator[int]:
        yield 1
        while not is_cancelled():
            yield 2
        let_go.set()

    stream = worker.run(job)
    next(stream)
    stream.close()
    assert let_go.is_set()
    worker.close()


def test_what_a_job_raises_reaches_its_reader_and_the_next_job_runs() -> None:
    worker = Worker(lambda: "model")

    def broken(_: str, __: Callable[[], bool]) -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(worker.run(broken))
    stream = worker.run(endless)
    assert next(stream) == "model"
    worker.close()


def test_a_failure_to_load_is_raised_by_every_call() -> None:
    def load() -> str:
        raise OSError("no such model")

    worker = Worker(load)
    with pytest.raises(OSError, match="no such model"):
        worker.wait()
    with pytest.raises(OSError, match="no such model"):
        list(worker.run(endless))
    worker.close()


def test_closing_unloads() -> None:
    unloaded: list[str] = []
    worker = Worker(lambda: "model", unload=unloaded.append)
    worker.wait()
    worker.close()
    assert unloaded == ["model"]


def test_idle_work_lets_a_look_through_and_ends_when_there_is_work() -> None:
    worker = Worker(lambda: "model")
    done: list[str] = []

    def idle(_: str, is_cancelled: Callable[[], bool]) -> Iterator[str]:
        while not is_cancelled():
            yield "step"
        done.append("idle")

    def job(name: str) -> Callable[[str, Callable[[], bool]], Iterator[str]]:
        def run(_: str, __: Callable[[], bool]) -> Iterator[str]:
            done.append(name)
            yield name

        return run

    steps = worker.run(idle, JobKind.IDLE)
    assert next(steps) == "step"
    assert list(worker.run(job("look"), JobKind.LOOK)) == ["look"]
    assert done == ["look"], "and the idle work goes on"
    assert list(worker.run(job("work"))) == ["work"]
    assert set(steps) == {"step"}
    assert done == ["look", "idle", "work"]
    worker.close()


def test_newer_idle_work_takes_the_place_of_older() -> None:
    worker = Worker(lambda: "model")
    older, newer = (worker.run(endless, JobKind.IDLE) for _ in range(2))
    assert list(older)[-1] == "cancelled"
    assert next(newer) == "model"
    newer.close()
    worker.close()


def test_a_worker_that_closes_does_not_wait_for_idle_work() -> None:
    worker = Worker(lambda: "model")
    steps = worker.run(endless, JobKind.IDLE)
    next(steps)
    worker.close()
    assert list(steps)[-1] == "cancelled"


def test_a_thing_settles_only_where_nobody_waits_for_it() -> None:
    settled: list[str] = []
    idle: Worker[str] = Worker(lambda: "model", settle=settled.append)
    idle.start()
    idle.wait()
    assert list(idle.run(lambda thing, _: iter([list(settled)]))) == [["model"]]
    may_load = threading.Event()

    def load() -> str:
        may_load.wait(10)
        return "other"

    asked: Worker[str] = Worker(load, settle=settled.append)
    answers = asked.run(lambda thing, _: iter([list(settled)]))
    may_load.set()
    assert list(answers) == [["model"]]
    for worker in (idle, asked):
        worker.close()
    assert settled == ["model"]


def test_a_job_is_answered_though_settling_failed() -> None:
    def settle(_: str) -> None:
        raise MemoryError

    worker = Worker(lambda: "model", settle=settle)
    worker.wait()
    assert next(worker.run(endless)) == "model"
    worker.close()


def test_a_closed_worker_is_not_waited_for() -> None:
    worker = Worker(lambda: "model")
    worker.wait()
    worker.close()
    for ask in (worker.wait, worker.start, lambda: worker.run(endless)):
        with pytest.raises(EngineDiedError, match="was closed"):
            ask()


def test_whoever_waits_for_a_model_that_loads_is_told_when_the_worker_is_closed() -> None:
    may_load = threading.Event()
    told: list[str] = []

    def load() -> str:
        may_load.wait(100)
        return "model"

    def ask(question: Callable[[], object]) -> None:
        with pytest.raises(EngineDiedError, match="was closed"):
            question()
        told.append("closed")

    worker = Worker(load)
    stream = worker.run(endless)
    askers = [threading.Thread(target=ask, args=(question,)) for question in (worker.wait, stream.__next__)]
    for asker in askers:
        asker.start()
    worker.close()
    for asker in askers:
        asker.join()
    assert told == ["closed", "closed"]
    may_load.set()


def test_closing_the_stream_of_a_job_that_has_not_begun_waits_for_nothing() -> None:
    may_load = threading.Event()

    def load() -> str:
        may_load.wait(100)
        return "model"

    worker = Worker(load)
    first, second = worker.run(endless), worker.run(endless)
    first.close()
    assert list(first) == []
    may_load.set()
    assert next(second) == "model"
    worker.close()


def test_cancelling_what_one_has_asked_for_leaves_what_others_have() -> None:
    worker = Worker(lambda: "model")
    mine, another, mine_too = (worker.run(endless, owner=owner) for owner in ("me", "you", "me"))
    assert next(mine) == "model"
    worker.cancel("me")
    list(mine)
    assert next(another) == "model"
    another.cancel()
    list(another)
    assert list(mine_too) == ["model", "cancelled"]
    worker.close()


def test_one_stream_is_cancelled_and_the_others_go_on() -> None:
    worker = Worker(lambda: "model")
    first, second = worker.run(endless), worker.run(endless)
    assert next(first) == "model"
    first.cancel()
    assert list(first)[-1] == "cancelled"
    assert [next(second), next(second)] == ["model", "more"]
    second.close()
    worker.close()
