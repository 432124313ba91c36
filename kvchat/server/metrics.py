"""What is counted for Prometheus, and its text format (version 0.0.4). Knows numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from kvchat.backends.base import Answer
from kvchat.backends.inspection import CacheView

TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LIVE, _COMPUTED = "live", "computed"


class Metrics:
    """Counts since the server began; `view` is the cache as it was after the last answer."""

    def __init__(self) -> None:
        self.view: CacheView | None = None
        self._prompt: Counter[str] = Counter({_LIVE: 0, _COMPUTED: 0})
        self._generated = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._endings: Counter[str] = Counter()
        self._first_words: Counter[float] = Counter()
        self._first_words_s = 0.0
        self._num_answers = 0

    def count_request(self, path: str, status: int) -> None:
        """A request that was answered, in whatever way."""
        self._requests[path, status] += 1

    def count_answer(self, answer: Answer) -> None:
        """An answer, and where its prompt came from."""
        usage, cache = answer.usage, answer.cache
        self._prompt.update({_LIVE: cache.live, **cache.tiers})
        self._prompt[_COMPUTED] += usage.prompt_tokens - usage.cached_tokens
        self._generated += usage.completion_tokens
        self._endings[str(answer.finish_reason)] += 1
        if answer.completion:
            seconds = answer.timings.ttft_ms / 1e3
            self._num_answers += 1
            self._first_words_s += seconds
            self._first_words.update(bound for bound in TTFT_BOUNDS_S if seconds <= bound)

    def text(self, *, num_running: int, num_waiting: int) -> str:
        """All of it, as Prometheus reads it."""
        lines = [
            *_family("requests_total", "counter", "Requests by path and status.", self._request_rows()),
            *_family("answers_total", "counter", "Answers by how they ended.", _by("finish", self._endings)),
            *_family(
                "prompt_tokens_total",
                "counter",
                "Tokens of prompts by where they came from.",
                _by("source", self._prompt),
            ),
            *_family(
                "cache_hit_ratio", "gauge", "Part of all prompt tokens that came from there.", self._ratios()
            ),
            *_family(
                "completion_tokens_total", "counter", "Tokens that were generated.", [("", self._generated)]
            ),
            *self._histogram(),
            *_family("running", "gauge", "Requests that are being answered.", [("", num_running)]),
            *_family("waiting", "gauge", "Requests that wait for their turn.", [("", num_waiting)]),
            *(_view_lines(self.view) if self.view else ()),
        ]
        return "\n".join(lines) + "\n"

    def _request_rows(self) -> Iterator[tuple[str, float]]:
        for (path, status), count in sorted(self._requests.items()):
            yield f'{{path="{path}",status="{status}"}}', count

    def _ratios(self) -> Iterator[tuple[str, float]]:
        total = sum(self._prompt.values())
        for name, count in sorted(self._prompt.items()):
            if name != _COMPUTED:
                yield f'{{tier="{name}"}}', count / total if total else 0.0

    def _histogram(self) -> Iterator[str]:
        name = "kvchat_time_to_first_token_seconds"
        yield f"# HELP {name} From an answer's turn to its first text."
        yield f"# TYPE {name} histogram"
        for bound in TTFT_BOUNDS_S:
            yield f'{name}_bucket{{le="{bound:g}"}} {self._first_words[bound]}'
        yield f'{name}_bucket{{le="+Inf"}} {self._num_answers}'
        yield f"{name}_sum {self._first_words_s:.6f}"
        yield f"{name}_count {self._num_answers}"


def _view_lines(view: CacheView) -> Iterator[str]:
    totals = view.process
    counts = {
        "cache_stored_blocks_total": ("Blocks that were stored.", totals.stored_blocks),
        "cache_evicted_blocks_total": ("Blocks that RAM let go.", totals.evicted_blocks),
        "cache_evicted_files_total": ("Files that the disk let go.", totals.evicted_files),
        "cache_corrupt_files_total": ("Files that were found damaged.", totals.corrupt_files),
    }
    for name, (about, count) in counts.items():
        yield from _family(name, "counter", about, [("", count)])
    used = {tier.tier: tier.used_bytes for tier in view.tiers}
    budget = {tier.tier: tier.budget_bytes for tier in view.tiers}
    yield from _family("cache_used_bytes", "gauge", "What a tier holds.", _by("tier", used))
    yield from _family("cache_budget_bytes", "gauge", "What a tier may hold.", _by("tier", budget))
    sizes = {"live_kv": view.arena_used, "weights": view.weights_bytes, "engine_resident": view.process_bytes}
    yield from _family("memory_bytes", "gauge", "Memory by what it is for.", _by("part", sizes))


def _by(label: str, counts: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name, count in sorted(counts.items()):
        yield f'{{{label}="{name}"}}', count


def _family(name: str, kind: str, about: str, rows: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP kvchat_{name} {about}"
    yield f"# TYPE kvchat_{name} {kind}"
    for labels, value in rows:
        yield f"kvchat_{name}{labels} {value if isinstance(value, int) else f'{value:.6f}'}"
