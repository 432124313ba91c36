from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvchat.backends.base import Done, Event, Options, Role, Text, Turn
from kvchat.backends.resident.seats import SharedModel
from kvchat.server.question import Question
from kvchat.server.seats import Seats
from kvchat.server.service import Limits, Service
from tests.tiny import tiny_config


class Named:
    """A seat that nobody asks."""

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        return iter(())

    def cancel(self) -> None:
        pass


def said(*texts: str) -> tuple[Turn, ...]:
    roles = (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER)
    return tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False))


def test_a_conversation_comes_back_to_its_seat_and_a_new_one_to_that_unused_for_longest() -> None:
    one, two, three = answerers = [Named(), Named(), Named()]
    seats = Seats(answerers)
    assert [seats.take(said("be brief", "hello")), seats.take(said("be brief", "and me"))] == [one, two]
    seats.give_back(two, said("be brief", "and me"))
    seats.give_back(one, said("be brief", "hello"))
    assert seats.take(said("be brief", "hello", "hi", "go on")) is one
    assert seats.take(said("be brief", "something new")) is three, "alone a system prompt says nothing"
    assert seats.take(said("be brief", "hello")) is two, "its own is taken"


@pytest.fixture(scope="module")
def model(long_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedModel]:
    folder = tmp_path_factory.mktemp("seats")
    model = SharedModel(tiny_config(long_path, folder, chat__save=False), is_shared=False)
    yield model
    model.close()


def question(text: str, max_tokens: int, client: str = "somebody") -> Question:
    options = Options(temperature=0.0, max_tokens=max_tokens, repeat_stop=False)
    return Question((Turn(Role.USER, text),), options, client)


def test_requests_are_answered_at_once_and_one_that_hangs_up_ends_alone(model: SharedModel) -> None:
    async def ask() -> None:
        whole = model.seat()
        service = Service(whole, Options(), Limits(), [whole, model.seat(), model.seat()])
        await service.info()
        async with service.answering(question("stay", 20_000)) as staying:
            texts = (event async for event in staying.events() if isinstance(event, Text))
            await anext(texts)
            async with service.answering(question("leave", 20_000)) as leaving:
                await anext(leaving.events())
                async with service.answering(question("short", 5)) as short:
                    *_, done = [event async for event in short.events()]
                assert isinstance(done, Done) and done.answer.usage.completion_tokens == 5
                assert service.turnstile.num_running >= 2
            async with asyncio.timeout(20):
                while service.turnstile.num_running > 1:
                    await asyncio.sleep(0.01)
            await anext(texts)
        async with asyncio.timeout(20):
            while service.turnstile.num_running:
                await asyncio.sleep(0.01)

    asyncio.run(ask())


def test_a_model_that_takes_turns_is_asked_one_thing_at_a_time(model: SharedModel) -> None:
    service = Service(model.seat(), Options(), Limits())
    asyncio.run(service.info())
    assert service.turnstile.num_running == 0
    assert model.seat().info().num_at_once > 1

    async def enter_twice() -> bool:
        await service.turnstile.enter("a")
        second = asyncio.ensure_future(service.turnstile.enter("b"))
        await asyncio.sleep(0)
        is_let_in = second.done()
        second.cancel()
        return is_let_in

    assert not asyncio.run(enter_twice())
