"""What `sessions ls` says of a real cache: warm while it is stored, evicted when it is gone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from kvchat.cli import main


def test_a_session_is_warm_until_its_kv_is_cleared(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    question = "the quick brown fox jumps over the lazy dog " * 5

    def listed() -> dict[str, object]:
        capsys.readouterr()
        assert main(["sessions", "ls", "--json"]) == 0
        (row,) = capsys.readouterr().out.splitlines()
        found: dict[str, object] = json.loads(row)
        return found

    flags = ["-m", str(tiny_path), "--dtype", "float32", "--max-tokens", "20", "--temperature", "0"]
    assert main([*flags, "-p", question]) == 0
    row = listed()
    tokens, warm = row["tokens"], row["tokens_warm"]
    assert isinstance(tokens, int)
    assert isinstance(warm, int)
    assert tokens - 17 <= warm <= tokens
    assert not row["evicted"]
    assert main(["sessions", "ls"]) == 0
    assert f"{warm} warm" in capsys.readouterr().out

    assert main(["cache", "clear"]) == 0
    row = listed()
    assert (row["tokens_warm"], row["evicted"]) == (0, True)
    assert main(["sessions", "ls"]) == 0
    assert "evicted" in capsys.readouterr().out
