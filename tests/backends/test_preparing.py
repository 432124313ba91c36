"""The next prompt's beginning, computed while nobody waits: for each template what its kind promises, and the same answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.backends.asking import conversation
from kvchat.backends.base import (
    Answer,
    Done,
    Event,
    FinishReason,
    Keeping,
    Notice,
    Options,
    Phase,
    Prefilling,
    Role,
    Turn,
)
from kvchat.backends.local import LocalBackend
from kvchat.backends.preparing import prepare
from kvchat.backends.process import ProcessBackend
from kvchat.chat.session import Session
from kvchat.cli import main
from kvchat.config import Config
from kvchat.models.kv_state import KVState
from kvchat.models.text.template import Message
from tests.backends.conftest import BY_NAME
from tests.models.chat_templates import (
    KEEPS,
    SAMPLES,
    Sample,
    generated,
)

SYSTEM = Turn(Role.SYSTEM, "the quick brown fox jumps over the lazy dog and so on " * 30)
Open = Callable[..., LocalBackend]


def user(text: str) -> Turn:
    return Turn(Role.USER, text)


def answer(backend: LocalBackend, history: Sequence[Turn], max_tokens: int = 4) -> Answer:
    *_, last = backend.answer(history, Options(max_tokens=max_tokens, temperature=0.0))
    assert isinstance(last, Done)
    return last.answer


def prepared(backend: LocalBackend, history: Sequence[Turn]) -> list[Event]:
    return list(backend.prepare(history, Options()))


def with_answer(backend: LocalBackend, history: Sequence[Turn], text: str, thought: str = "") -> list[Turn]:
    """The history with an answer, whose KV is live as if it had just been generated."""
    template = backend._worker.wait().model.template
    messages = [Message(turn.role.value, turn.text, turn.reasoning, turn.tokens) for turn in history]
    made = generated(template, messages, text, thought if template.marks else "")
    turn = Turn(Role.ASSISTANT, text, made.reasoning, tuple(made.tokens or ()), template.tokenizer.id)
    list(backend.warm([*history, turn]))
    return [*history, turn]


def share(said: Answer) -> float:
    """Of the prompt, what came from the cache."""
    return said.timings.cache_n / (said.timings.cache_n + said.timings.prompt_n)


def test_ten_turns_of_a_reasoning_chat_find_their_past_computed(open_backend: Open) -> None:
    backend, cold = open_backend("qwen3"), open_backend("qwen3", cache__mode="off")
    unprepared = open_backend("qwen3", cache__prepare=False)
    history: list[Turn] = [SYSTEM]
    shares: list[float] = []
    for number in range(10):
        history.append(user(f"and so on {number}"))
        said = answer(backend, history)
        assert said.completion == answer(cold, history).completion
        assert (said.timings.idle_n > 0) is (number > 0)
        shares.append(share(said))
        history = with_answer(backend, history, "the lazy dog " * 8, "the quick brown fox " * 10)
        assert prepared(backend, history)
    assert min(shares[1:]) >= 0.95
    list(unprepared.warm(history))
    assert prepared(unprepared, history) == []
    assert share(answer(unprepared, [*history, user("and so on")])) < 0.95, "or this test shows nothing"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_reuse_is_as_classified_and_changes_no_answer(open_backend: Open, sample: Sample) -> None:
    backend, cold = open_backend(sample.name), open_backend(sample.name, cache__mode="off")
    assert backend.info().template == sample.kind
    history: list[Turn] = [Turn(Role.SYSTEM, "be brief")]
    for question in ("hello", "and so on <|im_end|>", "the fox"):
        history.append(user(question))
        asked = answer(backend, history).prompt
        history = with_answer(backend, history, "lazy dog", "quick fox")
        steps = prepared(backend, history)
        again = prepared(backend, history)
        said, afresh = (answer(one, [*history, user("world")], 6) for one in (backend, cold))
        assert said.completion == afresh.completion
        assert again == [], "what is done is not done again"
        assert bool(steps) is (sample.kind is not KEEPS)
        if sample.kind is KEEPS:
            assert said.timings.cache_n == len(asked) + len(history[-1].tokens or ())
        else:
            *_, last = steps
            assert isinstance(last, Prefilling)
            assert last.done == last.total == said.timings.idle_n
            assert said.timings.cache_n == last.cached + last.total


@pytest.mark.parametrize("verb", ["retry", "continue"])
def test_an_answer_is_retried_and_continued_as_if_nothing_had_been_prepared(
    open_backend: Open, verb: str
) -> None:
    backend, cold = open_backend("qwen3"), open_backend("qwen3", cache__mode="off")
    asked = [SYSTEM, user("hello")]
    answer(backend, asked)
    history = with_answer(backend, asked, "the lazy dog " * 8, "the quick brown fox " * 10)
    talk = backend._worker.wait()
    talk.model.engine.store(talk.sequence)  # as an answer does at its end
    assert prepared(backend, history)
    wanted = asked if verb == "retry" else history
    said = answer(backend, wanted, 8)
    assert said.completion == answer(cold, wanted, 8).completion
    assert said.timings.prompt_n <= 16, "its blocks were kept before"


def test_what_was_computed_before_a_message_was_sent_is_kept(open_backend: Open) -> None:
    backend, cold = open_backend("qwen3"), open_backend("qwen3", cache__mode="off")
    history = with_answer(backend, [SYSTEM, user("hello")], "the lazy dog " * 200, "fox")
    talk = backend._worker.wait()
    is_sent = threading.Event()
    steps = prepare(talk, history, Options(), Keeping(), is_sent.is_set)
    at_first, first = next(steps), next(steps)
    is_sent.set()
    assert list(steps) == []
    assert 0 < first.done < first.total
    said = answer(backend, [*history, user("on")])
    assert said.timings.cache_n >= at_first.reuse.num_tokens + first.done
    assert said.timings.idle_n == first.done
    assert said.completion == answer(cold, [*history, user("on")]).completion


def test_what_comes_too_late_leaves_the_live_conversation_as_it_is(open_backend: Open) -> None:
    backend = open_backend("qwen3")
    before = with_answer(backend, [SYSTEM, user("hello")], "the lazy dog", "fox")
    answer(backend, [*before, user("on")])
    held = list(backend._worker.wait().sequence.state.tokens)
    assert prepared(backend, before) == []
    assert backend._worker.wait().sequence.state.tokens == held


def test_what_a_message_overtakes_leaves_that_ones_conversation_live(open_backend: Open) -> None:
    backend = open_backend("chatml")
    elsewhere = with_answer(backend, [user("the fox " * 50)], "and so on " * 30)
    history = [SYSTEM, user("hello")]
    overtaken = backend.prepare(elsewhere, Options())
    said = answer(backend, history)
    assert list(overtaken) == []
    talk = backend._worker.wait()
    assert talk.sequence.state.tokens[: len(said.prompt)] == talk.model.engine.told(said.prompt)


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_a_conversation_that_one_moves_to_costs_its_message_alone(open_backend: Open, name: str) -> None:
    backend, cold = open_backend(name), open_backend(name, cache__mode="off")
    here = with_answer(backend, [SYSTEM, user("hello")], "the lazy dog " * 30)
    there = with_answer(backend, [user("the fox " * 50)], "and so on " * 30)
    shorter, other = here[:1], [*here[:2], Turn(Role.ASSISTANT, "another answer " * 20)]
    for history in (here, there, other, shorter, here):
        prepared(backend, history)
        asked = [*history, user("world")]
        said = answer(backend, asked)
        assert said.timings.prompt_n <= 20
        assert said.completion == answer(cold, asked).completion


def test_an_append_safe_conversation_that_is_live_is_left_as_it_is(open_backend: Open) -> None:
    backend = open_backend("chatml")
    history = [SYSTEM, user("hello")]
    history.append(answer(backend, history).turn())
    held = list(backend._worker.wait().sequence.state.tokens)
    assert prepared(backend, history) == []
    assert backend._worker.wait().sequence.state.tokens == held


def test_nothing_is_prepared_beyond_the_context_or_with_reuse_off(open_backend: Open) -> None:
    long = open_backend("qwen3", model__context=64)
    history = [user("hello"), Turn(Role.ASSISTANT, "the lazy dog " * 60)]
    assert prepared(long, history) == []
    assert prepared(open_backend("qwen3", cache__mode="off"), history[:1]) == []


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "mistral"])
def test_the_cache_view_has_rows_that_add_up_though_the_past_changes(open_backend: Open, name: str) -> None:
    backend = open_backend(name)
    history = [SYSTEM]
    for question in ("hello", "on", "and"):
        history.append(user(question))
        history = with_answer(backend, history, "the lazy dog", "the quick brown fox " * 20)
        assert prepared(backend, history)
        view = backend.cache([*history, user("so")])
        assert sum(row.tokens for row in view.rows) == view.prompt_tokens
        assert min(row.tokens for row in view.rows) >= 0
        assert min(row.live for row in view.rows) >= 0
        assert sum(row.live for row in view.rows) == view.cached_tokens
        assert view.rows[-1].tokens > 0


def test_idle_work_is_not_counted_as_asked(open_backend: Open) -> None:
    backend = open_backend("qwen3")
    said = answer(backend, [SYSTEM, user("hello")])
    history = with_answer(backend, [SYSTEM, user("hello")], "the lazy dog", "fox")
    assert prepared(backend, history)
    totals = backend.cache(history).process
    assert totals.asked_tokens == said.usage.prompt_tokens
    assert backend.status().phase is Phase.READY
    speed_s = backend._worker.wait().model.engine.pace.prefill_s_per_token
    again = answer(backend, [*history, user("on")])
    timings = again.timings
    assert again.cache.saved_s <= (timings.cache_n - timings.idle_n) * speed_s * 1.001, "it saved no work"


def test_a_message_that_is_still_typed_counts_as_far_as_it_is(open_backend: Open) -> None:
    backend = open_backend("chatml")
    template = backend._worker.wait().model.template
    typed = template.next_prefix([Message("user", "the quick bro")])
    whole = template.prompt([Message("user", "the quick brown fox")])
    assert len(typed) > len(template.next_prefix([]))
    assert whole[: len(typed) - 4] == typed[:-4]


def test_a_session_prepares_and_says_how_much(open_backend: Open) -> None:
    session = Session(open_backend("mistral"), Options(max_tokens=40, temperature=0.0), SYSTEM.text)
    session.ask("hello")
    done = session.prepare()
    assert done > 40
    assert session.prepare() == 0
    session.ask("and so on")
    assert session.last is not None
    assert session.last.timings.idle_n == done
    assert session.last.timings.idle_ms > 0


def test_turns_of_a_file_are_prepared_in_between_and_tell_it(
    folders: Callable[[Sample], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("CACHE_DIR", "DATA", "MODELS", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    turns = tmp_path / "turns"
    turns.write_text("hello\nand so on\nthe fox\n")
    model = str(folders(BY_NAME["mistral"]))
    flags = ["-m", model, "-s", SYSTEM.text, "--dtype", "float32", "--max-tokens", "4", "--json", "--no-save"]
    reports = []
    for more in ([], ["--no-prepare"]):
        assert main([*flags, "--turns", str(turns), *more]) == 0
        reports.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    idle = [[row["timings"]["idle_ms"] > 0 for row in rows] for rows in reports]
    assert idle == [[False, True, True], [False, False, False]]
    assert [row["response"] for row in reports[0]] == [row["response"] for row in reports[1]]
    assert reports[0][2]["timings"]["prompt_n"] < 20 < reports[1][2]["timings"]["prompt_n"]


class Prompter:
    """Makes a model say given ids at given positions, whatever it would say itself."""

    def __init__(self, backend: LocalBackend) -> None:
        self.model = backend._worker.wait().model
        self.script: dict[int, int] = {}
        self.network = self.model.engine.loaded.network
        self.logits = self.network.logits
        self.network.logits = self._prompted  # type: ignore[method-assign]

    def next(self, history: Sequence[Turn], text: str, thought: str) -> Message:
        """The answer that comes to this history: reasoning, text, and the token that ends a turn."""
        template, messages = conversation(self.model, history)
        answer = generated(template, messages, text, thought)
        ids = (*(answer.tokens or ()), template.closing_ids[0])
        self.script = dict(enumerate(ids, len(template.prompt(messages))))
        return answer

    def _prompted(self, tokens: Sequence[int], state: KVState, num_logits: int, **more: Any) -> torch.Tensor:
        logits = self.logits(tokens, state, num_logits, **more)
        end = len(state.tokens) + len(tokens)
        for row, position in enumerate(range(end - num_logits + 1, end + 1)):
            if position in self.script:
                logits[row, self.script[position]] += 1e6
        return logits


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "harmony"])
def test_what_a_model_thinks_is_shown_apart_and_prepared_away(open_backend: Open, name: str) -> None:
    backend = open_backend(name)
    prompter = Prompter(backend)
    session = Session(backend, Options(temperature=0.0), SYSTEM.text)
    for number in range(4):
        question = f"and so on {number}"
        wanted = prompter.next([*session.history, user(question)], f"the lazy dog {number}", "fox " * 50)
        session.ask(question)
        said = session.last
        assert said is not None
        assert (said.text, said.reasoning) == (wanted.text, wanted.reasoning.strip())
        assert said.completion == wanted.tokens
        assert said.finish_reason is FinishReason.STOP
        assert number == 0 or share(said) >= 0.95
        assert said.usage.prompt_tokens < len(SYSTEM.text) + 200 * number + 200, "thoughts do not add up"
        assert session.prepare() > 0


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "harmony"])
def test_a_stop_string_acts_on_the_answer_and_not_on_the_reasoning(open_backend: Open, name: str) -> None:
    backend = open_backend(name)
    prompter = Prompter(backend)
    history = [SYSTEM, user("and so on")]
    wanted = prompter.next(history, "the lazy dog, STOP and more", "fox STOP fox")
    *_, done = backend.answer(history, Options(temperature=0.0, stop=("STOP",)))
    assert isinstance(done, Done)
    said = done.answer
    assert (said.text, said.reasoning) == ("the lazy dog, ", "fox STOP fox")
    assert said.finish_reason is FinishReason.STOP
    assert said.completion == tuple(wanted.tokens or ())[: len(said.completion)]
    assert prompter.model.tokenizer.decode(said.completion).endswith("the lazy dog, ")


def test_reasoning_that_ends_without_having_begun_is_none_of_the_answer(open_backend: Open) -> None:
    backend = open_backend("qwen3")
    prompter = Prompter(backend)
    history = [SYSTEM, user("and so on")]
    tokenizer, template = prompter.model.tokenizer, prompter.model.template
    ids = [*tokenizer.encode("so the zebra\n</think>\n\nthe lazy dog"), template.closing_ids[0]]
    prompter.script = dict(enumerate(ids, len(template.prompt(conversation(prompter.model, history)[1]))))
    *events, done = backend.answer(history, Options(temperature=0.0))
    assert isinstance(done, Done)
    assert (done.answer.text, done.answer.reasoning) == ("the lazy dog", "so the zebra")
    assert [event.message for event in events if isinstance(event, Notice)] == [
        "what came so far was reasoning: the model ended it and had not begun it"
    ]
    turn = Turn(Role.ASSISTANT, "the lazy dog", "so the zebra", done.answer.completion, tokenizer.id)
    later = conversation(prompter.model, [*history, turn, user("hello")])[1]
    assert "zebra" not in tokenizer.decode(template.prompt(later))


def test_an_engine_of_its_own_prepares_too(
    folders: Callable[[Sample], Path], make_config: Callable[..., Config]
) -> None:
    backend = ProcessBackend(make_config(model__name=str(folders(BY_NAME["mistral"]))))
    session = Session(backend, Options(max_tokens=4, temperature=0.0), SYSTEM.text)
    with session:
        session.ask("hello")
        assert backend.info().template == "rewriting"
        done = session.prepare()
        assert done > 100
        session.ask("and so on")
        assert session.last is not None
        assert session.last.timings.idle_n == done
        assert session.last.timings.prompt_n < 20
