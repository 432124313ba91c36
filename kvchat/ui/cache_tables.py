"""What the cache holds of a conversation, why the last prompt was not reused further, and who fills the context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvchat.backends.base import Answer, Role
from kvchat.backends.inspection import CacheRow, CacheTotals, CacheView
from kvchat.ui.clean import sanitize
from kvchat.ui.figures import bar, percent_text, seconds_text, size_text, tier_text
from kvchat.ui.tables import Cell, Look, Meter, Segments, Styled, joined, table

_SIGNS = "█▓▒"
_STYLES = ("green", "cyan", "blue")
"""Of what is live and of the tiers behind it; those past the last share its look."""
_COLD = "░", "dim"
_NAMES = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "answer"}
_WIDE = 90
_NUM_LARGEST = 5
_NUM_SHOWN = 40
"""Messages that have a row of their own in the map."""


def remembered_text(cached: int, asked: int, saved_s: float) -> str:
    """What the cache did, in a sentence for whoever has never heard of KV."""
    if not asked:
        return "Nothing has been asked yet, so nothing was remembered."
    saved = f"; that saved {seconds_text(saved_s)}" if saved_s >= 0.005 else ""
    return f"Of the last {asked} tokens {cached} were remembered and not computed again{saved}."


def cache_text(view: CacheView, all_time: CacheTotals | None, look: Look) -> Styled:
    """The conversation as a map, a row a message; then the budgets, and what the cache did."""
    if view.mode == "off":
        head = "the cache is off; every prompt is computed in full"
    elif view.mode == "server":
        head = "the server's cache, judging by what it was sent and what it reported"
    else:
        head = f"cache {view.mode}, {view.codec}{' (lossy)' if view.codec == 'int8' else ''}"
    tiers = [use.tier for use in view.tiers]
    legend = "  ".join(f"{sign} {name}" for name, sign, _ in _looks(tiers))
    turn = view.turn
    sentence = remembered_text(turn.hit_tokens, turn.asked_tokens, turn.saved_s - turn.load_s)
    pieces = [
        sentence,
        head,
        "" if look.plain or not view.rows else legend,
        map_table(view.rows, tiers, look),
    ]
    if view.rows:
        pieces.append(
            f"held {view.cached_tokens} of {view.prompt_tokens} tokens; the rest takes {seconds_text(view.compute_s)}"
        )
    next_out = [f"RAM would forget next: {view.next_out}"] if view.next_out else []
    return joined(
        [*pieces, budgets_text(view, look), *next_out, totals_table(view, all_time, look)], look.columns - 1
    )


def map_table(rows: Sequence[CacheRow], tiers: Sequence[str], look: Look) -> Styled:
    """One row a message: tokens, where they are held, bytes, seconds that are saved.

    Of a long conversation the messages between the first and the last ones stand in one row.
    """
    num_folded = max(0, len(rows) - _NUM_SHOWN)
    shown = [(_name(row), row) for row in rows]
    if num_folded:
        between = f"{num_folded} more", _sum(rows[1 : 1 + num_folded])
        shown = [shown[0], between, *shown[1 + num_folded :]]
    names = ["message", "tokens", "held", "size", "saves", *(["text"] if look.columns >= _WIDE else [])]
    heading = [] if look.plain else names
    drawn = [_map_row(name, row, tiers, look) for name, row in shown]
    return table(drawn, look, heading=heading, left=(0, 5)) if rows else Styled("")


def _sum(rows: Sequence[CacheRow]) -> CacheRow:
    """Several messages as one."""
    sums = {
        name: sum(getattr(row, name) for row in rows) for name in ("tokens", "live", "num_bytes", "saves_s")
    }
    tiers = {name: sum(row.tiers.get(name, 0) for row in rows) for name in rows[0].tiers}
    return CacheRow(rows[0].role, "", tiers=tiers, **sums)


def _looks(tiers: Sequence[str]) -> list[tuple[str, str, str]]:
    """What is live, the tiers and what nobody holds: the name, sign and style of each."""
    held = ["live", *map(tier_text, tiers)]
    last = len(_SIGNS) - 1
    shown = [(name, _SIGNS[min(at, last)], _STYLES[min(at, last)]) for at, name in enumerate(held)]
    return [*shown, ("cold", *_COLD)]


def _map_row(name: str, row: CacheRow, tiers: Sequence[str], look: Look) -> list[Cell]:
    counts = segments(row, tiers)
    names, signs, styles = zip(*_looks(tiers), strict=True)
    size, saved = size_text(row.num_bytes), seconds_text(row.saves_s)
    if look.plain:
        held = [f"{tier} {count}" for tier, count in zip(names, counts, strict=True) if count]
        return [name, f"{row.tokens} tokens", *held, size, f"saves {saved}"]
    cells: list[Cell] = [name, str(row.tokens), Segments(counts, "".join(signs), styles), size, saved]
    return [*cells, _cut(row.text, look.columns - 70)] if look.columns >= _WIDE else cells


def _name(row: CacheRow) -> str:
    return f"{_NAMES[row.role]}, pinned" if row.pinned else _NAMES[row.role]


def segments(row: CacheRow, tiers: Sequence[str]) -> tuple[int, ...]:
    """A message's tokens by the fastest place that holds them: live, then the tiers, and what none does."""
    counts, held = [row.live], row.live
    for tier in tiers:
        counts.append(max(0, row.tiers.get(tier, 0) - held))
        held += counts[-1]
    return (*counts, row.tokens - held)


