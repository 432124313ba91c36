"""kvchat and stock transformers as contenders: a child that answers prompts of token ids and says how long it took."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from kvchat.bench.llama_child import peak_bytes, say
from kvchat.bench.measure import use_threads
from kvchat.config import Config
from kvchat.errors import KvchatError


class Runner(Protocol):
    """A model that generates greedily."""

    def facts(self) -> dict[str, Any]:
        """What there is to know of the model, JSON-ready."""

    def tokens(self, prompt: Sequence[int], num_tokens: int, *, reuse: bool) -> Iterator[int]:
        """`num_tokens` token ids as they come."""


class Ours:
    """The engine as the chat uses it."""

    def __init__(self, config: Config) -> None:
        from kvchat.backends.loading import load

        self._talk = load(config, lambda _: None, lambda _: None)

    def facts(self) -> dict[str, Any]:
        model = self._talk.model.engine.loaded
        sizes = {"weights_bytes": model.num_bytes, "token_bytes": model.network.token_bytes}
        return sizes | asdict(self._talk.model.info)

    def tokens(self, prompt: Sequence[int], num_tokens: int, *, reuse: bool) -> Iterator[int]:
        from kvchat.engine.request import Request, Token

        request, engine = Request(prompt, max_tokens=num_tokens, reuse=reuse), self._talk.model.engine
        for event in engine.generate(self._talk.sequence, request, lambda: False):
            if isinstance(event, Token):
                yield event.id


class WithoutReuse(Ours):
    """The engine, computing every prompt from its first token."""

    def tokens(self, prompt: Sequence[int], num_tokens: int, *, reuse: bool) -> Iterator[int]:
        return super().tokens(prompt, num_tokens, reuse=False)


class Stock:
    """transformers' own modules and attention with its plain cache, fed only what it does not hold."""

    def __init__(self, config: Config) -> None:
        from transformers import AutoModelForCausalLM, DynamicCache

        from kvchat.models.device import choose_device, choose_dtype
        from kvchat.models.sources.catalog import Catalog

        wanted = config.model
        files = Catalog(config.paths.models, offline=wanted.offline).resolve(
            wanted.name, needs_template=False
        )
        device = choose_device(wanted.device)
        family: Any = AutoModelForCausalLM
        model = family.from_pretrained(files.folder, dtype=choose_dtype(wanted.dtype, device))
        self._model = model.to(device).eval()
        self._new_cache: Any = partial(DynamicCache, config=self._model.config)
        self._cache = self._new_cache()
        self._held: list[int] = []

    def facts(self) -> dict[str, Any]:
        return {"dtype": str(self._model.dtype).removeprefix("torch.")}

    def tokens(self, prompt: Sequence[int], num_tokens: int, *, reuse: bool) -> Iterator[int]:
        kept = self._keep(prompt) if reuse else self._keep(())
        token = self._forward(prompt[kept:])
        yield token
        for _ in range(num_tokens - 1):
            token = self._forward([token])
            yield token

    def _keep(self, prompt: Sequence[int]) -> int:
        """Cut the cache to the common prefix with `prompt`, less its last token; returns its length."""
        from kvchat.cache.block import common_prefix

        kept = min(common_prefix(self._held, prompt), max(0, len(prompt) - 1))
        if not kept:
            self._cache = self._new_cache()
        elif kept < len(self._held):
            self._cache.crop(kept - len(self._held))  # so many tokens off its end
        del self._held[kept:]
        return kept

    def _forward(self, tokens: Sequence[int]) -> int:
        import torch

        ids = torch.tensor([list(tokens)], device=self._model.device)
        with torch.inference_mode():
            out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._held.extend(tokens)
        return int(out.logits[0, -1].argmax())


KINDS: dict[str, type[Ours] | type[Stock]] = {"kvchat": Ours, "nocache": WithoutReuse, "transformers": Stock}


def main() -> None:
    """Serve until the pipe closes."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints meanwhile does not disturb the answers
    sys.stdout = out
    requests = (json.loads(line) for line in sys.stdin)
    hello = next(requests)
    try:
        threads = use_threads(hello["threads"])
        runner: Runner = KINDS[hello["kind"]](Config.from_json(hello["config"]))
        say({"threads": threads, **runner.facts()})
        for request in requests:
            say({"peak_bytes": peak_bytes()} if request.get("memory") else timed(runner, request))
    except KvchatError as error:
        say({"error": error.message, "remedy": error.remedy})


def timed(runner: Runner, request: dict[str, Any]) -> dict[str, float]:
    """The times of one answer."""
    started = time.perf_counter()
    tokens = runner.tokens(request["prompt"], request["num_tokens"], reuse=request["reuse"])
    next(tokens)
    first = time.perf_counter()
    rest = sum(1 for _ in range(request["num_tokens"] - 1) if next(tokens) is not None)
    ended = time.perf_counter()
    tokens.close()  # type: ignore[attr-defined]
    assert rest == request["num_tokens"] - 1
    return {"first_s": first - started, "rest_s": ended - first}


if __name__ == "__main__":
    main()
