"""A conversation that makes room for itself: in idle time, when a message needs it, with what stays and what is said of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest

from kvchat.backends.base import (
    Ahead,
    Done,
    Event,
    FinishReason,
    ModelInfo,
    Notice,
    Options,
    Prefilling,
    Reach,
    Turn,
)
from kvchat.chat.session import SUMMARY_REQUEST, Session, WhenFull
from kvchat.chat.store import Store
from kvchat.config import load_config
from kvchat.errors import ContextOverflowError
from kvchat.ui.oneshot import Form, OneShot
from tests.chat.exchanges import finish, reopened, said
from tests.chat.test_shortening import told
from tests.scripted import ScriptedBackend

CONTEXT = 400


class SmallBackend(ScriptedBackend):
    """The scripted backend in a context of 400 words, which it refuses to pass; it sums up as it is told to."""

    summary = "the sum of it"
    ends = FinishReason.STOP

    num_summaries = 0
    typed_behind: tuple[Turn, ...] = ()

    def ahead(self, history: Sequence[Turn], options: Options, reach: Reach) -> Iterator[Ahead]:
        self.typed_behind = tuple(history[:-1])
        return super().ahead(history, options, reach)

    def prepare(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        self.prepared.append(tuple(history))
        yield Prefilling(1, 1, 0)

    def info(self) -> ModelInfo:
        return replace(super().info(), context=CONTEXT)

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        if sum(len(turn.text.split()) for turn in history) >= CONTEXT:
            raise ContextOverflowError("too long", "shorten it")
        if not history[-1].text.endswith(SUMMARY_REQUEST):
            yield from super().answer(history, options)
            return
        self.num_summaries += 1
        text = self.summary if self.summary.startswith("slow ") else f"say {self.summary}"
        said = (*history[:-1], Turn(history[-1].role, text))
        for event in super().answer(said, options):
            cut = isinstance(event, Done) and event.answer.finish_reason is FinishReason.STOP
            yield Done(replace(event.answer, finish_reason=self.ends)) if cut else event  # type: ignore[union-attr]


@pytest.fixture
def backend() -> SmallBackend:
    return SmallBackend()


@pytest.fixture
def session(store: Store, backend: SmallBackend) -> Session:
    """One that summarises by itself."""
    session = Session(backend, system="be brief", store=store, model="scripted")
    session.when_full = WhenFull.AUTO
    return session


def talk(session: Session, num_messages: int, *, is_idle: bool = True) -> list[str]:
    """Say some messages of about twelve words, answered with fifteen, with idle time between; what was told of it."""
    notices = []
    for number in range(num_messages):
        if is_idle:
            session.prepare()
        for event in session.send(f"fact {number} " + "and so on " * 3 + "end"):
            if isinstance(event, Notice):
                assert not event.is_warning
                notices.append(event.message)
    return notices


def length(history: Sequence[Turn]) -> int:
    return sum(len(turn.text.split()) for turn in history)


def test_a_conversation_goes_on_past_its_context_and_all_of_it_stays(
    session: Session, backend: SmallBackend
) -> None:
    notices = talk(session, 60)
    assert len(notices) >= 3
    assert all("told as a summary from here on; the last" in line for line in notices)
    assert all(length(history) < CONTEXT for history in backend.histories)
    assert len(session.path) == len(reopened(session).path) == 60
    assert told(session)[0] == SUMMARY_REQUEST
    assert told(reopened(session)) == told(session)
    assert [hit.text[:7] for _, hit in session.store.search("fact 3")][:1] == ["fact 39"]
    assert len(session.store.search("fact", limit=100)) == 60


def test_the_prefix_breaks_once_an_epoch(session: Session, backend: SmallBackend) -> None:
    notices = talk(session, 60)
    asked = [history for history in backend.histories if not history[-1].text.startswith("say ")]
    grown = [later[: len(before)] == before for before, later in pairwise(asked)]
    assert grown.count(False) == len(notices)


def test_what_is_made_in_idle_time_is_put_in_force_by_the_next_message(
    session: Session, backend: SmallBackend
) -> None:
    while not backend.num_summaries:
        talk(session, 1, is_idle=False)
        session.prepare()
    assert session.summary is None
    prepared, asked = backend.prepared[-1], len(backend.histories)
    assert [turn.text for turn in prepared[1:3]] == [SUMMARY_REQUEST, backend.summary]
    finish(session.ahead("typed", Reach.WHOLE))
    assert backend.typed_behind == prepared
    notices = talk(session, 1, is_idle=False)
    assert len(notices) == 1
    assert len(backend.histories) == asked + 1
    assert backend.histories[-1][: len(prepared)] == prepared


def test_room_is_made_for_a_message_that_needs_it_and_that_is_said_before(
    session: Session, backend: SmallBackend
) -> None:
    session.prepares = False
    notices = talk(session, 30)
    assert any("the context is full" in line and "summarised first" in line for line in notices)
    assert len(session.path) == 30
    assert all(length(history) < CONTEXT for history in backend.histories)


def test_a_long_message_leaves_fewer_of_the_last_ones(session: Session, backend: SmallBackend) -> None:
    talk(session, 6)
    finish(session.send("words " * 200))
    assert session.last
    assert len(session.path) == 7
    assert told(session)[0] == SUMMARY_REQUEST
    with pytest.raises(ContextOverflowError):
        finish(session.send("words " * 500))
    assert len(session.path) == 7


def test_an_answer_of_unknown_length_is_asked_again_with_room(
    session: Session, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a server that does not tell its context and refuses what is too long."""
    monkeypatch.setattr(SmallBackend, "info", lambda self: replace(ScriptedBackend.info(self), context=0))
    notices = talk(session, 40)
    assert len(session.path) == 40
    assert any("told as a summary" in line for line in notices)