def budgets_text(view: CacheView, look: Look) -> str:
    """How much of each budget is used; the arena lies beside them. A server's are its own affair."""
    if view.mode == "server":
        return ""
    rows: list[list[Cell]] = []
    for use in view.tiers:
        share = use.used_bytes / use.budget_bytes if use.budget_bytes else 0.0
        meter: list[Cell] = [] if look.plain else [Meter(share)]
        sizes = f"{size_text(use.used_bytes)} of {size_text(use.budget_bytes)}"
        rows.append([tier_text(use.tier), sizes, *meter, percent_text(share)])
    return joined([table(rows, look) if rows else "", f"arena {size_text(view.arena_used)}"])


def totals_table(view: CacheView, all_time: CacheTotals | None, look: Look) -> Styled:
    """What was asked, hit, stored and saved in the last turn, by this engine, and over all time."""
    columns = {"turn": view.turn, "process": view.process} | ({"all time": all_time} if all_time else {})
    tiers = [use.tier for use in view.tiers]
    rows = [
        _total("asked", columns, lambda totals: str(totals.asked_tokens)),
        _total("live", columns, lambda totals: str(totals.live_tokens)),
        *(_total(tier_text(tier), columns, _held_in(tier)) for tier in tiers),
        _total("stored", columns, lambda totals: size_text(totals.stored_bytes)),
        _total("evicted", columns, lambda totals: str(totals.evicted_blocks)),
        _total("saved", columns, lambda totals: seconds_text(totals.net_saved_s)),
    ]
    return table(rows, look, heading=("", *columns))


def _total(name: str, columns: Mapping[str, CacheTotals], figure: Callable[[CacheTotals], str]) -> list[Cell]:
    return [name, *map(figure, columns.values())]


def _held_in(tier: str) -> Callable[[CacheTotals], str]:
    return lambda totals: str(totals.tier_tokens.get(tier, 0))


def why_text(answer: Answer, look: Look) -> Styled:
    """Why the last prompt was reused as far as it was, and what the rest of it cost."""
    report, usage, timings = answer.cache, answer.usage, answer.timings
    held = ", ".join(
        f"{tier_text(name)} {count}" for name, count in {"live": report.live, **report.tiers}.items() if count
    )
    tokens = "token" if timings.prompt_n == 1 else "tokens"
    lines = [
        remembered_text(usage.cached_tokens, usage.prompt_tokens, report.saved_s),
        f"from token {report.diverged_at} of {usage.prompt_tokens} on: {report.reason}",
        Styled(_around("was", report.was, look)),
        Styled(_around("now", report.now, look)),
        f"computed {timings.prompt_n} {tokens} in {seconds_text(timings.prompt_ms / 1e3)}",
        f"reused {usage.cached_tokens}{f' ({held})' if held else ''}"
        + (f", which saved {seconds_text(report.saved_s)}" if report.saved_s else ""),
    ]
    return joined(lines, look.columns - 1)


