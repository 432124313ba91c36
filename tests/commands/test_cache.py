"""`kvchat cache ...` over a folder that the tiny model filled."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvchat.backends.base import Options, Role, Turn
from kvchat.backends.inspection import CacheTotals
from kvchat.backends.local import LocalBackend
from kvchat.chat.store import FILE_NAME, Store
from kvchat.cli import main
from kvchat.config import load_config

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def filled(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with what two conversations have stored."""
    folder = tmp_path_factory.mktemp("filled")
    own = {f"paths.{name}": folder / name for name in ("models", "cache", "data")}
    model = {"model.name": str(tiny_path), "model.dtype": "float32", "cache.disk": "100MB"}
    config = load_config(own | model, environ={"KVCHAT_CONFIG": os.devnull})
    with closing(LocalBackend(config)) as backend:
        for text in (
            "the quick brown fox jumps over the lazy dog",
            "hello world, and so on and so on and so on",
        ):
            list(backend.answer([Turn(Role.USER, text * 2)], Options(max_tokens=4)))
    assert any((folder / "cache").glob("*/*.kv"))
    return folder / "cache"


@pytest.fixture
def run(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs `kvchat cache ...` on a copy of the folder; (exit code, stdout, stderr), or what --json gave."""
    shutil.copytree(filled, tmp_path / "kv")
    for name, folder in {"CACHE_DIR": "kv", "MODELS": "models", "DATA": "data", "CONFIG": "c.toml"}.items():
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / folder))

    def run(*argv: str) -> Any:
        code = main(["cache", *argv])
        said = capsys.readouterr()
        if "--json" not in argv or code:
            return code, said.out, said.err
        objects = [json.loads(line) for line in said.out.splitlines()]
        return objects if argv[0] == "ls" else objects[0]

    return run


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kv").glob("*/*.kv"))


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_path_is_the_kv_folder_alone(run: Run, tmp_path: Path) -> None:
    assert run("path") == (0, f"{tmp_path}/kv\n", "")
    assert run("path", "--json") == {"path": f"{tmp_path}/kv"}


def test_ls_has_a_line_for_each_stored_run(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("ls")
    assert code == 0
    assert len(out.splitlines()) == len(files(tmp_path)) > 0
    assert all("tiny" in line and "float32" in line and "tokens " in line for line in out.splitlines())


def test_ls_json_is_an_object_a_line(run: Run, tmp_path: Path) -> None:
    rows = run("ls", "--json")
    assert sorted(row["path"] for row in rows) == [str(path) for path in files(tmp_path)]
    assert all((row["start"], row["codec"]) == (0, "raw") and row["end"] % 16 == 0 for row in rows)


def test_stat_says_what_each_model_has_stored(run: Run, tmp_path: Path) -> None:
    report = run("stat", "--json")
    (model,) = report["models"]
    assert model["num_files"] == len(files(tmp_path))
    assert report["bytes"] == model["num_bytes"] == sum(path.stat().st_size for path in files(tmp_path))
    assert model["num_tokens"] > 0
    assert model["meta"]["codec"] == "raw"
    code, out, _ = run("stat")
    assert (code, "raw" in out, f"{model['num_tokens']} tokens" in out) == (0, True, True)
    assert ("packed to" in out) == (model["share"] < 1)


def test_stat_shows_the_totals_of_all_time_and_creates_no_store(run: Run, tmp_path: Path) -> None:
    assert "no prompt was computed yet" in run("stat")[1]
    assert not (tmp_path / "data").exists()
    store = Store(tmp_path / "data" / FILE_NAME)
    store.add_totals(
        CacheTotals(
            asked_tokens=1000,
            live_tokens=600,
            tier_tokens={"disk": 200},
            saved_s=9.0,
            load_s=1.0,
            store_s=0.5,
        )
    )
    store.close()
    totals = run("stat", "--json")["all_time"]
    assert (totals["hit_tokens"], totals["net_saved_s"]) == (800, 7.5)
    assert run("stat")[1].count("asked 1000 tokens, hit 800 (80%): live 600, disk 200") == 2, "week, all time"


def test_clear_removes_all_and_a_dry_run_nothing(run: Run, tmp_path: Path) -> None:
    before = files(tmp_path)
    dry = run("clear", "--dry-run", "--json")
    assert (dry["num_files"], dry["is_dry_run"], files(tmp_path)) == (len(before), True, before)
    assert run("clear")[1].startswith("freed ")
    assert files(tmp_path) == []


def test_prune_to_a_size_reports_what_it_frees(run: Run, tmp_path: Path) -> None:
    smallest = min(path.stat().st_size for path in files(tmp_path))
    before = sum(path.stat().st_size for path in files(tmp_path))
    freed = run("prune", "--to", str(before - 1), "--json")
    left = sum(path.stat().st_size for path in files(tmp_path))
    assert freed["num_bytes"] == before - left >= smallest
    assert left < before


def test_prune_by_age_spares_what_was_used_since(run: Run, tmp_path: Path) -> None:
    assert run("prune", "--older-than", "1", "--json")["num_files"] == 0
    for path in files(tmp_path):
        os.utime(path, (0, time.time() - 3 * 86400))
    assert run("prune", "--older-than", "4", "--json")["num_files"] == 0
    assert run("prune", "--older-than", "1", "--dry-run", "--json")["num_files"] == len(files(tmp_path))
    assert run("prune", "--older-than", "2.5")[1].startswith("freed ")
    assert files(tmp_path) == []


def test_verify_of_sound_files_computes_a_sample_again(run: Run, tiny_path: Path) -> None:
    report = run("verify", "-m", str(tiny_path), "--dtype", "float32", "--json")
    assert report["bad"] == []
    assert report["sample"]["bound"] == 0.0
    assert report["sample"]["runs"]
    assert all(one["is_right"] for one in report["sample"]["runs"])


def test_verify_names_a_damaged_file_and_exits_with_1(run: Run, tmp_path: Path, tiny_path: Path) -> None:
    broken = files(tmp_path)[0]
    flip(broken)
    code, out, err = run("verify", "-m", str(tiny_path), "--dtype", "float32")
    assert (code, err.count("\n")) == (1, 1)
    assert f"{broken}: a block's checksum is wrong" in out
    assert "computed" in out
    code, out, _ = run("verify", "--no-recompute", "--remove")
    assert (code, broken.exists()) == (0, False)
    assert "freed" in out


def test_verify_without_the_model_says_so_and_checks_the_checksums(run: Run, tmp_path: Path) -> None:
    code, out, err = run("verify")
    assert (code, err) == (0, "")
    assert "smollm2-135m is not on this disk (kvchat models pull smollm2-135m)" in out
    flip(files(tmp_path)[0], 40)
    assert run("verify")[0] == 1


def test_verify_loads_no_model_for_which_nothing_is_stored(run: Run, tiny_path: Path) -> None:
    run("clear")
    assert f"nothing is stored for {tiny_path}" in run("verify", "-m", str(tiny_path))[1]


def test_a_missing_folder_is_an_empty_one(run: Run, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    said = {
        "ls": "",
        "stat": "in total 0 B of ",
        "prune": "freed 0 B in 0 files",
        "clear": "freed 0 B in 0 files",
        "verify": "0 files, 0 blocks, 0 B: all sound",
    }
    for verb, begin in said.items():
        code, out, err = run(verb, "--cache-dir", missing)
        assert (code, out.startswith(begin), err) == (0, True, ""), verb
        assert out or verb == "ls"
    assert not Path(missing).exists()
