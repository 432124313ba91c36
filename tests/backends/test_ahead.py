"""What is computed for a message while it is typed: handed out to that very message, without a trace for any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvchat.backends.ahead import Unsent, ahead
from kvchat.backends.base import (
    Ahead,
    Answer,
    Done,
    Event,
    Keeping,
    Options,
    Prefilling,
    Reach,
    Role,
    Text,
    Turn,
)
from kvchat.backends.begun import BEGUN_TOKENS
from kvchat.backends.loading import Talk
from kvchat.backends.local import LocalBackend
from kvchat.backends.process import ProcessBackend
from kvchat.cache.block import common_prefix
from kvchat.config import Config
from kvchat.engine.ahead import LEAST_STEP, Pulse
from kvchat.engine.speculation import Speculation
from kvchat.models.pauses import Pauses
from tests.engine.test_holding import FAMILIES
from tests.tiny import tiny_folder

MakeConfig = Callable[..., Config]
SYSTEM = Turn(Role.SYSTEM, "be brief and say the quick brown fox")
GREEDY = Options(temperature=0.0, max_tokens=40)
OPTIONS = {
    "greedy": GREEDY,
    "sampled": Options(temperature=0.9, seed=7, max_tokens=40),
    "penalised": Options(temperature=0.8, seed=3, repetition_penalty=1.3, top_k=20, max_tokens=40),
    "short": Options(temperature=0.0, max_tokens=5),
    "stopped": Options(temperature=1.0, seed=5, stop=("e", " q"), max_tokens=40),
}


def user(text: str) -> Turn:
    return Turn(Role.USER, text)


def opened(config: Config) -> LocalBackend:
    """A backend that never takes the machine for a busy one."""
    backend = LocalBackend(config)
    talk_of(backend).pulse = Pulse(lambda: float("inf"))
    return backend


def talk_of(backend: LocalBackend) -> Talk:
    return backend._worker.wait()


@pytest.fixture
def backend(make_config: MakeConfig) -> Iterator[LocalBackend]:
    with closing(opened(make_config())) as backend:
        yield backend


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalBackend, LocalBackend]]:
    """Two backends of one model: one that is told what is typed, and one that is not."""
    from tests.tiny import tiny_config

    root = tmp_path_factory.mktemp("pair")
    folder = tiny_folder(root / "model", max_position_embeddings=4096)
    pair = opened(tiny_config(folder, root / "a")), opened(tiny_config(folder, root / "b"))
    yield pair
    for backend in pair:
        backend.close()


def answer(
    backend: LocalBackend, history: Sequence[Turn], options: Options = GREEDY, keeping: Keeping | None = None
) -> Answer:
    *_, done = backend.answer(history, options, keeping)
    assert isinstance(done, Done)
    return done.answer


def type_(
    backend: LocalBackend, history: Sequence[Turn], reach: Reach, options: Options = GREEDY
) -> list[Ahead]:
    return list(backend.ahead(history, options, reach))


def same(one: Answer, other: Answer) -> bool:
    return (one.prompt, one.completion, one.text, one.finish_reason, one.stop_text) == (
        other.prompt,
        other.completion,
        other.text,
        other.finish_reason,
        other.stop_text,
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_an_answer_that_was_begun_is_the_one_that_is_made_at_once(
    pair: tuple[LocalBackend, LocalBackend], name: str
) -> None:
    one, other = pair
    history = [SYSTEM, user("hello world, and so on")]
    for question in ("the lazy dog", "and so on and so on and so on", "jumps"):
        type_(one, history, Reach.BEGUN, OPTIONS[name])
        said, expected = answer(one, history, OPTIONS[name]), answer(other, history, OPTIONS[name])
        assert same(said, expected)
        assert said.timings.ahead_used_n >= min(BEGUN_TOKENS, len(said.completion))
        history += [said.turn(), user(question)]


def test_an_answer_that_was_begun_goes_on_with_guesses_as_it_would(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    history = [user("and so on and so on and so on")]
    completions = set()
    for draft, is_typed in ((0, False), (4, False), (4, True)):
        with closing(opened(make_config(model__draft=draft))) as backend:
            if is_typed:
                type_(backend, history, Reach.BEGUN)
            completions.add(answer(backend, history).completion)
    assert len(completions) == 1


edits = st.lists(
    st.one_of(
        st.tuples(
            st.just("type"), st.sampled_from(["h", " the", " fox", ".", "\n", "ü", " <|im_end|>", "  "])
        ),
        st.tuples(st.just("erase"), st.integers(1, 12)),
        st.tuples(st.just("insert"), st.integers(0, 30)),
        st.tuples(st.just("pause"), st.sampled_from(list(Reach))),
    ),
    max_size=12,
)


def typed_by(script: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Reach]]:
    """The text behind each edit, and how far it is computed then."""
    text = ""
    for verb, value in script:
        reach = Reach.TYPED
        if verb == "type":
            text += value
        elif verb == "erase":
            text = text[:-value]
        elif verb == "insert":
            text = text[:value] + " dog" + text[value:]
        else:
            reach = value
        yield text, reach


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=edits, name=st.sampled_from(list(OPTIONS)))
def test_however_a_message_is_typed_its_answer_is_the_same(
    pair: tuple[LocalBackend, LocalBackend], script: list[tuple[str, Any]], name: str
) -> None:
    one, other = pair
    text = ""
    for text, reach in typed_by(script):
        type_(one, [SYSTEM, user(text)], reach, OPTIONS[name])
    history = [SYSTEM, user(text.strip() or "hello")]
    assert same(answer(one, history, OPTIONS[name]), answer(other, history, OPTIONS[name]))


def test_a_begun_answer_is_not_handed_out_to_anything_else(pair: tuple[LocalBackend, LocalBackend]) -> None:
    one, other = pair
    history = [user("hello world")]
    others = [
        ([user("hello world.")], GREEDY),
        ([SYSTEM, *history], GREEDY),
        (history, replace(GREEDY, temperature=0.7, seed=1)),
        (history, replace(GREEDY, max_tokens=4)),
        (history, replace(GREEDY, stop=("a",))),
    ]
    for asked, options in others:
        type_(one, history, Reach.BEGUN)
        assert same(answer(one, asked, options), answer(other, asked, options))
    type_(one, history, Reach.BEGUN, replace(GREEDY, temperature=1.0, seed=1))
    seeded = replace(GREEDY, temperature=1.0, seed=2)
    assert same(answer(one, history, seeded), answer(other, history, seeded))


def test_only_so_many_tokens_are_made_ahead_and_none_twice(backend: LocalBackend) -> None:
    history = [user("hello world")]
    *_, last = type_(backend, history, Reach.BEGUN)
    assert isinstance(last, Ahead)
    assert (last.done, last.begun) == (last.total, BEGUN_TOKENS)
    assert type_(backend, history, Reach.BEGUN) == []
    computed = talk_of(backend).typed.tokens
    said = answer(backend, history)
    assert said.timings.ahead_n == computed
    assert said.timings.ahead_used_n == computed
    assert said.timings.cache_n == len(said.prompt) - 1
    assert said.cache.saved_s == 0.0


def test_what_is_thrown_away_is_counted_as_work_and_saves_nothing(backend: LocalBackend) -> None:
    type_(backend, [user("hello world, and so on")], Reach.BEGUN)
    computed = talk_of(backend).typed.tokens
    type_(backend, [], Reach.TYPED)
    said = answer(backend, [user("jumps")])
    assert said.timings.ahead_n == said.timings.idle_n == computed > BEGUN_TOKENS
    assert said.timings.ahead_used_n < 6  # the frame in front of any message
    assert said.cache.saved_s == 0.0


def test_the_pause_before_enter_is_no_part_of_a_begun_answers_times(backend: LocalBackend) -> None:
    history, pause_ms = [user("hello world")], 400.0
    type_(backend, history, Reach.BEGUN)
    worked_ms = talk_of(backend).typed.seconds * 1e3
    time.sleep(pause_ms / 1e3)
    sent = time.perf_counter()
    said = answer(backend, history)
    took_ms = 1e3 * (time.perf_counter() - sent)
    assert said.timings.ttft_ms < took_ms
    assert said.timings.predicted_ms + said.timings.prompt_ms < worked_ms + took_ms
    assert said.timings.predicted_n == len(said.completion)


def test_a_dropped_message_leaves_no_trace(backend: LocalBackend) -> None:
    said = answer(backend, [SYSTEM, user("hello world")])
    talk = talk_of(backend)
    cache = talk.model.engine.cache
    assert cache is not None and cache.drain(10.0)
    before = (talk.last, list(talk.sequence.state.tokens), replace(cache.stats.process, store_s=0.0))
    history = [SYSTEM, user("hello world"), said.turn()]
    for text in ("the quick", "the quick brown fox jumps " * 4):
        for reach in Reach:
            type_(backend, [*history, user(text)], reach)
    type_(backend, history, Reach.TYPED)
    tokens = talk.sequence.state.tokens
    assert (talk.last, replace(cache.stats.process, store_s=0.0)) == (before[0], before[2])
    assert tokens[: len(before[1])] == before[1] and len(tokens) < len(before[1]) + 8
    assert talk.unsent is None


def test_nothing_of_an_unsent_message_is_stored(backend: LocalBackend) -> None:
    """A word that is in no other text is typed, begun to be answered and deleted, before, between and after answers."""
    secret = "zyzzyva"
    ids = talk_of(backend).model.tokenizer.encode_as_text(secret)
    history: list[Turn] = [SYSTEM]
    for round_ in range(4):
        text = f"{secret} the quick brown fox " * (5 + round_)
        for reach in Reach:
            type_(backend, [*history, user(text)], reach)
        if round_ % 2:
            type_(backend, history, Reach.TYPED)
        said = answer(backend, [*history, user(f"hello {round_}")])
        history += [user(f"hello {round_}"), said.turn()]
        type_(backend, [*history, user(text)], Reach.BEGUN)
        list(backend.prepare(history, GREEDY))
    cache = talk_of(backend).model.engine.cache
    assert cache is not None and cache.drain(10.0)
    needle = b"".join(token.to_bytes(4, "little") for token in ids[:3])
    files = [path for path in backend.config.paths.cache.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert needle not in content and secret.encode() not in content
    for history_ in ([SYSTEM, user(f"{secret} the quick brown fox " * 5)],):
        talk_of(backend).sequence.state.keep(0)
        asked = answer(backend, history_, keeping=Keeping("ro"))
        shared = common_prefix(asked.prompt, answer(backend, [SYSTEM, user("x")]).prompt)
        assert asked.usage.cached_tokens <= shared


def test_a_message_that_is_sent_does_not_wait_for_the_token_that_is_being_made(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(backend, [user("jumps")])
    loaded = talk_of(backend).model.engine.loaded
    sent: list[Iterator[Event]] = []
    pause = type(loaded.network.pauses).pause

    def sending(self: Pauses) -> None:
        """Enter is pressed inside the forward of the third token."""
        unsent = talk_of(backend).unsent
        begun = unsent.begun if isinstance(unsent, Unsent) else None
        if begun is not None and begun.num_tokens == 2 and not sent:
            sent.append(backend.answer([user("jumps")], GREEDY))
        pause(self)

    monkeypatch.setattr(type(loaded.network.pauses), "pause", sending)
    *_, last = type_(backend, [user("jumps")], Reach.BEGUN)
    assert last.begun == 2
    *_, done = sent[0]
    assert isinstance(done, Done)
    assert same(done.answer, expected)


def test_a_key_ends_what_is_computed_within_a_step(backend: LocalBackend) -> None:
    long = [user("the quick brown fox " * 60)]
    stream = backend.ahead(long, GREEDY, Reach.BEGUN)
    first = next(stream)
    assert isinstance(first, Ahead)
    other = [user("a")]
    stream_after = backend.ahead(other, GREEDY, Reach.WHOLE)
    rest = list(stream)
    assert all(isinstance(event, Ahead) and not event.begun for event in rest) or len(rest) < 20
    list(stream_after)
    assert same(answer(backend, other), answer(backend, other))


def test_a_history_that_is_too_long_is_left_to_the_answer(backend: LocalBackend) -> None:
    history = [user("the quick brown fox " * 600)]
    for reach in Reach:
        assert type_(backend, history, reach) == []


def test_a_call_with_the_cache_off_computes_nothing_ahead(backend: LocalBackend) -> None:
    assert list(backend.ahead([user("hello")], GREEDY, Reach.BEGUN, Keeping("off"))) == []


@pytest.mark.parametrize("family", ["falcon_h1", "mamba"])
def test_models_with_snapshots_go_back_to_the_said_and_those_of_single_tokens_do_nothing(
    family: str, tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = tiny_folder(tmp_path / family, family=family, **FAMILIES[family])
    configs = (make_config(model__name=str(folder)), make_config(model__name=str(folder), cache__mode="off"))
    with closing(opened(configs[0])) as one, closing(opened(configs[1])) as other:
        history = [SYSTEM, user("hello world")]
        for text in ("the quick brown fox", "jumps over"):
            said = answer(one, history)
            assert said.completion == answer(other, history).completion
            history += [said.turn(), user(text)]
            for typed in (text[:5], text[:9], text[:3] + "xx", text):
                for reach in Reach:
                    events = type_(one, [*history[:-1], user(typed)], reach)
                    assert family == "falcon_h1" or events == []
        said = answer(one, history)
        assert said.completion == answer(other, history).completion
        assert (said.timings.ahead_used_n > 0) is (family == "falcon_h1")


def test_after_an_edit_a_model_with_snapshots_computes_no_more_than_the_typed_text(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    folder = tiny_folder(tmp_path / "falcon", family="falcon_h1", **FAMILIES["falcon_h1"])
    with closing(opened(make_config(model__name=str(folder)))) as backend:
        history = [SYSTEM, user("hello world " * 10)]
        history.append(answer(backend, history).turn())
        type_(backend, [*history, user("the quick brown")], Reach.WHOLE)
        talk = talk_of(backend)
        before, text = talk.typed.tokens, "the lazy brown"
        type_(backend, [*history, user(text)], Reach.WHOLE)
        assert talk.typed.tokens - before <= talk.model.tokenizer.count(text) + 12


def test_nothing_is_computed_while_the_machine_is_busy(backend: LocalBackend) -> None:
    talk = talk_of(backend)
    talk.pulse = Pulse(lambda: 0.0)
    for seconds in (*[0.01] * 10, *[1.0] * 3):
        talk.pulse.beat(1, seconds)
    (event,) = ahead(talk, [user("hello")], GREEDY, Keeping(), Reach.WHOLE, lambda: False)
    assert event == Ahead(0, 0, is_resting=True)


class Knowing:
    """A drafter that knows the whole conversation."""

    evidence = 9

    def __init__(self, whole: Sequence[int]) -> None:
        self._whole = whole
        self._length = 0

    def begin(self, tokens: Sequence[int]) -> None:
        self._length = len(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        self._length += len(tokens)

    def draft(self, length: int) -> list[int]:
        return list(self._whole[self._length : self._length + length])


class Noting(Pulse):
    """A pulse that is never tired, and notes the sizes of steps."""

    def __init__(self) -> None:
        super().__init__(lambda: float("inf"))
        self.sizes: list[int] = []

    def beat(self, num_tokens: int, seconds: float) -> None:
        self.sizes.append(num_tokens)


def test_a_word_that_was_typed_is_not_compared_with_a_token_of_an_answer(backend: LocalBackend) -> None:
    talk, pulse = talk_of(backend), Noting()
    talk.pulse = pulse
    text = "the quick brown fox jumps over the lazy dog and away"
    for end in range(12, len(text)):
        type_(backend, [user(text[:end])], Reach.TYPED)
    assert len(pulse.sizes) > 5
    assert min(pulse.sizes) >= LEAST_STEP


def test_tokens_that_were_guessed_right_are_no_measure_of_the_machines_pace(make_config: MakeConfig) -> None:
    with closing(opened(make_config(model__draft=4))) as backend:
        history = [user("hello world")]
        said = answer(backend, history)
        talk, pulse = talk_of(backend), Noting()
        talk.pulse = pulse
        assert talk.sequence.speculation is not None
        foresight = talk.sequence.speculation._foresight
        talk.sequence.speculation = Speculation(Knowing([*said.prompt, *said.completion]), foresight)
        *_, last = type_(backend, history, Reach.BEGUN)
        assert last.begun == BEGUN_TOKENS
        assert talk.sequence.speculation.drafts.accepted >= 3
        assert pulse.sizes.count(1) <= 2, "one for each token, though most of them were there"


def test_a_begun_answer_crosses_the_pipe(make_config: MakeConfig) -> None:
    history = [user("hello world")]
    with closing(ProcessBackend(make_config())) as backend:
        assert list(backend.ahead(history, GREEDY, Reach.BEGUN)) == []  # nothing is started for it
        backend.info()
        events = list(backend.ahead(history, GREEDY, Reach.BEGUN))
        assert isinstance(events[-1], Ahead) and events[-1].begun > 0  # of a busy machine no more
        said = list(backend.answer(history, GREEDY))
        assert isinstance(said[0], Prefilling) and isinstance(said[-1], Done)
        assert any(isinstance(event, Text) for event in said)
        assert said[-1].answer.timings.ahead_used_n > events[-1].begun
