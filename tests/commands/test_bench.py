from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvchat.backends.local import LocalBackend
from kvchat.bench import histories
from kvchat.cli import main


@pytest.fixture
def run(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("KVCHAT_CONFIG", str(tmp_path / "none.toml"))

    def bench(*arguments: str) -> tuple[int, str, str]:
        code = main(["-m", str(tiny_path), "--dtype", "float32", "bench", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return bench


def test_json_is_a_line_a_row(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("ttft", "--lengths", "100", "120", "--repeats", "1", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["history_tokens"] for line in out.splitlines()] == [100, 120]


def test_a_table_has_a_heading_and_a_line_a_row(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(histories, "ProcessBackend", LocalBackend)  # starts sooner
    code, out, _ = run("restore", "--lengths", "100", "150", "--repeats", "1")
    heading, *rows = out.splitlines()
    assert code == 0
    assert heading.startswith("length") and "computed ms" in heading and "KV MB" in heading
    assert [row.split()[0] for row in rows] == ["100", "150"]


def test_a_model_that_is_not_here_has_its_own_exit_code(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("decode", "-m", "nobody")
    assert (code, out) == (3, "")
    assert err.startswith("kvchat: no model is called 'nobody'") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("decode", "--against", "vllm"), "can't be compared with 'vllm'"),
        pytest.param(("decode", "--lengths", "500"), "the model has 512", marks=pytest.mark.slow),
        (("decode", "--lengths", "0"), "not a whole number above 0"),
        (("prefill", "--repeats", "many"), "not a whole number above 0"),
        (("decode", "--lengths", "16", "--against", "llama.cpp"), "no GGUF"),
        (("ttft", "--lengths", "900000000"), "fewer than"),
        (("ttft", "--plot", "picture.gif"), "can't draw picture.gif"),
    ],
)
def test_what_can_not_be_measured_is_said_in_one_line(run, arguments: tuple[str, ...], said: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(*arguments)
    assert code != 0 and out == ""
    assert err.count("\n") == 1 and said in err and "Traceback" not in err
