"""Numbers as people read them: sizes, durations, ages, bars and sparklines. Knows no terminal and no conversation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

_SPARKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@lru_cache  # a list of many files has few sizes and ages
def size_text(num_bytes: float) -> str:
    """A number of bytes in three digits: `512 B`, `23.4 MiB`, `4.00 GiB`."""
    value, unit = float(num_bytes), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0:
        return f"{value:.0f} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """A duration: `0.24 s`, `31 s`, `4 min 10 s`, `3 h 12 min`."""
    if abs(seconds) < 9.995:
        return f"{seconds:.2f} s"
    whole = round(abs(seconds))
    sign = "-" if seconds < 0 else ""
    if whole < 60:
        return f"{sign}{whole} s"
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60} s"
    return f"{sign}{whole // 3600} h {whole % 3600 // 60} min"


@lru_cache
def age_text(seconds: float) -> str:
    """How long ago something was, in one unit: `now`, `5 min`, `3 h`, `12 d`."""
    for limit, divisor, unit in (
        (60, 1, ""),
        (3600, 60, "min"),
        (86400, 3600, "h"),
        (float("inf"), 86400, "d"),
    ):
        if seconds < limit:
            return f"{int(seconds // divisor)} {unit}" if unit else "now"
    raise AssertionError("unreachable")


def tier_text(name: str) -> str:
    """What a tier of the cache is called in front of a person."""
    return {"ram": "RAM"}.get(name, name)


def percent_text(share: float) -> str:
    """A share of 1 as `96%`; only all of it is 100%."""
    return f"{int(100 * share + 1e-9)}%"


def bar(share: float, width: int) -> str:
    """A horizontal bar of `width` cells, filled to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width, "·")


def sparkline(values: Sequence[float], highest: float | None = None) -> str:
    """One character a value, from the lowest bar for 0 to the full one for `highest` (by default the largest)."""
    top = max(values, default=0.0) if highest is None else highest
    if top <= 0:
        return _SPARKS[0] * len(values)
    last = len(_SPARKS) - 1
    return "".join(_SPARKS[min(last, round(last * max(value, 0.0) / top))] for value in values)


def parts(counts: Sequence[int], width: int) -> list[int]:
    """`width` cells shared out in proportion; what is not 0 gets a cell where there is room for it."""
    total = sum(counts)
    if total <= 0 or width <= 0:
        return [0] * len(counts)
    cells = [width * count // total for count in counts]
    small = [i for i, count in enumerate(counts) if count and not cells[i]]
    for i in small:
        cells[i] = 1
    order = sorted(range(len(counts)), key=lambda i: width * counts[i] / total - cells[i], reverse=True)
    for i in order[: max(0, width - sum(cells))]:
        cells[i] += 1
    while sum(cells) > width:
        cells[max(range(len(cells)), key=cells.__getitem__)] -= 1
    return cells