@pytest.mark.parametrize(
    ("summary", "ends", "why"),
    [
        ("", FinishReason.STOP, "the summary was empty, so "),
        ("so so so", FinishReason.REPETITION, "the summary kept repeating itself, so "),
        ("and then", FinishReason.LENGTH, "the summary was too long, so "),
    ],
)
def test_where_a_summary_is_none_the_oldest_are_left_out_and_that_is_said(
    session: Session, backend: SmallBackend, summary: str, ends: FinishReason, why: str
) -> None:
    backend.summary, backend.ends = summary, ends
    notices = talk(session, 40)
    assert notices
    assert all(line.startswith(why) and "left out from here on" in line for line in notices)
    assert SUMMARY_REQUEST not in told(session)
    assert len(session.path) == 40


def test_the_oldest_are_left_out_where_the_user_wants_that(session: Session, backend: SmallBackend) -> None:
    session.when_full = WhenFull.DROP
    notices = talk(session, 40)
    assert notices
    assert all("left out from here on; the last" in line for line in notices)
    assert not backend.num_summaries


@pytest.mark.parametrize("when_full", [WhenFull.OFF, WhenFull.ASK])
def test_by_default_nothing_is_made_shorter(session: Session, when_full: WhenFull) -> None:
    session.when_full = when_full
    with pytest.raises(ContextOverflowError):
        talk(session, 40)
    assert session.summary is None
    assert Session(ScriptedBackend()).when_full is WhenFull.OFF


def test_what_is_pinned_and_the_system_prompt_are_in_every_prompt(
    session: Session, backend: SmallBackend
) -> None:
    talk(session, 1)
    session.pin()
    num_before = len(backend.histories)
    notices = talk(session, 50)
    assert all("and 1 pinned stay word for word" in line for line in notices)
    for history in backend.histories[num_before:]:
        assert history[0].text == "be brief"
        assert history[1] == backend.histories[0][1]


def test_pins_that_leave_no_room_are_named(session: Session) -> None:
    for number in range(14):
        talk(session, 1)
        if number < 12:
            session.pin()
    with pytest.raises(ContextOverflowError) as refused:
        talk(session, 20)
    assert "/unpin" in refused.value.remedy


