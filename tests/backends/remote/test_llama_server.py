"""The same chat over llama.cpp's own server: as text, as token ids and in Anthropic's form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from kvchat.backends.base import Options, Turn
from kvchat.backends.local import LocalBackend
from kvchat.backends.remote.backend import RemoteBackend
from kvchat.chat.session import Session
from kvchat.cli import main
from kvchat.config import Config, PathsConfig, load_config
from kvchat.models.text.template import ChatTemplate, Message
from kvchat.models.text.tokenizer import load_tokenizer, read_template
from kvchat.remotes import RemoteConfig, Target
from tests.backends.remote.station import go_on, held, last_of, make_every_move, session_over, stop
from tests.test_embedded_model import MODELS

GREEDY = Options(temperature=0.0, max_tokens=3)
WAYS: dict[str, dict[str, str]] = {
    "text": {},
    "ids": {"tokenizer": "server", "send": "ids"},
    "anthropic": {"server": "anthropic", "model": "m"},
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    paths = PathsConfig(models=MODELS, cache=tmp_path / "kv", data=tmp_path / "data")
    return replace(
        load_config({}, environ={"KVCHAT_CONFIG": "/dev/null", "HOME": str(tmp_path)}), paths=paths
    )


@pytest.fixture
def connect(llama_url: str, config: Config) -> Iterator[Callable[..., RemoteBackend]]:
    opened: list[RemoteBackend] = []

    def make(**settings: str) -> RemoteBackend:
        opened.append(RemoteBackend(config, Target("here", RemoteConfig(llama_url, **settings))))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


@pytest.mark.parametrize("way", WAYS)
def test_ten_turns_and_every_move_find_what_was_said_before(
    way: str, connect: Callable[..., RemoteBackend], config: Config
) -> None:
    make_every_move(lambda: connect(**WAYS[way]), config, GREEDY)


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_answer_goes_on_where_it_stopped(
    way: str, connect: Callable[..., RemoteBackend], config: Config
) -> None:
    with session_over(connect(**WAYS[way]), config, GREEDY) as session:
        session.options = replace(GREEDY, max_tokens=12)
        stopped = stop(session)
        if way != "anthropic":
            go_on(session, stopped)


def test_what_the_server_computes_are_our_ids_in_all_turns(
    llama_url: str, connect: Callable[..., RemoteBackend], config: Config
) -> None:
    folder = MODELS / "smollm2-135m"
    source = read_template(folder) or ""
    tokenizer = load_tokenizer(folder, control_text=source)
    template = ChatTemplate(source, tokenizer)
    with session_over(connect(**WAYS["ids"]), config, GREEDY) as session:
        said: list[int] = []
        for number in range(1, 5):
            answer = last_of(session.send(f"  What of train {number}?\n"))
            assert list(answer.prompt)[: len(said)] == said  # nothing is ever encoded anew
            said = [*answer.prompt, *answer.completion]
            messages = [Message(turn.role, turn.text, tokens=turn.tokens) for turn in session.history[:-1]]
            assert list(answer.prompt) == template.prompt(messages)
            assert answer.tokenizer == tokenizer.id
            assert len(answer.prompt) == _evaluated(llama_url, answer.prompt)


def _evaluated(url: str, ids: tuple[int, ...]) -> int:
    body = json.dumps({"prompt": ids, "n_predict": 0, "cache_prompt": True}).encode()
    with urlopen(Request(f"{url}/completion", body)) as response:
        return int(json.load(response)["tokens_evaluated"])


WILD = Options(max_tokens=24, temperature=50.0, top_k=0, top_p=1.0, min_p=0.0)
"""Draws tokens that no tokenizer cuts so."""


def test_with_text_what_encoding_anew_changes_is_counted_and_shown(
    connect: Callable[..., RemoteBackend], config: Config
) -> None:
    by_text = {"tokenizer": "server", "send": "text"}
    with session_over(connect(**by_text), config, GREEDY) as session:
        for seed in range(3, 11):  # a tokenizer may by chance cut a text as it was drawn
            session.new(f"drawn {seed}")
            session.options = replace(WILD, seed=seed)
            last_of(session.send("Say something."))
            session.options = GREEDY
            answer = last_of(session.send("And now?"))
            found = re.fullmatch(
                r"encoding the text anew changed (\d+) tokens? of what was said", answer.cache.reason
            )
            if found:
                break
    assert found and int(found[1]) > 0, answer.cache
    assert answer.usage.cached_tokens == answer.cache.diverged_at
    assert answer.cache.was and answer.cache.was != answer.cache.now


def test_ids_of_several_tokenizers_stand_side_by_side_in_a_session_that_moves(
    connect: Callable[..., RemoteBackend], config: Config, make_config: Callable[..., Config]
) -> None:
    with Session.from_config(connect(**WAYS["ids"]), config) as session:
        session.options = GREEDY
        there = last_of(session.send("Hello."))
        session.change_model("tiny", LocalBackend(make_config()))
        here = last_of(session.send("And now?"))
        assert here.tokenizer != there.tokenizer
        session.change_model("here", connect(**WAYS["ids"]))
        back = last_of(session.send("Who are you?"))
        assert back.tokenizer == there.tokenizer
        assert back.prompt[: len(there.prompt)] == there.prompt
        assert back.prompt[len(there.prompt) :][: len(there.completion)] == there.completion
        assert set(session.path[1].encoded) == {there.tokenizer}


@pytest.mark.slow
def test_a_session_goes_on_with_the_very_ids_in_a_local_model_of_the_same_tokenizer(
    connect: Callable[..., RemoteBackend], config: Config
) -> None:
    local = replace(config, model=replace(config.model, weights="native"))
    with session_over(connect(**WAYS["ids"]), config, GREEDY) as session:
        there = last_of(session.send("Where is train 2?"))
        session.change_model("smollm2-135m", LocalBackend(local))
        here = last_of(session.send("And train 3?"))
        assert here.tokenizer == there.tokenizer
        assert here.prompt[: len(there.prompt)] == there.prompt
        assert here.prompt[len(there.prompt) :][: len(there.completion)] == there.completion
        session.change_model("here", connect(**WAYS["text"]))
        assert held(last_of(session.send("And 4?"))) > 0.5
        session.change_model("here", connect(**WAYS["ids"]))
        back = last_of(session.send("And 5?"))
        assert back.prompt[: len(here.prompt)] == here.prompt


def test_the_command_line_talks_to_a_url_and_goes_on_there(
    llama_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATA", "CACHE_DIR", "MODELS"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    settings = tmp_path / "config.toml"
    settings.write_text(f'[remote.work]\nurl = "{llama_url}"\n')
    monkeypatch.setenv("KVCHAT_CONFIG", str(settings))
    asking = ["--max-tokens", "4", "--json", "--no-stdin"]
    assert main(["--url", llama_url, "-t", "proofread", "-p", "I has a cat.", *asking]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["-c", "-p", "He go home.", *asking]) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["session_id"] == second["session_id"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1
    assert main(["-m", "work", "-p", "Hi.", "--max-tokens", "2", "--no-stdin"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["models", "ls", "work"]) == 0
    assert f"work:{first['model']}" in capsys.readouterr().out
    assert main(["-m", "wrok:x", "-p", "Hi.", "--no-stdin"]) == 2
    assert "did you mean work:x?" in capsys.readouterr().err


def test_a_message_too_long_for_the_server_is_said_in_one_line(connect: Callable[..., RemoteBackend]) -> None:
    from kvchat.errors import ContextOverflowError

    backend = connect()
    with pytest.raises(ContextOverflowError, match="can't take so much"):
        list(backend.answer([Turn("user", "word " * 6000)], GREEDY))
