"""kvchat over kvchat: the terminal's own remote asks this server, as text and as token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Done, Notice, Options, Role, Text, Turn
from kvchat.backends.remote.backend import RemoteBackend
from kvchat.cli import main
from kvchat.config import Config
from kvchat.errors import ContextOverflowError
from kvchat.remotes import RemoteConfig, Target
from tests.backends.remote.station import go_on, make_every_move, session_over, stop
from tests.server.client import Client

GREEDY = Options(temperature=0.0, max_tokens=6)
WAYS: dict[str, dict[str, str]] = {
    "text": {},
    "ids": {"tokenizer": "MODEL", "send": "ids"},
    "anthropic": {"server": "anthropic"},
}


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config()


@pytest.fixture
def connect(client: Client, config: Config, long_path: Path) -> Iterator[Callable[[str], RemoteBackend]]:
    opened: list[RemoteBackend] = []

    def make(way: str) -> RemoteBackend:
        settings = {name: value.replace("MODEL", str(long_path)) for name, value in WAYS[way].items()}
        opened.append(RemoteBackend(config, Target("here", RemoteConfig(client.url, **settings))))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


@pytest.mark.parametrize("way", WAYS)
def test_ten_turns_and_every_move_find_what_was_said_before(
    way: str, connect: Callable[[str], RemoteBackend], config: Config
) -> None:
    make_every_move(lambda: connect(way), config, GREEDY)


@pytest.mark.parametrize("way", ["text", "ids"])
def test_a_stopped_answer_goes_on_where_it_stopped(
    way: str, connect: Callable[[str], RemoteBackend], config: Config
) -> None:
    with session_over(connect(way), config, GREEDY) as session:
        session.options = replace(GREEDY, max_tokens=2000)
        stopped = stop(session)
        session.options = replace(GREEDY, max_tokens=12)
        go_on(session, stopped)


def test_with_ids_every_id_stays_what_it_was_and_the_server_computes_these_very_ids(
    connect: Callable[[str], RemoteBackend], config: Config, client: Client
) -> None:
    prompts: list[list[int]] = []
    with session_over(connect("ids"), config, GREEDY) as session:
        session.options = replace(GREEDY, temperature=3.0, max_tokens=9, seed=1)
        said: list[int] = []
        for number in range(1, 5):
            *events, done = session.send(f"  What of train {number}?\n")
            assert not any(isinstance(event, Notice) for event in events)  # it would say that ids differ
            assert isinstance(done, Done)
            answer = done.answer
            assert list(answer.prompt)[: len(said)] == said
            assert answer.usage.cached_tokens >= len(said)
            said = [*answer.prompt, *answer.completion]
            prompts.append(list(answer.prompt))
    for ids in prompts:
        again = {"model": "default", "prompt": ids, "max_tokens": 1, "return_token_ids": True}
        assert client.post("/v1/completions", again).json["choices"][0]["prompt_token_ids"] == ids


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_comes_piece_by_piece(way: str, connect: Callable[[str], RemoteBackend]) -> None:
    events = list(connect(way).answer([Turn(Role.USER, "piece by piece")], replace(GREEDY, max_tokens=20)))
    assert sum(isinstance(event, Text) for event in events) > 3


def test_the_server_is_known_as_what_it_is(connect: Callable[[str], RemoteBackend]) -> None:
    info = connect("text").info()
    assert info.device.startswith("kvchat at") and info.context == 30_000


def test_a_message_too_long_for_the_server_is_said_in_one_line(
    connect: Callable[[str], RemoteBackend],
) -> None:
    with pytest.raises(ContextOverflowError):
        list(connect("text").answer([Turn(Role.USER, "word " * 40_000)], GREEDY))


def test_the_command_line_talks_to_it_with_a_saved_prompt_and_goes_on_there(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATA", "CACHE_DIR", "MODELS", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    asking = ["--max-tokens", "4", "--json", "--no-stdin"]
    assert main(["--url", client.url, "-t", "proofread", "-p", "I has a cat.", *asking]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["-c", "-p", "He go home.", *asking]) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["session_id"] == second["session_id"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1
