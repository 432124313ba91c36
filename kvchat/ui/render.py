"""Figures and errors as the terminal shows them: as lines. Writes nothing itself."""

from __future__ import annotations

from kvchat.backends.base import Answer, ModelInfo, Status
from kvchat.ui.clean import sanitize as sanitize
from kvchat.ui.figures import tier_text


def stats_line(answer: Answer, context: int, columns: int = 0) -> str:
    """The dim line after an answer; `context` in tokens. Parts that `columns` have no room for are left out from its end.

    `cached 1842/1910 (96%) · prefill 68 in 0.21s · ttft 0.24s · 212 tok 31.4/s · ctx 2122/8192`
    """
    usage, timings = answer.usage, answer.timings
    if not usage.prompt_tokens:  # the engine died and took its figures along, or a server never gave them
        return "no figures were reported"
    percent = 100 * usage.cached_tokens // usage.prompt_tokens if usage.prompt_tokens else 0
    tiers = "+".join(tier_text(name) for name, count in answer.cache.tiers.items() if count)
    guesses = f" ({timings.draft_n_accepted} guessed)" if timings.draft_n_accepted else ""
    held = f"{usage.cached_tokens}/{usage.prompt_tokens} ({percent}%{', ' + tiers if tiers else ''})"
    parts = [
        f"cached {held}" if answer.cache.is_reported else "cached: not reported",
        *([f"prepared {timings.idle_n} while idle"] if timings.idle_n else []),
        f"prefill {timings.prompt_n} in {timings.prompt_ms / 1e3:.2f}s",
        f"ttft {timings.ttft_ms / 1e3:.2f}s",
        f"{usage.completion_tokens} tok {timings.decode_tokens_per_s:.1f}/s{guesses}",
        f"ctx {usage.total_tokens}" + (f"/{context}" if context else ""),
    ]
    return toolbar(parts, columns) if columns else " · ".join(parts)


def phase_text(status: Status) -> str:
    """What the engine does, in few words: `downloading 43%`, `prefill 512/1800`."""
    word = {"prefilling": "prefill", "decoding": "answering"}.get(status.phase, str(status.phase))
    if status.phase == "loading":
        word = status.detail or word
    if status.phase == "ready":
        word = status.detail or word
    if not status.total:
        return word
    if status.phase == "loading":
        return f"{word} {100 * status.done // status.total}%"
    return f"{word} {status.done}/{status.total}"


def weights_text(info: ModelInfo) -> str:
    """What decoding reads, and why."""
    about = {
        "native": f"decoding reads the weights as they are, in {info.dtype} (native)",
        "int8": "decoding reads integers of 8 bits (int8)",
        "int4": "decoding reads integers of 4 bits (int4)",
        "server": f"the weights are with {info.device}",
    }
    return about[info.weights] + (f": {info.weights_why}" if info.weights_why else "")


def template_text(kind: str) -> str:
    """What a model's chat template does to a conversation's past, with the kind's name."""
    about = {
        "append-safe": "keeps the past token for token",
        "reasoning-stripping": "drops the reasoning of past answers",
        "rewriting": "rewrites the past",
        "server": "is the server's",
    }
    return f"{about[kind]} ({kind})"


def reuse_text(info: ModelInfo) -> str:
    """How much of what was computed a model lets us take up again, and what the probe found."""
    about = {
        "blocks": "what was computed is reused token for token (blocks)",
        "snapshots": "what was computed is reused from the points where it was kept (snapshots)",
        "none": "nothing that was computed can be reused (none)",
        "server": "what was computed is reused as the server sees fit (server)",
    }
    ways = {
        "chunk": "",
        "one_token": ", continued one token at a time",
        "restart": ", computed again for each token",
    }
    verdict = f"; {info.verdict}" if info.verdict else ""
    return about[info.reuse] + ways[info.continuation] + verdict


def promise_text(info: ModelInfo) -> str:
    """What is promised of answers with and without the cache."""
    if info.reuse == "server":
        return "whether its cache changes an answer is up to the server"
    if info.is_exact:
        return "the same answers with and without the cache, to the bit"
    return "the same answers with and without the cache but for rounding: a near tie may go the other way"


def progress_row(label: str, done: int, total: int, spent_s: float, columns: int) -> str:
    """`prefill ████░░░░ 512/1800 · 830 tok/s · 1.6 s left`, as much of it as fits."""
    parts = [f"{label} {_bar(done, total)} {done}/{total}"]
    if done and spent_s > 0:
        rate = done / spent_s
        parts += [f"{rate:.0f} tok/s", f"{(total - done) / rate:.1f} s left"]
    return toolbar(parts, columns)


def loading_row(status: Status, spent_s: float, columns: int) -> str:
    """`downloading ████░░░░ 43% · 40/93 MB · 12 MB/s · 4 s left`; without a total how long it took so far."""
    label, done, total = status.detail or str(status.phase), status.done, status.total
    if not total:
        return toolbar([sanitize(label), f"{spent_s:.0f} s"], columns)
    parts = [f"{sanitize(label)} {_bar(done, total)} {100 * done // total}%"]
    if total >= 10**6:
        parts.append(f"{done / 1e6:.0f}/{total / 1e6:.0f} MB")
        parts += [f"{done / 1e6 / spent_s:.0f} MB/s"] if spent_s > 0 else []
    if done and spent_s > 0:
        parts.append(f"{(total - done) / done * spent_s:.0f} s left")
    return toolbar(parts, columns)


def _bar(done: int, total: int) -> str:
    filled = round(12 * min(1.0, done / total)) if total else 12
    return "█" * filled + "░" * (12 - filled)


def dim(text: str) -> str:
    """Text that steps back."""
    return f"\x1b[2m{text}\x1b[22m"


def error_line(message: str, remedy: str = "") -> str:
    """An error as one line."""
    whole = sanitize(f"{message}: {remedy}" if remedy else message)
    return "! " + " ".join(whole.split())


def toolbar(parts: list[str], columns: int) -> str:
    """One line of parts in falling importance; what doesn't fit is left out from the end."""
    from prompt_toolkit.utils import get_cwidth  # which a listing need not wait for

    line = ""
    for part in parts:
        longer = f"{line} · {part}" if line else part
        if get_cwidth(longer) >= columns:
            break
        line = longer
    return line or parts[0][: max(0, columns - 1)]
