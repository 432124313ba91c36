from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvchat.models import fingerprint as module
from kvchat.models.fingerprint import fingerprint
from tests.tiny import tiny_folder

REGIME = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def mark(folder: Path, **regime: str) -> bytes:
    return fingerprint(folder, REGIME | regime, memory=folder.parent / "memory")


def test_the_same_model_has_the_same_mark_wherever_it_lies(folder: Path) -> None:
    before = mark(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    assert mark(moved) == before == mark(moved)


def test_whatever_makes_kv_invalid_changes_the_mark(folder: Path) -> None:
    before = mark(folder)
    assert mark(folder, dtype="bfloat16") != before
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 12345.0}
    (folder / "config.json").write_text(json.dumps(config))
    with_rope = mark(folder)
    assert with_rope != before
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert mark(folder) != with_rope


def test_weights_are_read_once_as_long_as_they_stay_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mark(folder)
    monkeypatch.setattr(module, "file_xxh3", lambda path: pytest.fail("read again"))
    assert mark(folder) == before


def test_a_memory_that_is_damaged_or_cannot_be_written_only_costs_time(folder: Path) -> None:
    before = mark(folder)
    (folder.parent / "memory" / "weights.json").write_text("{not json")
    assert mark(folder) == before
    (folder.parent / "file").write_text("")
    assert fingerprint(folder, REGIME, memory=folder.parent / "file") == before


def test_a_blob_of_the_hub_is_taken_by_its_own_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = folder.parent / ("ab" * 32)
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr(module, "file_xxh3", lambda path: pytest.fail("read"))
    assert len(mark(folder)) == 16


def test_it_needs_no_torch() -> None:
    code = "import sys, kvchat.models.fingerprint; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
