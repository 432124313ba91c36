"""What the commands' own arguments may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvchat.cli import main


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cache prune --older-than nan", "'nan' is not a number of days: see kvchat cache prune --help"),
        ("cache prune --older-than -1", "'-1' is not a number of days"),
        ("cache prune --to lots", "'lots' is not a size"),
        ("cache verify --sample 0", "'0' is not a whole number above 0"),
        ("sessions ls --limit 0", "'0' is not a whole number above 0"),
        ("sessions search x --limit -1", "'-1' is not a whole number above 0"),
        ("sessions export --format pdf", "invalid choice: 'pdf'"),
        ("models pull", "required: NAME"),
        ("models nothing", "invalid choice: 'nothing'"),
        ("cache ls --cache-dir=", "--cache-dir: '' is not a path"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    code = main(line.split())
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n"), said in err) == (2, "", 1, True), err
    assert list(tmp_path.iterdir()) == []
