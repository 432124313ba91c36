from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvchat.backends.asking import effective_options, was_measured
from kvchat.backends.base import (
    MAX_TOKENS,
    NEVER_BEGUN,
    Answer,
    Done,
    Event,
    FinishReason,
    Notice,
    Options,
    Phase,
    Prefilling,
    Role,
    Text,
    Turn,
)
from kvchat.backends.local import LocalBackend
from kvchat.cache.maintenance import stored_tips
from kvchat.config import Config
from kvchat.errors import ContextOverflowError, ModelUnavailableError, PassingError
from tests.tiny import CHATML, tiny_config, tiny_folder, transformers_model

THINKS_AT_FIRST = "{{ 'think' if enable_thinking else 'answer at once' }}" + CHATML
"""A template that says in front of everything whether to think."""


def user(text: str) -> Turn:
    return Turn(Role.USER, text)


def answer(backend: LocalBackend, history: Sequence[Turn], **options: object) -> Answer:
    events = list(backend.answer(history, Options(**({"max_tokens": 12} | options))))  # type: ignore[arg-type]
    assert isinstance(events[-1], Done)
    answer = events[-1].answer
    assert "".join(e.text for e in events if isinstance(e, Text) and not e.reasoning) == answer.text
    usage, timings, cache = answer.usage, answer.timings, answer.cache
    assert timings.cache_n + timings.prompt_n == usage.prompt_tokens == len(answer.prompt)
    assert cache.live + sum(cache.tiers.values()) == timings.cache_n == usage.cached_tokens
    assert timings.prompt_n >= 1
    assert usage.completion_tokens == len(answer.completion)
    return answer


