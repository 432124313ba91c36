"""What is only asked stays out of the way of whoever comes back to a dialogue."""

from pathlib import Path

import pytest

from kvchat.chat.opening import opening
from kvchat.chat.session import Session
from kvchat.config import Config, load_config
from tests.scripted import ScriptedBackend


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config({"paths.data": str(tmp_path)}, environ={"KVCHAT_CONFIG": "/dev/null"})


def held(
    config: Config, *texts: str, key: str | None = None, is_oneshot: bool = False, is_fork: bool = False
) -> Session:
    start = opening(config, key=key, is_fork=is_fork, flags=(), is_oneshot=is_oneshot)
    session = start.session(ScriptedBackend())
    for text in texts:
        session.ask(text)
    return session


def test_a_dialogue_goes_on_though_something_was_asked_since(config: Config) -> None:
    dialogue = held(config, "hello").id
    asked = held(config, "quick question", is_oneshot=True).id
    assert held(config, key="").id == dialogue
    assert held(config, key="latest", is_oneshot=True).id == asked, "one question may follow another"
    assert held(config, key=asked).id == asked


def test_where_nothing_but_questions_was_ever_asked_the_last_one_is_gone_on_with(config: Config) -> None:
    held(config, "first", is_oneshot=True)
    asked = held(config, "second", is_oneshot=True).id
    assert held(config, key="").id == asked


def test_a_question_that_is_gone_on_with_in_a_dialogue_becomes_one(config: Config) -> None:
    asked = held(config, "quick question", is_oneshot=True).id
    held(config, "hello")
    held(config, "tell me more", key=asked)
    assert held(config, key="").id == asked
    assert not held(config, key=asked).store.session(asked).is_oneshot


def test_a_question_that_is_asked_in_a_dialogue_leaves_it_one(config: Config) -> None:
    dialogue = held(config, "hello").id
    held(config, "and this", key="", is_oneshot=True)
    assert not held(config).store.session(dialogue).is_oneshot
    fork = held(config, "beside it", key="", is_oneshot=True, is_fork=True)
    assert fork.id != dialogue
    assert held(config, key="").id == dialogue


def test_a_new_conversation_in_a_dialogue_that_began_as_a_question_is_no_question(config: Config) -> None:
    session = held(config, "quick question", is_oneshot=True)
    session.new()
    session.ask("hello")
    assert not session.store.session(session.id).is_oneshot
