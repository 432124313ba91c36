from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvchat.errors import ModelUnavailableError
from kvchat.models.fingerprint import fingerprint
from kvchat.models.sources import contents as module
from kvchat.models.sources.contents import Contents
from tests.tiny import tiny_folder

REGIME = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def tomorrow() -> int:
    """A time at which no file is in doubt any more."""
    return time.time_ns() + 10**14


def mark(folder: Path, now_ns: Callable[[], int] = time.time_ns, **regime: str) -> bytes:
    return fingerprint(folder, REGIME | regime, contents=Contents(folder.parent / "memory", now_ns))


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
    before = mark(folder, now_ns=tomorrow)
    monkeypatch.setattr(module, "file_xxh3", lambda path: pytest.fail("read again"))
    assert mark(folder) == before


def test_other_weights_under_the_same_name_size_and_time_are_read_anew(folder: Path) -> None:
    before = mark(folder, now_ns=tomorrow)
    weights = folder / "model.safetensors"
    state = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert weights.stat().st_ino == state.st_ino
    assert mark(folder, now_ns=tomorrow) != before


@pytest.mark.parametrize("moments_ns", [0, 1_000_000_000, -(10**15)])
def test_what_changed_a_moment_ago_or_in_the_future_is_not_remembered(folder: Path, moments_ns: int) -> None:
    changed_ns = (folder / "model.safetensors").stat().st_ctime_ns
    mark(folder, now_ns=lambda: changed_ns + moments_ns)
    assert not (folder.parent / "memory").exists()


def test_a_memory_that_is_damaged_or_cannot_be_written_only_costs_time(folder: Path) -> None:
    before = mark(folder, now_ns=tomorrow)
    (folder.parent / "memory" / "weights.json").write_text("{not json")
    assert mark(folder) == before
    (folder.parent / "file").write_text("")
    assert fingerprint(folder, REGIME, contents=Contents(folder.parent / "file")) == before


def as_link_to(folder: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(target)
    (folder / "model.safetensors").symlink_to(target)


def test_a_blob_of_the_hub_is_proved_once_and_then_taken_by_its_own_hash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    as_link_to(folder, folder.parent / "blobs" / sha256)
    before = mark(folder, now_ns=tomorrow)
    monkeypatch.setattr(module, "file_xxh3", lambda path: pytest.fail("read"))
    monkeypatch.setattr(module, "_file_sha256", lambda path: pytest.fail("read again"))
    assert mark(folder) == before


def test_a_blob_of_the_hub_that_is_not_what_its_name_says_is_refused(folder: Path) -> None:
    as_link_to(folder, folder.parent / "blobs" / ("ab" * 32))
    with pytest.raises(ModelUnavailableError, match="is damaged"):
        mark(folder)


@pytest.mark.parametrize("place", ["weights/" + "ab" * 32, "blobs/" + "weights-0" * 7 + "0"])
def test_a_link_to_any_other_file_with_a_long_name_goes_by_its_content(folder: Path, place: str) -> None:
    target = folder.parent / place
    assert len(target.name) == 64
    as_link_to(folder, target)
    before = mark(folder)
    target.write_bytes(target.read_bytes()[:-1] + b"\x55")
    assert mark(folder) != before


def test_it_needs_no_torch() -> None:
    code = "import sys, kvchat.models.fingerprint; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
