"""Messages as people type them, computed ahead at the moments at which the terminal has it done: the answers stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from kvchat.backends.base import Options, Reach, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.bench.typing import MESSAGES
from kvchat.bench.typist import Typist
from kvchat.chat.anticipation import Anticipation, Ask
from tests.backends.test_ahead import answer, opened, type_
from tests.tiny import tiny_config, tiny_folder

TICK_S = 0.05
OPTIONS = (
    Options(temperature=0.0, max_tokens=24),
    Options(temperature=0.9, seed=7, repetition_penalty=1.2, max_tokens=24),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalBackend, LocalBackend]]:
    """One that is told what is typed, and one that is not."""
    root = tmp_path_factory.mktemp("pair")
    folder = tiny_folder(root / "model", max_position_embeddings=4096)
    configs = [tiny_config(folder, root / name) for name in "ab"]
    with closing(opened(configs[0])) as one, closing(opened(configs[1])) as other:
        yield one, other


def asked_of(seed: int, most: Reach) -> Iterator[Ask]:
    """What the terminal asks for while a message is typed, by a clock of its own; the last is the message."""
    typing, text = Anticipation(), ""
    for stroke, after in pairwise(Typist(seed).strokes(MESSAGES[seed % len(MESSAGES)])):
        now, text = stroke.at_s, after.text
        while now < after.at_s:
            if ask := typing.next(stroke.text.strip(), now, most):
                yield ask
                typing.end(ask)
            now += TICK_S
    yield Ask(text.strip(), Reach.TYPED)


@pytest.mark.parametrize("num_messages", [4, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.timeout(0)
def test_messages_as_people_type_them_are_answered_as_if_nothing_had_been_computed(
    pair: tuple[LocalBackend, LocalBackend], num_messages: int
) -> None:
    history: list[Turn] = []
    num_used = 0
    for seed in range(num_messages):
        history = history if seed % 4 else []
        options, most = OPTIONS[seed % 2], (Reach.BEGUN, Reach.WHOLE)[seed // 2 % 2]
        for ask in asked_of(seed, most):
            message = Turn(Role.USER, ask.text)
            type_(pair[0], [*history, message], ask.reach, options)
        said, expected = (answer(backend, [*history, message], options) for backend in pair)
        assert (said.prompt, said.completion) == (expected.prompt, expected.completion)
        num_used += said.timings.ahead_used_n
        history += [message, said.turn()]
    assert num_used > 10 * num_messages