def _around(name: str, text: str, look: Look) -> str:
    """The text around the first token that differs, which stands behind a bar; cut on both sides to fit."""
    from rich.cells import cell_len

    if not text:
        return ""
    before, _, after = sanitize(text).replace("\n", "⏎").partition("|")
    room = max(8, (look.columns - len(name) - 6) // 2)
    while cell_len(before) > room:
        before = before[1:]
    while cell_len(after) > room:
        after = after[:-1]
    return f"{name}  {before}│{after}"


def context_text(view: CacheView, context: int, look: Look) -> Styled:
    """Who takes how many tokens of the context, and which messages take most."""
    used = sum(row.tokens for row in view.rows)
    counts = {name: [row.tokens for row in view.rows if row.role is role] for role, name in _NAMES.items()}
    rows = [
        _share_row(name, sum(tokens), context, look, f"{len(tokens)}×")
        for name, tokens in counts.items()
        if tokens
    ]
    rows.append(_share_row("free", max(0, context - used), context, look, ""))
    share = used / context if context else 0.0
    meter = "" if look.plain else f" {bar(share, 10)}"
    head = f"context {used} of {context} tokens{meter} {percent_text(share)}"
    largest = sorted(view.rows, key=lambda row: -row.tokens)[:_NUM_LARGEST]
    names: list[list[Cell]] = [
        [_NAMES[row.role], f"{row.tokens} tokens", _cut(row.text, look.columns - 26)] for row in largest
    ]
    tail = ["largest:", table(names, look, left=(0, 2))] if len(view.rows) > 1 else []
    return joined([head, table(rows, look), *tail], look.columns - 1)


def _cut(text: str, columns: int) -> str:
    """The beginning of a text, in at most so many columns of a terminal."""
    from rich.cells import cell_len

    cut = sanitize(text).replace("\n", " ")[: max(0, columns)]
    while cell_len(cut) > columns:
        cut = cut[:-1]
    return cut


def _share_row(name: str, tokens: int, context: int, look: Look, count: str) -> list[Cell]:
    share = tokens / context if context else 0.0
    meter: list[Cell] = [] if look.plain else [Meter(share)]
    return [name, count, f"{tokens} tokens", *meter, percent_text(share)]


def history_table(answers: Sequence[Answer], look: Look, *, num_rows: int = 10) -> Styled:
    """Time to the first token and hit rate of the last answers, a row each."""
    first = max(0, len(answers) - num_rows)
    shown = answers[first:]
    slowest = max((answer.timings.ttft_ms for answer in shown), default=0.0) or 1.0
    rows: list[list[Cell]] = []
    for number, answer in enumerate(shown, first + 1):
        share = answer.usage.cached_tokens / answer.usage.prompt_tokens if answer.usage.prompt_tokens else 0.0
        ttft = seconds_text(answer.timings.ttft_ms / 1e3)
        if look.plain:
            rows.append([f"turn {number}", f"ttft {ttft}", f"hit {percent_text(share)}"])
        else:
            rows.append(
                [
                    str(number),
                    ttft,
                    Meter(answer.timings.ttft_ms / slowest),
                    percent_text(share),
                    Meter(share),
                ]
            )
    heading = () if look.plain else ("turn", "ttft", "", "hit", "")
    return table(rows, look, heading=heading) if rows else Styled("")


def memory_text(view: CacheView) -> str:
    """What the engine has in memory, as far as it is known."""
    known = {
        "weights": view.weights_bytes,
        "arena": view.arena_used,
        "cache": next((use.used_bytes for use in view.tiers if use.tier == "ram"), 0),
        "process": view.process_bytes,
    }
    sizes = [f"{name} {size_text(size)}" for name, size in known.items() if size]
    return f"memory: {', '.join(sizes)}" if sizes else ""