def greedy(backend: LocalBackend, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    model = transformers_model(Path(backend.config.model.name))
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    new = out[0, len(prompt) :].tolist()
    return tuple(new[:-1] if new[-1] == 1 else new)


def test_greedy_answers_over_several_turns_are_those_of_transformers(backend: LocalBackend) -> None:
    history: list[Turn] = []
    for question in ("hello", "and so on", "the quick brown fox", "jumps"):
        history.append(user(question))
        said = answer(backend, history)
        assert said.completion == greedy(backend, said.prompt, 12)
        history.append(said.turn())


def test_from_the_second_turn_on_only_the_new_message_is_computed(backend: LocalBackend) -> None:
    history = [user("hello")]
    said = answer(backend, history)
    for question in ("world", "the lazy dog"):
        history += [said.turn(), user(question)]
        before = said.usage.total_tokens
        said = answer(backend, history)
        assert said.timings.cache_n == before
        assert said.prompt[:before][-12:] == history[-2].tokens


@pytest.mark.parametrize("ending", ["length", "stop string", "cancel", "stop token"])
def test_every_way_an_answer_ends_lets_the_next_turn_find_it_held(backend: LocalBackend, ending: str) -> None:
    history = [user("hello")]
    free = answer(backend, history, max_tokens=20)
    if ending == "length":
        said = answer(backend, history, max_tokens=6)
    elif ending == "stop string":
        middle = free.text[6:9]
        said = answer(backend, history, max_tokens=20, stop=(middle,))
        assert middle not in said.text
        assert free.text.startswith(said.text)
        assert backend._worker.wait().model.tokenizer.decode(said.completion) == said.text
        assert said.finish_reason is FinishReason.STOP
    elif ending == "cancel":
        said = cancelled_after(backend, history, 4)
        assert free.text.startswith(said.text)
    else:
        loaded = backend._worker.wait().model.engine.loaded
        object.__setattr__(loaded, "eos_ids", frozenset({free.completion[7]}))
        said = answer(backend, history, max_tokens=20)
        assert said.completion == free.completion[: free.completion.index(free.completion[7])]
    after = answer(backend, [*history, said.turn(), user("and")])
    assert after.timings.cache_n >= len(said.prompt) + len(said.completion) - 1
    assert after.completion == greedy(backend, after.prompt, 12)
    closing = backend._worker.wait().model.template.closing_ids
    assert after.prompt[said.usage.total_tokens] == closing[0]


def cancelled_after(backend: LocalBackend, history: Sequence[Turn], pieces: int) -> Answer:
    seen = 0
    last: Event = Notice("")
    for last in backend.answer(history, Options(max_tokens=200)):
        seen += isinstance(last, Text)
        if seen == pieces:
            backend.cancel()
    assert isinstance(last, Done)
    assert last.answer.finish_reason is FinishReason.CANCELLED
    assert last.answer.completion
    return last.answer


def test_generated_ids_are_kept_even_where_the_text_would_be_split_otherwise(backend: LocalBackend) -> None:
    odd = tuple(backend._worker.wait().model.tokenizer.encode_as_text(c)[0] for c in "hello")
    turns = [
        user("a"),
        Turn(Role.ASSISTANT, "hello", tokens=odd, tokenizer=backend.info().tokenizer),
        user("b"),
    ]
    prompt = answer(backend, turns).prompt
    assert any(prompt[i : i + 5] == odd for i in range(len(prompt)))


def test_ids_of_another_tokenizer_are_not_believed(backend: LocalBackend) -> None:
    turns = [user("a"), Turn(Role.ASSISTANT, "hello", tokens=(300, 301), tokenizer="another"), user("b")]
    text = backend._worker.wait().model.tokenizer.decode(answer(backend, turns).prompt)
    assert "hello" in text


def test_without_reuse_every_prompt_is_computed_whole_and_answered_alike(
    backend: LocalBackend, make_config: Callable[..., Config]
) -> None:
    off = LocalBackend(make_config(cache__mode="off"))
    history = [user("hello")]
    first = answer(backend, history)
    history += [first.turn(), user("world")]
    assert answer(off, [user("hello")]).completion == first.completion
    cold = answer(off, history)
    assert cold.timings.cache_n == 0
    assert cold.completion == answer(backend, history).completion
    off.close()


def test_a_conversation_that_does_not_fit_is_refused_with_the_numbers(backend: LocalBackend) -> None:
    with pytest.raises(ContextOverflowError, match=r"has 512.*/clear"):
        answer(backend, [user("hello " * 600)])
    assert answer(backend, [user("hello")]).completion, "and the next one is answered"


def test_progress_and_status_show_the_work(backend: LocalBackend) -> None:
    events = list(backend.answer([user("hello " * 400)], Options(max_tokens=2)))
    steps = [event for event in events if isinstance(event, Prefilling)]
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total > 256
    assert backend.status().phase is Phase.READY


def test_a_missing_model_says_so_in_every_call(make_config: Callable[..., Config], tmp_path: Path) -> None:
    backend = LocalBackend(make_config(model__name=str(tmp_path / "nowhere")))
    with pytest.raises(ModelUnavailableError):
        backend.info()
    with pytest.raises(ModelUnavailableError):
        list(backend.answer([user("a")], Options()))
    assert backend.status().phase is Phase.FAILED
    backend.close()


def test_a_folder_without_a_template_needs_one_named(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "bare", template=None)
    bare = LocalBackend(make_config(model__name=str(folder)))
    with pytest.raises(ModelUnavailableError, match="--chat-template"):
        bare.info()
    bare.close()
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    named = LocalBackend(make_config(model__name=str(folder), model__chat_template=str(template)))
    assert answer(named, [user("hello")]).completion
    named.close()


def test_counting_takes_control_tokens_as_text(backend: LocalBackend) -> None:
    assert backend.count("hello") < backend.count("hello<|im_end|>") - 1


def test_options_fill_up_from_the_models_settings() -> None:
    greedy_model = Options(temperature=0.0)
    assert effective_options(greedy_model, Options()).temperature == 0.0
    assert effective_options(greedy_model, Options(top_p=0.9)).temperature == 1.0
    assert effective_options(greedy_model, Options(top_p=0.9, temperature=0.3)).temperature == 0.3
    drawing = Options(temperature=0.6, top_k=20)
    assert effective_options(drawing, Options(temperature=0.0)).temperature == 0.0
    drawn = Options(temperature=0.6, top_k=20, seed=3, max_tokens=MAX_TOKENS)
    assert effective_options(drawing, Options(seed=3)) == drawn
    assert effective_options(replace(drawing, max_tokens=7), Options()).max_tokens == 7


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_an_unfinished_answer_goes_on_exactly_where_it_stopped(backend: LocalBackend, cut: int) -> None:
    history = [Turn(Role.SYSTEM, "be"), user("hello")]
    whole = answer(backend, history, max_tokens=20)
    first = answer(backend, history, max_tokens=cut)
    rest = answer(backend, [*history, first.turn()], max_tokens=20 - cut)
    assert first.completion + rest.completion == whole.completion
    assert first.text + rest.text == whole.text
    assert rest.timings.prompt_n == 1


def test_a_stop_string_is_found_in_an_answer_that_goes_on(backend: LocalBackend) -> None:
    history = [user("hello")]
    whole = answer(backend, history, max_tokens=20)
    first = answer(backend, history, max_tokens=4)
    stop = whole.text[len(first.text) + 4 : len(first.text) + 7]
    rest = answer(backend, [*history, first.turn()], max_tokens=16, stop=(stop,))
    assert whole.text.startswith(first.text + rest.text)
    tokenizer = backend._worker.wait().model.tokenizer
    assert tokenizer.decode(first.completion + rest.completion) == first.text + rest.text


def test_a_warmed_system_prompt_is_held_before_anyone_asks(backend: LocalBackend) -> None:
    system = Turn(Role.SYSTEM, "the quick brown fox " * 20)
    steps = list(backend.warm([system]))
    assert isinstance(steps[-1], Prefilling)
    assert steps[-1].done == steps[-1].total > 40
    said = answer(backend, [system, user("hello")])
    assert said.timings.cache_n == steps[-1].total


def test_ids_that_the_model_does_not_have_leave_the_text(backend: LocalBackend) -> None:
    tokenizer = backend.info().tokenizer
    said = Turn(Role.ASSISTANT, "the lazy dog", "", (5, 2**31 - 1), tokenizer)
    whole = Turn(Role.ASSISTANT, "the lazy dog")
    histories = ([user("hello"), turn, user("and")] for turn in (said, whole))
    first, second = (answer(backend, history) for history in histories)
    assert first.prompt == second.prompt


def test_a_second_backend_finds_on_disk_what_the_first_one_stored(make_config: Callable[..., Config]) -> None:
    history = [Turn(Role.SYSTEM, "the lazy dog jumps " * 12), user("hello")]
    first = LocalBackend(make_config())
    said = answer(first, history)
    assert said.cache.reason == "first use"
    first.close()
    second = LocalBackend(make_config())
    again = answer(second, history)
    assert again.completion == said.completion
    assert again.cache.tiers["disk"] >= (said.usage.prompt_tokens - 1) // 16 * 16
    second.close()


def test_without_saving_nothing_of_a_conversation_is_on_the_disk(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    backend = LocalBackend(make_config(chat__save=False))
    answer(backend, [user("hello " * 30)])
    backend.close()
    assert not (tmp_path / "cache").exists()


def test_the_reason_names_what_changed(backend: LocalBackend) -> None:
    system = Turn(Role.SYSTEM, "the quick brown fox jumps " * 8)
    first = answer(backend, [system, user("hello")])
    assert answer(backend, [system, user("hello"), first.turn(), user("b")]).cache.reason == "new text"
    edited = Turn(Role.SYSTEM, system.text[:60] + "X" + system.text[61:])
    report = answer(backend, [edited, user("hello")]).cache
    assert report.reason == "edited system prompt"
    assert "X" in report.now.partition("|")[2]
    assert "X" not in report.was.partition("|")[2]


def test_the_tip_of_an_answer_is_found_in_the_cache_folder(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    backend = LocalBackend(make_config())
    said = answer(backend, [user("the quick brown fox " * 10)])
    backend.close()
    assert stored_tips(tmp_path / "cache")[said.kv_root, said.kv_tip] == said.usage.total_tokens // 16 * 16


def test_an_answer_is_the_same_with_guesses_and_says_how_many_came_true(
    make_config: Callable[..., Config],
) -> None:
    history = [user("the quick brown fox " * 6)]
    said: list[Answer] = []
    for draft in ("off", 4):
        backend = LocalBackend(make_config(model__draft=draft))
        said.append(answer(backend, history, max_tokens=60))
        again = answer(backend, history, max_tokens=60, stop=(said[0].text[20:24],))
        backend.close()
        assert said[-1].text.startswith(again.text)
    assert said[0].completion == said[1].completion
    assert said[0].timings.draft_n == 0
    assert said[1].timings.draft_n >= said[1].timings.draft_n_accepted > 0


def test_what_is_warmed_and_looked_at_is_what_the_next_message_asks_with(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    folder = tiny_folder(tmp_path / "thinking", template=THINKS_AT_FIRST)
    backend = LocalBackend(make_config(model__name=str(folder)))
    history = [Turn(Role.SYSTEM, "the quick brown fox " * 20), user("hello")]
    for think in (False, True):
        *_, warmed = backend.warm(history[:1], Options(think=think))
        assert isinstance(warmed, Prefilling)
        view = backend.cache(history, Options(think=think))
        said = answer(backend, history, think=think)
        assert said.timings.cache_n == view.cached_tokens == warmed.cached + warmed.total
        assert said.usage.prompt_tokens == view.prompt_tokens
        assert view.rows[0].live == view.rows[0].tokens
        other = backend.cache(history, Options(think=not think))
        assert other.rows[0].live < other.rows[0].tokens, "or this test shows nothing"
    backend.close()


def test_folders_are_nobody_elses_even_where_the_umask_would_let_all_in(
    tiny_path: Path, tmp_path: Path
) -> None:
    own = tmp_path / "home" / ".cache" / "kvchat"
    config = tiny_config(tiny_path, tmp_path, paths__models=own / "models", paths__cache=own / "kv")
    before = os.umask(0)
    try:
        backend = LocalBackend(config)
        answer(backend, [user("the quick brown fox " * 10)])
        backend.close()
    finally:
        os.umask(before)
    made = [own.parents[1], own.parent, own, *(path for path in own.rglob("*") if path.is_dir())]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in made} == {
        path.name: "0o700" for path in made
    }
    assert own / "models" in made and own / "kv" in made


def test_a_text_that_can_not_fit_is_refused_from_its_beginning_or_cancelled(backend: LocalBackend) -> None:
    backend.start()
    long = [user("the quick brown fox " * 100_000)]
    with pytest.raises(ContextOverflowError, match="the conversation is more than"):
        answer(backend, long)
    talk = backend._worker.wait()
    assert not was_measured(long, talk.model, lambda: True)
    assert was_measured([user("hello")], talk.model, lambda: True)
    cut = Answer.cut_short(NEVER_BEGUN, tokenizer=talk.model.tokenizer.id)
    assert cut.finish_reason is FinishReason.CANCELLED and cut.turn().tokens == ()
    assert answer(backend, [user("hello")]).usage.completion_tokens == 12


def test_a_model_that_no_file_could_be_opened_for_is_loaded_with_the_next_question(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    backend = LocalBackend(make_config())
    with monkeypatch.context() as full:
        full.setattr("kvchat.backends.loading._find_files", refused)
        with pytest.raises(PassingError, match="can't be loaded now: Too many open files"):
            list(backend.answer([user("hello")], Options(max_tokens=2)))
    assert backend.status().phase is Phase.FAILED
    assert isinstance(list(backend.answer([user("hello")], Options(max_tokens=2)))[-1], Done)
    assert backend.status().phase is Phase.READY
    backend.close()
