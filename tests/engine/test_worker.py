from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from kvchat.engine.request import WANTING, Wanting
from kvchat.engine.worker import JobKind, Worker
from kvchat.errors import EngineDiedError, PassingError


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


def test_what_the_system_refused_once_is_tried_again_for_the_next_job() -> None:
    refusals = [PassingError("no more files"), PassingError("no more files")]

    def load() -> str:
        if refusals:
            raise refusals.pop()
        return "model"

    worker = Worker(load)
    with pytest.raises(PassingError):
        worker.wait()
    with pytest.raises(PassingError):
        list(worker.run(endless))
    assert next(worker.run(endless)) == "model"
    assert worker.wait() == "model"
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
    older = worker.run(endless, JobKind.IDLE)
    assert next(older) == "model"
    newer = worker.run(endless, JobKind.IDLE)
    assert list(older)[-1] == "cancelled"
    assert next(newer) == "model"
    newer.close()
    worker.close()


def test_idle_work_that_is_overtaken_while_it_waits_never_begins() -> None:
    worker = Worker(lambda: "model")
    goes_on = threading.Event()

    def waiting(_: str, __: Callable[[], bool]) -> Iterator[str]:
        goes_on.wait(60)
        yield "waited"

    before = worker.run(waiting)
    older, newer = (worker.run(endless, JobKind.IDLE) for _ in range(2))
    asked = worker.run(waiting)
    goes_on.set()
    assert [list(stream) for stream in (before, older, newer, asked)] == [["waited"], [], [], ["waited"]]
    assert next(worker.run(endless, JobKind.IDLE)) == "model"
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


class Sums:
    """What computes for several jobs at once: they want it, and see how many wanted it with them."""

    most = 3

    def __init__(self) -> None:
        self.num_answers = 1
        self.num_together = 0

    @property
    def is_open(self) -> bool:
        return self.num_answers > 1

    def admit(self, num_answers: int) -> None:
        self.num_answers = num_answers

    def compute(self) -> None:
        self.num_together = self.num_answers


def wanting(
    steps: int, gate: threading.Event
) -> Callable[[Sums, Callable[[], bool]], Iterator[int | Wanting]]:
    def job(thing: Sums, is_cancelled: Callable[[], bool]) -> Iterator[int | Wanting]:
        yield -1
        gate.wait(10)
        for _ in range(steps):
            if thing.is_open:
                yield WANTING
            if is_cancelled():
                return
            yield thing.num_together if thing.is_open else 1

    return job


def test_jobs_of_several_owners_run_at_once_up_to_the_most() -> None:
    worker = Worker(Sums, company=lambda thing: thing)
    gate = threading.Event()
    streams = [worker.run(wanting(40, gate), owner=number) for number in range(4)]
    assert [next(stream) for stream in streams[:1]] == [-1]
    gate.set()
    heard = [list(stream) for stream in streams]
    assert max(max(one) for one in heard) == 3, "no more than there is room for"
    assert [len(one) - one.count(-1) for one in heard] == [40] * 4
    assert heard[3].count(3) < 40
    worker.close()


def test_jobs_of_one_owner_run_in_order_whatever_others_do() -> None:
    worker = Worker(Sums, company=lambda thing: thing)
    order: list[str] = []

    def job(name: str) -> Callable[[Sums, Callable[[], bool]], Iterator[str]]:
        def run(_: Sums, __: Callable[[], bool]) -> Iterator[str]:
            for step in range(3):
                order.append(f"{name}{step}")
                yield name

        return run

    streams = [worker.run(job(name), owner=name[0]) for name in ("a1-", "a2-", "b1-")]
    for stream in streams:
        list(stream)
    mine = [step for step in order if step[0] == "a"]
    assert mine == ["a1-0", "a1-1", "a1-2", "a2-0", "a2-1", "a2-2"]
    assert order.index("b1-0") < order.index("a2-0")
    worker.close()


def test_one_that_fails_or_is_closed_leaves_those_that_run_beside_it() -> None:
    worker = Worker(Sums, company=lambda thing: thing)

    def broken(_: Sums, __: Callable[[], bool]) -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    def steady(_: Sums, is_cancelled: Callable[[], bool]) -> Iterator[int]:
        while not is_cancelled():
            yield 2

    staying, leaving = worker.run(steady, owner="a"), worker.run(steady, owner="b")
    assert (next(staying), next(leaving)) == (2, 2)
    with pytest.raises(ZeroDivisionError):
        list(worker.run(broken, owner="c"))
    leaving.close()
    assert next(staying) == 2
    worker.close()
    list(staying)


def test_who_waits_for_others_is_known_to_wait() -> None:
    worker = Worker(lambda: "model")
    first, second = worker.run(endless, owner="a"), worker.run(endless, owner="b")
    next(first)
    assert (worker.is_waiting("a"), worker.is_waiting("b"), worker.is_waiting("c")) == (False, True, False)
    first.close()
    next(second)
    assert not worker.is_waiting("b")
    second.close()
    worker.close()
