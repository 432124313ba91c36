"""Sessions that move between local models and remotes in mid-conversation, and answers that broke off and go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvchat.backends.base import Backend, Notice, Options
from kvchat.backends.local import LocalBackend
from kvchat.backends.remote.backend import RemoteBackend
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.config import Config
from kvchat.remotes import RemoteConfig, Target
from tests.backends.remote.servers import Reply, Request, as_events
from tests.backends.remote.station import last_of
from tests.backends.remote.test_misbehaving import asked, finished, said
from tests.chat.test_tokenizers import byte_tokenizer
from tests.server.conftest import served
from tests.tiny import tiny_config, tiny_folder

GREEDY = Options(temperature=0.0, max_tokens=5)
PLACES = ("one", "two", "one there, as ids", "one there, as text")
STEPS = st.sampled_from([*PLACES, "retry", "undo"])


class House:
    """Two local models that share no tokenizer, and a server of the first; each is opened anew for whoever moves there."""

    def __init__(self, folder: Path) -> None:
        one, two = (tiny_folder(folder / name, seed=seed) for seed, name in enumerate(("one", "two")))
        byte_tokenizer(two / "tokenizer.json")
        self.configs = {name: tiny_config(path, folder) for name, path in (("one", one), ("two", two))}
        self._serving = LocalBackend(tiny_config(one, folder / "served"))
        self._server = served(self._serving)
        self.url = self._server.__enter__().url

    def backend(self, place: str) -> Backend:
        if place in self.configs:
            return LocalBackend(self.configs[place])
        ways: dict[str, Any] = {"tokenizer": self.configs["one"].model.name, "send": "ids"}
        remote = RemoteConfig(self.url, **(ways if place.endswith("ids") else {}))
        return RemoteBackend(self.configs["one"], Target("there", remote))

    def close(self) -> None:
        self._server.__exit__(None, None, None)
        self._serving.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with closing(House(tmp_path_factory.mktemp("house"))) as house:
        yield house


def moved(house: House, steps: list[str], store: Path) -> None:
    """Make the moves, one message in each place; what was once said as ids of a tokenizer is said so whenever it is back."""
    with Session(house.backend("one"), GREEDY, store=Store(store)) as session:
        last_of(session.send("Hello."))
        for number, step in enumerate(steps):
            if step in ("retry", "undo"):
                if session.path:
                    last_of(session.retry()) if step == "retry" else session.undo()
                continue
            session.change_model(step, house.backend(step))
            before = [(one.user.text, one.answer) for one in session.path]
            answer = last_of(session.send(f"And {number}?"))
            assert [(one.user.text, one.answer.text) for one in session.path[:-1] if one.answer] == [
                (text, kept.text) for text, kept in before if kept
            ]
            if not answer.tokenizer:  # it went out as text
                continue
            prompt = bytes_of(answer.prompt)
            for exchange in session.path[:-1]:
                kept = exchange.answer
                if kept and kept.tokenizer == answer.tokenizer:
                    assert bytes_of(kept.completion) in prompt
                elif kept and kept.text:  # of nothing there are no ids
                    assert bytes_of(exchange.encoded[answer.tokenizer]) in prompt
                    assert kept.tokenizer not in exchange.encoded


def bytes_of(ids: tuple[int, ...]) -> bytes:
    """Ids as bytes, of which a run can be looked for."""
    return b"".join(one.to_bytes(4, "big") for one in ids)


MOVING = settings(deadline=None, suppress_health_check=list(HealthCheck))


@given(st.lists(STEPS, min_size=2, max_size=6))
@settings(MOVING, max_examples=4)
def test_a_session_moves_freely_and_every_tokenizers_ids_stay(house: House, steps: list[str]) -> None:
    moved(house, steps, house.configs["one"].paths.data.parent / f"{abs(hash(tuple(steps)))}.db")


@pytest.mark.slow
@given(st.lists(STEPS, min_size=4, max_size=12))
@settings(MOVING, max_examples=100)
def test_a_session_moves_freely_through_many_places(house: House, steps: list[str]) -> None:
    moved(house, steps, house.configs["one"].paths.data.parent / f"{abs(hash(tuple(steps)))}.db")


def test_an_answer_that_broke_off_is_kept_and_gone_on_with(make_config: Callable[..., Config]) -> None:
    begun = [f"data: {json.dumps(said('vllm', word))}\n\n".encode() for word in ("one ", "two ")]
    replies = iter([Reply(begun), as_events(said("vllm", "three"), *finished("vllm"))])
    asks: list[Any] = []

    def reply(request: Request) -> Reply:
        asks.append(request.json)
        return next(replies)

    with asked("vllm", reply) as (_, backend), Session.from_config(backend, make_config()) as session:
        session.options = replace(GREEDY, max_tokens=9)
        *events, _ = session.send("Count.")
        told = [event.message for event in events if isinstance(event, Notice)]
        assert len(told) == 1 and "what came is kept, /continue goes on" in told[0]
        assert session.history[-1].text == "one two "
        assert last_of(session.continue_answer()).text == "one two three"
        assert session.history[-1].text == "one two three"
    assert asks[1]["messages"][-1] == {"role": "assistant", "content": "one two "}
    assert asks[1]["continue_final_message"] is True and asks[1]["messages"][:-1] == asks[0]["messages"]
