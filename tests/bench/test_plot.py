from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kvchat.bench import plot
from kvchat.bench.measure import Spread
from kvchat.errors import UsageError

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is an extra"
)
CHART = plot.Chart(
    "Speed",
    "tokens held",
    "tokens a second",
    [16, 1024],
    {"kvchat": [Spread(90, 85, 95, 3), Spread(70, 69, 71, 3)], "other": [Spread(20, 19, 21, 3)] * 2},
)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"kvchat\[bench\]"):
        plot.check(tmp_path / "speed.svg")


@pytest.mark.parametrize(("name", "said"), [("speed.pdf", "can't draw"), ("none/speed.svg", "no folder")])
def test_what_can_not_be_drawn_is_refused_before_anything_is_measured(
    tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        plot.check(tmp_path / name)


@needs_matplotlib
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_small_svg_holds_its_words_as_text_on_white(tmp_path: Path, logarithmic: bool) -> None:
    path = tmp_path / "speed.svg"
    plot.check(path)
    chart = plot.Chart(CHART.title, CHART.x_label, CHART.y_label, CHART.x, CHART.lines, logarithmic)
    plot.draw(chart, path)
    drawn = path.read_text()
    assert all(
        f">{word}<" in drawn for word in ("Speed", "tokens held", "tokens a second", "kvchat", "other")
    )
    assert "#ffffff" in drawn
    assert len(drawn) < 60_000


@needs_matplotlib
def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot.draw(CHART, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@needs_matplotlib
def test_a_png_is_drawn_by_its_name(tmp_path: Path) -> None:
    plot.draw(CHART, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
