"""What a server reports of its cache and of its tokens, and what is said of that: how much, why no more, or that it is silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvchat.backends.base import Done, Notice, Options, Role, Text, Turn
from kvchat.backends.remote.backend import RemoteBackend
from tests.backends.remote.servers import Request, as_events, as_json
from tests.backends.remote.test_forms import DONE, answered
from tests.backends.remote.test_misbehaving import asked, said


@pytest.mark.parametrize(
    ("form", "remedy"), [("vllm", "--enable-prompt-tokens-details"), ("sglang", "--enable-cache-report")]
)
def test_a_silent_server_is_named_so_with_its_remedy(form: str, remedy: str) -> None:
    usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": None}}
    answer, _, _ = answered(form, said(form, "one"), usage, DONE)
    assert not answer.cache.is_reported
    assert answer.cache.reason.startswith("not reported") and remedy in answer.cache.reason


def why(backend: RemoteBackend, *texts: str) -> str:
    turns = [Turn(Role.USER if at % 2 == 0 else Role.ASSISTANT, text) for at, text in enumerate(texts)]
    *_, done = backend.answer(turns, Options())
    assert isinstance(done, Done)
    return done.answer.cache.reason


def test_why_it_was_not_reused_further_is_said_by_what_was_sent_before() -> None:
    counts = iter([(200, 0), (400, 201), (400, 16), (400, 0), (400, 100)])

    def reply(request: Request) -> Any:
        prompt, cached = next(counts)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return as_events(said("chat", "one"), {"usage": usage}, DONE)

    with asked("chat", reply) as (_, backend):
        long = "word " * 100
        assert why(backend, long) == "first use"
        assert why(backend, long, "one", long) == "new text"
        assert "evicted, or another replica answered" in why(backend, long, "one", long)
        assert why(backend, "other " + long, "one", long) == "message 1 is not what was sent before"
        view = backend.cache([Turn(Role.USER, long), Turn(Role.ASSISTANT, "one"), Turn(Role.USER, long)])
        assert view.cached_tokens > 300 and view.mode == "server" and len(view.rows) == 3


def test_the_length_of_a_servers_blocks_is_learnt_from_its_reports() -> None:
    counts = iter([(300, 0), (411, 256), (461, 384), (640, 512), (700, 0)])  # vLLM's on a CPU: blocks of 128

    def reply(request: Request) -> Any:
        prompt, cached = next(counts)
        details = {"prompt_tokens_details": {"cached_tokens": cached}}
        usage = {"usage": {"prompt_tokens": prompt, "completion_tokens": 9} | details}
        return as_events(said("vllm", "one"), usage, DONE)

    with asked("vllm", reply) as (_, backend):
        texts = ["word " * 100]
        assert why(backend, *texts) == "first use"
        for _ in range(3):
            texts += ["one", "more"]
            assert why(backend, *texts) == "new text"
        assert why(backend, *texts, "one", "more").startswith("evicted, or another replica answered")


def test_of_an_answer_that_was_stopped_it_is_said_that_the_server_had_not_reported_yet() -> None:
    begun = {"usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    with asked("vllm", lambda request: as_events(said("vllm", "one"), begun, end="hang", done=False)) as (
        _,
        backend,
    ):
        events = backend.answer([Turn(Role.USER, "Count.")], Options())
        next(event for event in events if isinstance(event, Text))
        backend.cancel()
        *_, done = events
    assert isinstance(done, Done) and not done.answer.cache.is_reported
    assert done.answer.cache.reason == "the answer ended before the server said what it had cached"


@pytest.mark.parametrize("is_right", [True, False])
def test_a_server_that_computes_other_ids_than_it_was_sent_is_told_of(
    is_right: bool, tiny_path: Path
) -> None:
    def reply(request: Request) -> Any:
        if request.path == "/tokenize":
            return as_json({}, 404)
        ids = request.json["prompt"]
        said_ids = ids if is_right else [*ids[:2], 7, *ids[2:]]
        first = {"choices": [{"token_ids": [8]}], "prompt_token_ids": said_ids}
        return as_events(first, DONE)

    with asked("vllm", reply, tokenizer=str(tiny_path), send="ids") as (_, backend):
        told = [
            event.message
            for event in backend.answer([Turn(Role.USER, "Hi.")], Options())
            if isinstance(event, Notice)
        ]
    assert len(told) == (0 if is_right else 1)
    assert is_right or told[0].startswith("mock computed other tokens than it was sent, from token 2 on")


def test_vllm_in_text_counts_what_encoding_anew_changed_by_the_servers_own_ids() -> None:
    prompts = iter([[1, 2, 3], [1, 2, 3, 90, 8, 9]])

    def reply(request: Request) -> Any:
        assert request.json["return_token_ids"] is True
        ids = next(prompts)
        first = {"choices": [{"delta": {"content": "one"}, "token_ids": [7, 8]}], "prompt_token_ids": ids}
        usage = {
            "prompt_tokens": len(ids),
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        return as_events(first, {"choices": [], "usage": usage}, DONE)

    with asked("vllm", reply) as (_, backend):
        assert why(backend, "a").startswith("all of it was held")
        assert why(backend, "a", "one", "b") == "encoding the text anew changed 2 tokens of what was said"
