from __future__ import annotations

from collections.abc import Callable

import pytest

from kvchat.bench import typing
from kvchat.bench.contender import Setup
from kvchat.bench.typing import MODES, Row
from kvchat.bench.typist import Stroke
from kvchat.config import Config


def test_a_row_says_how_long_enter_took_and_what_was_wasted() -> None:
    row = Row(250, "auto", (1.0, 2.0, 3.0, 4.0, 10.0), 0.8, 40.0, 4.0)
    assert row.percentile(50) == 3.0
    assert row.cells()["p95 ms"] == "8.8"
    assert row.to_json()["ready"] == 0.8
    assert Row(250, "off", (7.0,), 0.0, 0.0, 0.0).percentile(95) == 7.0


def test_each_mode_is_measured_on_the_same_messages(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quick(typing.Typist):
        def strokes(self, message: str):  # type: ignore[no-untyped-def]
            yield Stroke(0.0, message[:9])
            yield Stroke(0.1, message)
            yield Stroke(1.2, message, is_enter=True)

    monkeypatch.setattr(typing, "Typist", Quick)
    rows = list(typing.measure(Setup(make_config(), 1, None), lengths=[40], messages=2))
    assert [row.mode for row in rows] == list(MODES)
    off, prefill, auto = rows
    assert (off.ahead, off.ready) == (0, 0)
    assert 0 < prefill.ahead < auto.ahead
    assert auto.ready > 0
