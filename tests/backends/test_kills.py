"""The engine killed at random moments: the next answer comes, and none that was finished is degraded.

Most of the kills are those of an engine that follows a script, which is started in no time.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from kvchat.backends.base import Answer, Done, FinishReason, Options, Phase, Role, Turn
from kvchat.backends.process import ProcessBackend
from kvchat.config import Config
from kvchat.errors import EngineDiedError
from tests.tiny import tiny_config

MODEL = (Turn(Role.SYSTEM, "the quick brown fox " * 40), Turn(Role.USER, "hello"))
SCRIPT = (Turn(Role.USER, "slow 10"),)
OPTIONS = Options(max_tokens=60, temperature=0.0)


class Killable(ProcessBackend):
    """An engine to be killed, what it is asked, and the answer that nothing has disturbed."""

    def __init__(self, config: Config, asked: tuple[Turn, ...]) -> None:
        super().__init__(config)
        self.asked = asked
        self.whole = self.ask()

    def ask(self, at_done: Callable[[], object] = lambda: None) -> Answer:
        answers: list[Answer] = []
        for event in self.answer(self.asked, OPTIONS):
            if isinstance(event, Done):
                at_done()
                answers.append(event.answer)
        (one,) = answers
        return one

    def send(self, signum: signal.Signals) -> None:
        pid = self.pid
        assert pid is not None
        with suppress(ProcessLookupError):
            os.kill(pid, signum)

    def send_later(self, delay_s: float, signum: signal.Signals = signal.SIGKILL) -> threading.Timer:
        timer = threading.Timer(delay_s, self.send, (signum,))
        timer.start()
        return timer

    def check_whole(self, answer: Answer) -> None:
        assert (answer.text, answer.completion) == (self.whole.text, self.whole.completion)
        assert answer.finish_reason is self.whole.finish_reason

    def check(self, answer: Answer) -> None:
        """It is whole, or was cut short where its engine died."""
        if answer.finish_reason is FinishReason.CANCELLED:
            assert self.whole.text.startswith(answer.text) and answer.completion == ()
        else:
            self.check_whole(answer)


@pytest.fixture(scope="module")
def model(long_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killable]:
    with closing(Killable(tiny_config(long_path, tmp_path_factory.mktemp("killed")), MODEL)) as engine:
        yield engine


@contextmanager
def scripted() -> Iterator[Killable]:
    with pytest.MonkeyPatch.context() as patch:
        command = [sys.executable, "-m", "tests.scripted_engine"]
        patch.setattr("kvchat.backends.child.own_command", lambda _: command)
        patch.setattr("kvchat.backends.child.child_environment", lambda: None)
        with closing(Killable(Config(), SCRIPT)) as engine:
            yield engine


def in_mid_answer(engine: Killable, rng: random.Random) -> None:
    timer = engine.send_later(rng.uniform(0.0, 0.3))
    engine.check(engine.ask())
    timer.cancel()


def behind_done(engine: Killable, rng: random.Random) -> None:
    delay_s = rng.choice([0.0, rng.uniform(0.0, 0.03)])
    timers: list[threading.Timer] = []
    engine.check_whole(engine.ask(at_done=lambda: timers.append(engine.send_later(delay_s))))
    timers[0].join()


def while_it_loads(engine: Killable, rng: random.Random) -> None:
    engine.send(signal.SIGKILL)
    timers = [engine.send_later(rng.choice([0.2, 2.0]) * rng.random()) for _ in range(rng.choice([1, 2]))]
    try:
        engine.check(engine.ask())
    except EngineDiedError as error:  # it had loaded both times, maybe before this: the message is given back
        assert "twice over this message" in error.message
    for timer in timers:
        timer.join()


def as_it_gets_ready(engine: Killable, rng: random.Random) -> None:
    engine.send(signal.SIGKILL)
    while engine.status().phase is not Phase.STARTING:
        time.sleep(0.001)
    while engine.status().phase is not Phase.READY:
        engine.start()
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.2))
    engine.send(signal.SIGKILL)


def stopped_and_continued(engine: Killable, rng: random.Random) -> None:
    stopped_s = rng.uniform(0.0, 0.2)
    timers = [
        engine.send_later(stopped_s, signal.SIGSTOP),
        engine.send_later(stopped_s + rng.uniform(0.05, 0.3), signal.SIGCONT),
    ]
    engine.cancel()  # nothing runs yet, and nobody waits for it
    engine.check_whole(engine.ask())
    for timer in timers:
        timer.join()


Strike = Callable[[Killable, random.Random], None]
STRIKES = (in_mid_answer, behind_done, while_it_loads, as_it_gets_ready, stopped_and_continued)


def strike_times(engine: Killable, strike: Strike, times: int) -> None:
    rng = random.Random(f"{strike.__name__} {times}")
    for _ in range(times):
        strike(engine, rng)
        engine.check_whole(engine.ask())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [2, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strike", STRIKES)
def test_the_next_answer_is_whole_after_an_engine_was_killed(strike: Strike, times: int) -> None:
    with scripted() as engine:
        strike_times(engine, strike, times)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strike", STRIKES)
def test_the_next_answer_is_whole_after_an_engine_with_a_model_was_killed(
    model: Killable, strike: Strike
) -> None:
    strike_times(model, strike, 20)


def test_the_next_answer_is_whole_after_an_engine_with_a_model_died_behind_one(model: Killable) -> None:
    strike_times(model, behind_done, 1)
