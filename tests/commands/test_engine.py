"""`kvchat engine ls|stop|log`, and what doctor and clearing say to engines; all in a runtime folder of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvchat.backends.resident.asking import residents
from kvchat.cli import main
from kvchat.commands.doctor import engines
from kvchat.config import Config
from tests.backends.resident.sharing import answered, clients, is_alive, kept, user

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return kept(make_config(), 60)


@pytest.fixture
def run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    for name in ("CACHE_DIR", "MODELS", "DATA", "CONFIG"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setenv("KVCHAT_RUNTIME", str(config.paths.runtime))

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        return (code, *capsys.readouterr())

    return run


def test_without_an_engine_there_is_nothing_to_list_or_to_stop(run: Run) -> None:
    assert run("engine", "ls") == (0, "", "")
    code, out, err = run("engine", "stop")
    assert (code, out) == (2, "") and "no engine is running" in err
    assert run("engine", "stop", "--all") == (0, "", "")
    assert "no engine has written a log" in run("engine", "log")[2]


def test_an_engine_is_listed_shown_by_doctor_read_about_cleared_and_stopped(run: Run, config: Config) -> None:
    with clients(config) as client:
        one = client()
        history = [user("the quick brown fox jumps over the lazy dog " * 3)]
        answered(one, history)
        (row,) = (json.loads(line) for line in run("engine", "ls", "--json")[1].splitlines())
        assert row["pid"] == one.pid and row["reacts"] and len(row["clients"]) == 1
        assert row["memory_bytes"] > row["live_bytes"] > 0
        assert f"{one.pid}  " in run("engine", "ls")[1]
        (finding,) = engines(config)
        assert "1 client" in finding.value and not finding.remedy
        assert "came" in run("engine", "log")[1] and "quick brown" not in run("engine", "log")[1]
        assert run("cache", "clear", "--cache-dir", str(config.paths.cache))[0] == 0
        (engine,) = residents(config.paths.runtime)
        assert engine.about is not None and engine.about.live_bytes == 0
        assert answered(one, history).usage.cached_tokens == 0
        code, out, _ = run("engine", "stop", str(engine.pid))
        assert (code, out) == (0, f"stopped {engine.pid}\n")
        assert not is_alive(engine.pid)
        assert answered(one, history).completion
        assert one.pid != engine.pid


def test_an_engine_that_is_not_there_is_named_among_those_that_are(run: Run) -> None:
    code, _, err = run("engine", "stop", "1")
    assert code == 2 and "no engine is running" in err
