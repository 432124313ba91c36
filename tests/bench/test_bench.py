from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvchat.bench import codec, measure, ttft
from kvchat.config import Config


def test_a_row_has_every_mode_and_found_the_history_where_it_says(make_config: Callable[..., Config]) -> None:
    (row,) = ttft.measure(make_config(), lengths=[200], repeats=2)
    assert row.history == 200
    assert set(row.ttft_ms) == set(ttft.MODES)
    assert all(
        spread.runs == 2 and spread.low <= spread.median <= spread.high for spread in row.ttft_ms.values()
    )
    assert 0 < row.message < 200
    assert "none / live" in ttft.report([row])[0]


def test_int8_is_close_to_exact_and_half_the_size(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "PREFIX_TOKENS", 128)
    monkeypatch.setattr(codec, "NUM_POSITIONS", 16)
    (row,) = codec.measure(make_config(), texts=1)
    assert 0 < row.kl < 0.1
    assert row.bytes_int8 < row.bytes_raw / 2
    assert codec.report([row])[2].strip()


def test_text_is_as_long_as_asked() -> None:
    assert len(measure.english(500, lambda text: len(text.split())).split()) in range(500, 510)


def test_the_command_prints_json(tiny_path: Path, tmp_path: Path) -> None:
    command = [
        "-m",
        "kvchat",
        "-m",
        str(tiny_path),
        "--dtype",
        "float32",
        "bench",
        "ttft",
        "--lengths",
        "100",
        "--repeats",
        "1",
        "--json",
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["history_tokens"] == 100
