from __future__ import annotations

import re
import time
from collections.abc import Callable

from kvchat.backends.local import LocalBackend
from kvchat.config import Config
from tests.scripted import ScriptedBackend
from tests.server.client import Client


def test_the_model_is_listed_and_found_by_its_name(client: Client) -> None:
    (model,) = client.get("/v1/models").json["data"]
    assert model["object"] == "model" and model["max_model_len"] == 30_000
    assert client.get(f"/v1/models/{model['id']}").json == model
    assert client.get("/v1/models/other").status == 404


def test_a_text_is_cut_into_the_tokens_that_a_prompt_of_it_has(client: Client) -> None:
    bare = client.post(
        "/v1/completions", {"model": "default", "prompt": "hello <|im_end|>", "return_token_ids": True}
    ).json
    said = client.post("/tokenize", {"model": "default", "prompt": "hello <|im_end|>"}).json
    assert said["tokens"] == bare["choices"][0]["prompt_token_ids"] and said["count"] == len(said["tokens"])
    assert (
        client.post("/tokenize", {"content": "hello <|im_end|>", "add_special": False}).json["tokens"]
        == said["tokens"]
    )
    chat = client.chat(("system", "x"), "hello", return_token_ids=True).json
    assert client.chat(("system", "x"), "hello", path="/tokenize").json["tokens"] == chat["prompt_token_ids"]


def test_a_long_answer_does_not_keep_a_count_waiting(client: Client) -> None:
    from tests.server.client import as_messages, request_bytes

    body = {"model": "default", "messages": as_messages("at length"), "max_tokens": 20_000, "stream": True}
    with client.open(request_bytes("/v1/chat/completions", body)) as opened:
        assert b"200 OK" in opened.recv(4096)
        assert client.chat("hello", path="/tokenize").json["count"] > 3
        assert client.server.service.turnstile.num_running == 1


def test_health_says_when_the_model_can_be_asked(client: Client, serve: Callable[..., Client]) -> None:
    assert client.get("/health").json == {"status": "ok"}
    loading = serve(ScriptedBackend(load_s=60.0)).get("/health")
    assert loading.status == 503 and loading.json["error"]["code"] == "loading"


def test_metrics_count_what_was_cached_computed_and_refused(serve: Callable[..., Client]) -> None:
    client = serve()
    first = client.chat("to be counted").json["usage"]
    second = client.chat("to be counted").json["usage"]
    client.chat("hi", n=5)
    end = time.monotonic() + 20  # the cache is looked at behind each answer
    while "kvchat_memory_bytes" not in (text := client.get("/metrics").body.decode()):
        assert time.monotonic() < end
    counts = dict(re.findall(r"^(kvchat_\S+) (\S+)$", text, re.MULTILINE))
    assert all(
        line.startswith("#") or re.fullmatch(r"kvchat_[a-z_]+(\{[^}]*\})? [-+.e\d]+", line)
        for line in text.splitlines()
    )
    known = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, second))
    by_source = {
        name: int(count) for name, count in counts.items() if name.startswith("kvchat_prompt_tokens_total")
    }
    computed = by_source.pop('kvchat_prompt_tokens_total{source="computed"}')
    assert sum(by_source.values()) == known and computed == 2 * first["prompt_tokens"] - known
    assert int(counts["kvchat_completion_tokens_total"]) == 24
    assert counts['kvchat_requests_total{path="/v1/chat/completions",status="200"}'] == "2"
    assert counts['kvchat_requests_total{path="/v1/chat/completions",status="400"}'] == "1"
    assert counts['kvchat_time_to_first_token_seconds_bucket{le="+Inf"}'] == "2"
    assert int(counts['kvchat_memory_bytes{part="weights"}']) > 0
    assert 'kvchat_cache_used_bytes{tier="ram"}' in counts


def test_a_model_that_cannot_be_loaded_is_said_without_its_path(
    serve: Callable[..., Client], make_config: Callable[..., Config]
) -> None:
    lost = LocalBackend(make_config(**{"model__name": "/nowhere/at/all"}))
    try:
        reply = serve(lost).chat("hi")
        assert reply.status == 503 and reply.json["error"]["type"] == "server_error"
    finally:
        lost.close()
