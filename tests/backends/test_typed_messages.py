"""Messages typed as people type them: the same answers as without, greedy and drawn, over whole conversations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvchat.backends.base import Answer, Done, Options, Reach
from kvchat.backends.local import LocalBackend
from kvchat.bench.typing import MESSAGES
from kvchat.bench.typist import Stroke, Typist
from kvchat.chat.anticipation import Anticipation, Ask
from kvchat.chat.session import Session
from tests.backends.test_ahead import opened, same
from tests.tiny import tiny_config, tiny_folder

TURNS = 5
"""Messages of one conversation."""


def asked_while(strokes: list[Stroke]) -> Iterator[Ask]:
    """What the terminal asks for while a message is typed, when all that is asked for is done at once."""
    anticipation = Anticipation()
    for stroke, after in zip(strokes, [*strokes[1:], None], strict=False):
        now, end = stroke.at_s, after.at_s if after else stroke.at_s
        while now <= end and not stroke.is_enter:
            if ask := anticipation.next(stroke.text.strip(), now, Reach.BEGUN):
                yield ask
                anticipation.end(ask)
            wait_s = anticipation.wait_s(now)
            now = now + wait_s + 1e-6 if wait_s is not None else end + 1


def answered(session: Session, text: str) -> Answer:
    *_, done = session.send(text)
    assert isinstance(done, Done)
    return done.answer


def replay(num_messages: int, folder: Path) -> None:
    model = tiny_folder(folder / "model", max_position_embeddings=4096)
    typed, plain = opened(tiny_config(model, folder / "a")), LocalBackend(tiny_config(model, folder / "b"))
    num_used = 0
    with closing(typed), closing(plain):
        for number in range(num_messages):
            if number % TURNS == 0:
                temperature = 0.0 if number % (2 * TURNS) else 0.8
                options = Options(
                    temperature=temperature,
                    seed=number,
                    max_tokens=12,
                    repetition_penalty=1.0 + number % 3 / 10,
                )
                one, other = (Session(each, options, "be brief") for each in (typed, plain))
            strokes = list(Typist(number).strokes(MESSAGES[number % len(MESSAGES)]))
            for ask in asked_while(strokes):
                list(one.ahead(ask.text, ask.reach))
            said = answered(one, strokes[-1].text)
            assert same(said, answered(other, strokes[-1].text)), (number, strokes[-1].text)
            num_used += said.timings.ahead_used_n > 12
    assert num_used > num_messages / 3


def test_typed_messages_are_answered_as_if_they_came_at_once(tmp_path: Path) -> None:
    replay(10, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_two_thousand_typed_messages_are_answered_as_if_they_came_at_once(tmp_path: Path) -> None:
    replay(2000, tmp_path)