def test_a_summary_that_is_cancelled_while_one_waits_takes_the_message_back(
    session: Session, backend: SmallBackend
) -> None:
    session.prepares = False
    talk(session, 9)
    backend.summary = "x" * 400
    before = said(session)
    events = session.send("words " * 200)
    done = None
    for event in events:
        if isinstance(event, Notice):
            continue
        backend.cancel()
        done = event
    assert isinstance(done, Done)
    assert done.answer.finish_reason is FinishReason.CANCELLED
    assert said(session) == before
    assert session.summary is None


def test_a_message_does_not_wait_for_a_summary_that_is_made_in_idle_time(
    session: Session, backend: SmallBackend
) -> None:
    backend.summary = "slow 300"
    while length(session.history) <= 0.75 * CONTEXT:
        talk(session, 1, is_idle=False)
    idle = threading.Thread(target=session.prepare)
    idle.start()
    while not (backend.num_summaries and session.is_shortening):
        time.sleep(0.005)
    session.ask("in between")
    idle.join()
    assert told(session)[0] != SUMMARY_REQUEST
    assert said(session)[-1] == "in between"
    backend.summary = "the sum of it"
    talk(session, 1)
    assert told(session)[0] == SUMMARY_REQUEST


def test_questions_of_a_file_go_on_past_the_context_and_say_so_on_stderr(session: Session) -> None:
    stdout, stderr = StringIO(), StringIO()
    texts = [f"fact {number} " + "and so on " * 3 for number in range(30)]
    assert OneShot(session, Form(), stdout=stdout, stderr=stderr).run(texts) == 0
    assert stdout.getvalue().count("you said") == 30
    assert " older messages are told as a summary from here on" in stderr.getvalue()
    quiet = StringIO()
    assert OneShot(session, Form(quiet=True), stdout=stdout, stderr=quiet).run(texts) == 0
    assert "from here on" not in quiet.getvalue()


def test_the_setting_says_what_is_done(tmp_path: Path) -> None:
    for value in ("auto", "drop", None):
        config = load_config({"chat.when_full": value, "chat.save": False, "paths.data": tmp_path})
        session = Session.from_config(ScriptedBackend(), config)
        assert session.when_full == (value or "off")


def test_after_going_back_nothing_is_summarised_before_there_is_need(
    session: Session, backend: SmallBackend
) -> None:
    while not talk(session, 1):
        pass
    session.expand()
    asked = len(backend.histories)
    session.prepare()
    assert len(backend.histories) == asked
    assert told(session) == said(session)
    talk(session, 20)
    assert told(session)[0] == SUMMARY_REQUEST


def test_a_summary_made_in_idle_time_is_forgotten_where_one_has_moved_away(
    session: Session, backend: SmallBackend
) -> None:
    while not backend.num_summaries:
        talk(session, 1, is_idle=False)
        session.prepare()
    session.undo(len(session.path) - 1)
    talk(session, 1)
    assert told(session) == said(session)


RULE = "Always call me Marlow."


def test_the_users_own_facts_and_instructions_are_told_beside_every_summary(
    session: Session, backend: SmallBackend
) -> None:
    session.ask(RULE)
    notices = talk(session, 60)
    assert all("and 1 sentence of yours stay word for word" in line for line in notices)
    assert all(any(RULE in turn.text for turn in history) for history in backend.histories)
    assert told(session)[0].endswith(f"- {RULE}\n\n{SUMMARY_REQUEST}")
    assert told(reopened(session)) == told(session)


def test_they_are_told_where_the_summary_is_none(session: Session, backend: SmallBackend) -> None:
    backend.ends = FinishReason.LENGTH
    session.ask(RULE)
    notices = talk(session, 60)
    assert all("left out from here on" in line and "1 sentence of yours" in line for line in notices)
    assert told(session)[0] == f"What I told you, in my words:\n- {RULE}"
    assert all(any(RULE in turn.text for turn in history) for history in backend.histories)
    assert all(length(history) < CONTEXT for history in backend.histories)


def test_nothing_is_told_of_what_the_user_leaves_out(session: Session) -> None:
    session.when_full = WhenFull.DROP
    session.ask(RULE)
    talk(session, 40)
    assert not any(RULE in text for text in told(session))
