"""Rows of a measurement as a picture, legible on light and dark pages. Needs matplotlib, an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.bench.measure import Spread
from kvchat.errors import UsageError

SUFFIXES = (".svg", ".png")
_INCHES = (7.2, 3.6)
_COLOURS = ("#0b6e4f", "#c1440e", "#3a5ba0", "#8a6d1a", "#7a3b8f", "#555555")
_MARKERS = "osD^vP"


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over `x`, each a measurement with its spread; `logarithmic` for values of several magnitudes."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[int]
    lines: Mapping[str, Sequence[Spread]]
    logarithmic: bool = False


def check(path: Path) -> None:
    """Raises UsageError if nothing can be drawn there, before hours are spent on measuring."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"can't draw {path.name}", f"name a file that ends in {' or '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}", "create it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib", "pip install 'kvchat[bench]'") from None


def draw(chart: Chart, path: Path) -> None:
    """Write the chart as SVG or PNG, by the file's suffix. Raises UsageError if it can't be written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "font.size": 10, "svg.hashsalt": "kvchat"}):
        figure = Figure(figsize=_INCHES, layout="constrained", facecolor="white")
        _fill(figure.add_subplot(), chart)
        figure.legend(loc="outside right center", frameon=False)
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise UsageError(f"can't write {path}: {error.strerror}", "name another file") from error


def _fill(axes: Any, chart: Chart) -> None:
    for index, (name, spreads) in enumerate(chart.lines.items()):
        medians = [spread.median for spread in spreads]
        below = [spread.median - spread.low for spread in spreads]
        above = [spread.high - spread.median for spread in spreads]
        look = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
        axes.errorbar(chart.x, medians, (below, above), label=name, capsize=3, markersize=5, **look)
    axes.set_title(chart.title, fontsize=11)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
