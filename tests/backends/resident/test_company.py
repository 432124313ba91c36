"""Many conversations at one model at once: each is answered as if it were alone, and nobody waits for another's end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvchat.backends.base import Answer, Done, Event, Options, Prefilling, Role, Text, Turn
from kvchat.backends.local import LocalBackend
from kvchat.backends.resident.seats import Seat, SharedModel
from kvchat.config import Config
from tests.backends.resident.sharing import user, wait_until
from tests.models.lean.test_network import WIDE
from tests.tiny import tiny_config, tiny_folder

LONG = "the quick brown fox jumps over the lazy dog "
TALKS: list[dict[str, Any]] = [{}, {"family": "qwen3"}, {"model__weights": "int8"}]
WAYS = [
    Options(max_tokens=6, temperature=0.0),
    Options(max_tokens=9, temperature=0.9, top_k=40, seed=3),
    Options(max_tokens=12, temperature=0.7, top_p=0.9, repetition_penalty=1.2, seed=8),
    Options(max_tokens=12, temperature=0.0, stop=("e",)),
]


def chat(backend: LocalBackend, number: int, num_turns: int) -> list[Answer]:
    """A conversation of some turns, of its own length and in its own way."""
    history: list[Turn] = [Turn(Role.SYSTEM, "Be brief.")] if number % 2 else []
    answers = []
    for turn in range(num_turns):
        history.append(user(f"{number}: {LONG * ((number * 5 + turn) % 4)} and {turn}?"))
        *_, last = backend.answer(history, WAYS[number % len(WAYS)])
        assert isinstance(last, Done)
        answers.append(last.answer)
        history.append(last.answer.turn())
    return answers


def all_at_once(model: SharedModel, num_chats: int, num_turns: int) -> list[list[Answer]]:
    with ThreadPoolExecutor(num_chats) as pool:
        futures = [
            pool.submit(chat, model.seat(is_passing=number % 3 == 0), number, num_turns)
            for number in range(num_chats)
        ]
        return [future.result(120) for future in futures]


@pytest.mark.parametrize(
    ("num_turns", "settings"),
    [(2, {}), *(pytest.param(10, settings, marks=pytest.mark.slow) for settings in TALKS)],
    ids=str,
)
def test_chats_at_the_same_time_get_what_each_gets_alone(
    num_turns: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    family = settings.get("family", "llama")
    folder = tiny_folder(tmp_path / "model", family=family, max_position_embeddings=8192, **WIDE)
    flags = {key: value for key, value in settings.items() if key != "family"}
    shared = SharedModel(tiny_config(folder, tmp_path / "shared", **flags))
    together = all_at_once(shared, 12, num_turns)
    shared.close()
    alone = SharedModel(tiny_config(folder, tmp_path / "alone", **flags))
    for number, answers in enumerate(together):
        expected = chat(alone.seat(), number, num_turns)
        assert [one.completion for one in answers] == [one.completion for one in expected]
        assert [one.text for one in answers] == [one.text for one in expected]
        assert [one.finish_reason for one in answers] == [one.finish_reason for one in expected]
    alone.close()


@pytest.fixture
def shared(make_config: Callable[..., Config], long_path: Path) -> Iterator[SharedModel]:
    model = SharedModel(make_config(model__name=str(long_path), cache__disk="0"))
    yield model
    model.close()


ENDLESS = Options(max_tokens=20_000, temperature=0.0, repeat_stop=False)


def reading(seat: Seat, text: str, options: Options, heard: list[Event]) -> threading.Thread:
    """Reads an answer in the background."""

    def read() -> None:
        heard.extend(seat.answer([user(text)], options))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_a_second_answer_does_not_wait_for_the_end_of_the_first(shared: SharedModel) -> None:
    first, second = shared.seat(), shared.seat()
    endless = first.answer([user("hello")], ENDLESS)
    assert any(isinstance(event, Text) for event in (next(endless) for _ in range(5)))
    *_, last = second.answer([user("and you?")], Options(max_tokens=8, temperature=0.0))
    assert isinstance(last, Done) and len(last.answer.completion) == 8
    assert isinstance(next(endless), Text)
    first.cancel()
    *_, done = endless
    assert isinstance(done, Done) and done.answer.finish_reason.value == "cancelled"


def test_an_answer_goes_on_between_the_steps_of_anothers_long_prefill(shared: SharedModel) -> None:
    first, second = shared.seat(), shared.seat()
    heard: list[tuple[str, Event]] = []
    lock = threading.Lock()

    def note(name: str, events: Iterator[Event]) -> None:
        for event in events:
            with lock:
                heard.append((name, event))

    answers = first.answer([user("hello")], ENDLESS)
    next(answers)
    running = threading.Thread(target=note, args=("first", answers))
    running.start()
    note("second", second.answer([user(LONG * 300)], Options(max_tokens=2, temperature=0.0)))
    first.cancel()
    running.join(60)
    steps = [at for at, (name, one) in enumerate(heard) if name == "second" and isinstance(one, Prefilling)]
    assert len(steps) > 8
    end = next(at for at, (name, one) in enumerate(heard) if name == "second" and isinstance(one, Done))
    between = [
        one for name, one in heard[steps[0] : end] if name == "first"
    ]  # some text is held back for a while
    assert sum(len(one.ids) for one in between if isinstance(one, Text)) > len(steps) / 2


def test_what_is_in_use_is_never_let_go_of(make_config: Callable[..., Config], long_path: Path) -> None:
    model = SharedModel(make_config(model__name=str(long_path), cache__disk="0"), live_bytes=1)
    first, second = model.seat(), model.seat()
    endless = first.answer([user(LONG)], ENDLESS)
    assert any(isinstance(event, Text) for event in (next(endless) for _ in range(5)))
    held = first.live_bytes
    list(second.answer([user("hello")], Options(max_tokens=3)))
    model.shed()
    assert first.live_bytes >= held > 0
    first.cancel()
    list(endless)
    list(second.answer([user("hello")], Options(max_tokens=3)))
    assert first.live_bytes == 0
    model.close()


def test_who_has_to_wait_says_so(make_config: Callable[..., Config], tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "takes turns", family="gpt_neox", max_position_embeddings=8192)
    model = SharedModel(tiny_config(folder, tmp_path / "own"))
    first, second = model.seat(), model.seat()
    endless = first.answer([user("hello")], ENDLESS)
    assert any(isinstance(event, Text) for event in (next(endless) for _ in range(5)))
    heard: list[Event] = []
    waiting = reading(second, "hello", Options(max_tokens=4, temperature=0.0), heard)
    assert wait_until(lambda: second.status().detail == "waiting for other answers", 10)
    first.cancel()
    list(endless)
    waiting.join(60)
    assert isinstance(heard[-1], Done)
    assert second.status().detail == ""
    model.close()


def test_looking_at_the_cache_waits_for_no_other_answer(shared: SharedModel) -> None:
    first, second = shared.seat(), shared.seat()
    endless = first.answer([user("hello")], ENDLESS)
    next(endless)
    assert second.cache([user("hello")], Options()).prompt_tokens > 0
    first.cancel()
    list(endless)
