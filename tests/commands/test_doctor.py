"""`kvchat doctor`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kvchat.backends.local import LocalBackend
from kvchat.cli import main
from kvchat.commands.doctor import Finding, memory, processor, self_test
from kvchat.config import Config
from tests.scripted import ScriptedBackend

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in ("CACHE_DIR", "MODELS", "DATA", "CONFIG", "RUNTIME"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(["doctor", *argv])
        return (code, *capsys.readouterr())

    return run


def found(out: str) -> dict[str, Finding]:
    return {row["name"]: Finding(**row) for row in json.loads(out)["findings"]}


def test_a_model_that_is_here_answers_twice_and_reuses(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    code, out, err = run("-m", str(tiny_path), "--dtype", "float32", "--json")
    rows = found(out)
    assert (code, err, json.loads(out)["ok"]) == (0, "", True)
    assert set(rows) == {
        "versions", "processor", "memory", "settings", "models", "cache", "data", "config", "disk",
        "model", "loading", "template", "policy", "promise", "weights", "speed", "reuse",
    }  # fmt: skip
    policy, _, check = rows["policy"].value.partition("; ")
    assert policy == "what was computed is reused token for token (blocks)"
    assert check.startswith(("checked: ", "not checked, for that would take too long"))
    assert rows["template"].value == "keeps the past token for token (append-safe)"
    assert "tokens/s" in rows["speed"].value
    assert "torch 2." in rows["versions"].value
    assert not (tmp_path / "CACHE_DIR").exists()
    assert not (tmp_path / "DATA").exists()


def test_without_the_model_it_says_how_to_get_it_and_fetches_nothing(run: Run, tmp_path: Path) -> None:
    code, out, err = run()
    assert (code, err.count("\n")) == (1, 1)
    assert "! model        smollm2-135m is not here" in out
    assert "-> run kvchat models pull smollm2-135m" in out
    assert not (tmp_path / "MODELS").exists()


def test_a_model_that_there_is_not_is_named_with_what_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    assert found(run("-m", "nobody", "--json")[1])["model"].value == "no model is called 'nobody'"
    model = found(run("-m", str(tmp_path / "empty"), "--json")[1])["model"]
    assert model.value == f"{tmp_path}/empty holds no *.safetensors"
    assert model.remedy == "fetch the model again"


def test_wrong_settings_are_a_finding(run: Run, tmp_path: Path) -> None:
    (tmp_path / "CONFIG").write_text("[cache]\nrom = 1\n")
    rows = found(run("--json")[1])
    assert "CONFIG:2: no setting is called 'rom'" in rows["settings"].value
    assert rows["settings"].remedy == "did you mean 'ram'?"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written_is_a_finding(run: Run, tmp_path: Path) -> None:
    (tmp_path / "DATA").mkdir(mode=0o500)
    rows = found(run("--json")[1])
    assert "read-only" in rows["data"].value
    assert "chmod" in rows["data"].remedy


def test_a_file_in_a_folders_place_is_a_finding(run: Run, tmp_path: Path) -> None:
    (tmp_path / "DATA").write_text("")
    assert "is not a folder" in found(run("--json")[1])["data"].value


def test_an_answer_that_reuses_nothing_has_to_be_fixed(make_config: Callable[..., Config]) -> None:
    with closing(LocalBackend(make_config(cache__mode="off"))) as backend:
        *_, last = self_test(backend)
    assert last.value.startswith("the second answer reused 0 of ")
    assert "reuse is off" in last.remedy


def test_a_backend_that_reuses_passes() -> None:
    assert [finding.remedy for finding in self_test(ScriptedBackend())] == [""] * 7


def test_cpu_features_are_read_from_what_the_system_says(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_bf16 amx_int8\n")
    assert "Some CPU" in processor(cpuinfo).value
    assert processor(cpuinfo).value.endswith("avx2 avx512_bf16 amx_int8")
    assert "no known features" in processor(tmp_path / "missing").value


def test_little_free_memory_has_to_be_fixed(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 200000 kB\n")
    assert memory(meminfo).remedy
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
    assert not memory(meminfo).remedy
    assert not memory(tmp_path / "missing").remedy
