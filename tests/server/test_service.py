from __future__ import annotations

import asyncio

import pytest

from kvchat.backends.base import Done, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.server.question import Question
from kvchat.server.refusals import RefusedError
from kvchat.server.service import Limits, Service
from kvchat.server.turnstile import Turnstile


def question(text: str, max_tokens: int = 30) -> Question:
    options = Options(temperature=0.0, max_tokens=max_tokens, repeat_stop=False)
    return Question((Turn(Role.USER, text),), options, "somebody")


async def settled(turnstile: Turnstile) -> None:
    async with asyncio.timeout(20):
        while turnstile.num_running:
            await asyncio.sleep(0.01)


def test_a_reader_that_takes_its_time_holds_up_nobody(backend: LocalBackend) -> None:
    async def read_late() -> str:
        service = Service(backend, Options(), Limits())
        async with service.answering(question("read late")) as running:
            await settled(service.turnstile)  # the next may come, though nothing was read
            events = [event async for event in running.events()]
        assert isinstance(events[-1], Done)
        return events[-1].answer.text

    assert asyncio.run(read_late())


def test_leaving_an_answer_lets_the_next_begin_once_the_engine_is_free(backend: LocalBackend) -> None:
    async def leave() -> None:
        service = Service(backend, Options(), Limits())
        for _ in range(3):
            async with service.answering(question("leave", 20_000)):
                assert service.turnstile.num_running == 1
        async with service.answering(question("leave", 3)) as running:
            *_, done = [event async for event in running.events()]
        assert isinstance(done, Done) and done.answer.usage.completion_tokens == 3
        await settled(service.turnstile)

    asyncio.run(leave())


def test_a_turnstile_never_lets_more_through_than_it_may() -> None:
    async def crowd() -> None:
        turnstile = Turnstile(max_running=2, max_waiting=1000, max_of_one=1000)
        most = 0

        async def come(name: str, number: int) -> None:
            nonlocal most
            try:
                async with asyncio.timeout(0.001 * (number % 7) if number % 3 == 0 else 20):
                    await turnstile.enter(name)
            except TimeoutError:
                return
            most = max(most, turnstile.num_running)
            await asyncio.sleep(0.001)
            turnstile.leave()

        await asyncio.gather(*(come(f"client {number % 5}", number) for number in range(200)))
        assert most == 2 and turnstile.num_running == turnstile.num_waiting == 0

    asyncio.run(crowd())


def test_one_client_may_not_fill_the_whole_queue() -> None:
    async def fill() -> None:
        turnstile = Turnstile(max_waiting=10, max_of_one=3)
        await turnstile.enter("greedy")
        waiting = [asyncio.ensure_future(turnstile.enter("greedy")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="too many"):
            await turnstile.enter("greedy")
        modest = asyncio.ensure_future(turnstile.enter("modest"))
        for _ in range(4):
            await asyncio.sleep(0)
            turnstile.leave()
            await asyncio.sleep(0)
        assert all(task.done() for task in (*waiting, modest))

    asyncio.run(fill())
