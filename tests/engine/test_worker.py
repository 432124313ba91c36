from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from kvchat.engine.worker import Worker


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
    first, second = worker.run(endless), worker.run(endless)
    assert next(first) == "model"
    worker.cancel()
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
    stream.close()  # type: ignore[attr-defined]
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
