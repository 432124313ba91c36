"""Titles by the model: asked for once, kept where they make sense, and nothing of them in the conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Answer, Event, FinishReason, ModelInfo, Options, Role, Turn
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.chat.titling import TITLE_REQUEST, sensible_title
from kvchat.chat.tree import Exchange
from kvchat.config import load_config
from tests.chat.exchanges import reopened, said
from tests.scripted import ScriptedBackend

QUESTION = "How do I boil an egg so that the yolk stays soft?"


class TitlingBackend(ScriptedBackend):
    """One that answers the request for a title with `title`."""

    title = "Boiling a Soft Egg"
    reuse = "blocks"

    def info(self) -> ModelInfo:
        return replace(super().info(), reuse=self.reuse)

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        if history[-1].text == TITLE_REQUEST:
            history = (*history[:-1], Turn(Role.USER, f"say {self.title}"))
        return super().answer(history, options)


@pytest.fixture
def backend() -> TitlingBackend:
    return TitlingBackend()


@pytest.fixture
def session(store: Store, backend: TitlingBackend) -> Session:
    session = Session(backend, system="be brief", store=store, model="scripted")
    session.titles = True
    session.ask(QUESTION)
    return session


def test_the_model_titles_a_conversation_once_and_nothing_of_that_is_said_in_it(
    session: Session, backend: TitlingBackend
) -> None:
    assert session.title == QUESTION
    session.make_title()
    session.make_title()
    assert session.title == reopened(session).title == "Boiling a Soft Egg"
    assert [row.label for row in session.store.sessions()] == ["Boiling a Soft Egg"]
    assert said(session) == said(reopened(session)) == [QUESTION]
    assert len(backend.histories) == 2
    assert [turn.text for turn in backend.histories[1]][:2] == ["be brief", QUESTION]
    assert backend.options[1].max_tokens == 16
    session.ask("and hard?")
    assert session.title == reopened(session).title == "Boiling a Soft Egg"
    assert session.totals.answers == 2


def test_nobody_is_asked_where_a_title_is_not_wanted(session: Session, backend: TitlingBackend) -> None:
    session.titles = False
    assert not session.wants_title
    session.titles = True
    session.rename("eggs")
    session.make_title()
    session.new()
    assert not session.wants_title, "nothing has been said"
    assert len(backend.histories) == 1


def test_a_server_is_not_asked(session: Session, backend: TitlingBackend) -> None:
    backend.reuse = "server"
    session.make_title()
    assert len(backend.histories) == 1
    assert session.title == QUESTION


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('Title: "Boiling an Egg"', "Boiling an Egg"),
        ("**The title of this conversation is: Soft Yolks**", "Soft Yolks"),
        ("Soft egg\n\nI hope this helps.", "Soft egg"),
        ("# Boiled eggs.", "Boiled eggs"),
        ("", ""),
        ("***", ""),
        ("Title:", ""),
        ("A wonderful day", ""),
        ("A conversation about that", ""),
        ("Boil the egg in a pot of water for six minutes and then put it in cold water", ""),
        ("egg" * 30, ""),
    ],
)
def test_a_title_that_is_none_leaves_the_first_words(session: Session, text: str, title: str) -> None:
    answer = replace(Answer.cut_short("", text=text), finish_reason=FinishReason.STOP)
    assert sensible_title(answer, session.path[0]) == title
    assert sensible_title(replace(answer, finish_reason=FinishReason.LENGTH), session.path[0]) == ""


def test_a_title_without_spaces_counts_by_its_characters() -> None:
    first = Exchange("1", None, Turn(Role.USER, "怎么煮鸡蛋？"))
    answer = replace(Answer.cut_short("", text="煮鸡蛋"), finish_reason=FinishReason.STOP)
    assert sensible_title(answer, first) == "煮鸡蛋"


def test_titles_are_a_setting_and_never_made_of_what_is_not_saved(tmp_path: Path) -> None:
    def titles(**more: object) -> bool:
        flags = {"paths.data": tmp_path, **{key.replace("__", "."): value for key, value in more.items()}}
        config = load_config(flags, environ={"KVCHAT_CONFIG": "/dev/null"})
        return Session.from_config(ScriptedBackend(), config).titles

    assert titles()
    assert not titles(chat__titles="off")
    assert not titles(chat__save=False)
