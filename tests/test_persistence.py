"""The cache on disk from end to end: whole programs with a tiny model, killed, damaged, side by side."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvchat.backends.base import Answer, Done, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.cache.maintenance import verify_checksums
from kvchat.config import Config
from tests.tiny import tiny_folder

SYSTEM = "the quick brown fox jumps over the lazy dog and so on " * 12


@pytest.fixture(scope="session")
def wide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for long conversations."""
    return tiny_folder(tmp_path_factory.mktemp("wide") / "tiny", max_position_embeddings=8192)


class Program:
    """`kvchat --turns` on one cache folder."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.cache = folder / "kv"

    def start(self, questions: Sequence[str], *flags: str) -> subprocess.Popen[str]:
        turns = self.folder / f"turns-{random.random()}.txt"
        turns.write_text("\n".join(questions))
        environ = os.environ | {
            f"KVCHAT_{name}": str(self.folder / name) for name in ("MODELS", "DATA", "CONFIG")
        }
        command = [sys.executable, "-m", "kvchat", "-m", str(self.model), "--dtype", "float32", "-s", SYSTEM]
        options = [
            "--turns",
            str(turns),
            "--json",
            "--tokens",
            "--max-tokens",
            "8",
            "--cache-dir",
            str(self.cache),
        ]
        return subprocess.Popen(
            [*command, *options, "--cache-disk", "50MB", "--cache-ram", "20MB", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def run(self, questions: Sequence[str], *flags: str) -> list[dict[str, Any]]:
        started = self.start(questions, *flags)
        out, err = started.communicate(timeout=120)
        assert started.returncode == 0, err
        assert "Traceback" not in err
        return [json.loads(line) for line in out.splitlines()]

    def check_whole(self) -> None:
        report = verify_checksums(self.cache)
        assert report.num_files > 0
        assert report.is_clean, report.bad


def completions(answers: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [answer["tokens"]["completion"] for answer in answers]


@pytest.fixture(scope="module")
def expected(wide_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What is answered to hello and world without a cache."""
    program = Program(wide_path, tmp_path_factory.mktemp("uncached"))
    return completions(program.run(["hello", "world"], "--cache", "off"))


def test_the_second_process_restores_the_system_prompt_and_answers_alike(
    wide_path: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    program = Program(wide_path, tmp_path)
    first, second = (program.run(["hello", "world"]) for _ in range(2))
    assert completions(first) == completions(second) == expected
    assert first[0]["cache"]["tiers"].get("disk", 0) == 0
    assert second[0]["cache"]["tiers"]["disk"] >= (first[0]["usage"]["prompt_tokens"] - 1) // 16 * 16
    program.check_whole()


def answers_after_kills(program: Program, times: int) -> list[list[int]]:
    """What is answered to hello and world after so many programs were killed."""
    chance = random.Random(times)
    for number in range(times):
        victim = program.start([f"number {number}", "the fox", "the dog", "and so on"] * 4)
        assert victim.stdout is not None
        if chance.random() < 0.7:
            victim.stdout.readline()  # it has loaded: now it answers, commits and writes
        time.sleep(chance.random() * 0.3)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    survivors = completions(program.run(["hello", "world"]))
    program.check_whole()
    assert not verify_checksums(program.cache).left_over, (
        "what dead writers left is gone after the next start"
    )
    return survivors


def test_sessions_killed_at_random_moments_leave_a_clean_cache(
    wide_path: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    assert answers_after_kills(Program(wide_path, tmp_path), 2) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_sessions_killed_at_random_moments_leave_a_clean_cache(
    wide_path: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    assert answers_after_kills(Program(wide_path, tmp_path), 100) == expected


@pytest.mark.parametrize("turns", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_two_processes_share_one_folder_at_once(wide_path: Path, tmp_path: Path, turns: int) -> None:
    program = Program(wide_path, tmp_path)
    questions = [[f"{who} asks {number}" for number in range(turns)] for who in ("left", "right")]
    both = [program.start(asked, "--max-tokens", "4") for asked in questions]
    for process in both:
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, err
        assert err.strip() == ""
        answers = [json.loads(line) for line in out.splitlines()]
        assert len(answers) == turns
        for before, after in itertools.pairwise(answers):
            assert after["timings"]["cache_n"] >= before["usage"]["total_tokens"]
    program.check_whole()
    first, *_ = program.run(questions[0], "--max-tokens", "4")
    assert first["timings"]["prompt_n"] <= 40, "the other run's turns are found"


def ask(backend: LocalBackend, history: Sequence[Turn], count: int = 4) -> Answer:
    *_, last = backend.answer(history, Options(max_tokens=count))
    assert isinstance(last, Done)
    return last.answer


def test_forks_with_four_thousand_common_tokens_store_them_once(
    make_config: Callable[..., Config], wide_path: Path
) -> None:
    backend = LocalBackend(make_config(model__name=str(wide_path), cache__ram="200MB"))
    history = [Turn(Role.SYSTEM, "and so on the lazy dog " * 700), Turn(Role.USER, "hello")]
    said = ask(backend, history)
    assert said.usage.prompt_tokens > 4000
    trunk = backend.cache(history).tiers[0].used_bytes
    for branch in ("left", "right", "straight on"):
        answer = ask(backend, [*history, said.turn(), Turn(Role.USER, branch)])
        assert answer.timings.cache_n >= 4000
    per_token = backend.info().kv_bytes_per_token
    assert backend.cache(history).tiers[0].used_bytes - trunk < 3 * 64 * per_token
    backend.close()


def test_ram_stays_within_its_budget_over_many_mixed_conversations(
    make_config: Callable[..., Config], wide_path: Path
) -> None:
    backend = LocalBackend(make_config(model__name=str(wide_path), cache__ram="1MB", cache__disk="0"))
    chance = random.Random(0)
    histories: list[list[Turn]] = [[Turn(Role.SYSTEM, f"{n} " + SYSTEM[: 80 * n])] for n in range(8)]
    for number in range(120):
        history = chance.choice(histories)
        history.append(Turn(Role.USER, f"message {number}"))
        history.append(ask(backend, history).turn())
        view = backend.cache([])
        assert view.tiers[0].used_bytes <= view.tiers[0].budget_bytes == 1_000_000
    assert view.process.evicted_blocks > 0
    backend.close()


def test_a_damaged_cache_costs_time_and_one_warning(
    wide_path: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    program = Program(wide_path, tmp_path)
    program.run(["hello", "world"])
    for path in program.cache.rglob("*.kv"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(content)
    process = program.start(["hello", "world"])
    out, err = process.communicate(timeout=120)
    assert completions([json.loads(line) for line in out.splitlines()]) == expected
    assert len(err.strip().splitlines()) == 1
    assert "computed again" in err
    program.run(["hello", "world"])
    program.check_whole()


@pytest.mark.parametrize("obstacle", ["a file in the folder's place", "a tiny budget", "deleted in between"])
def test_a_folder_that_cannot_be_used_does_not_stop_the_chat(
    wide_path: Path, tmp_path: Path, expected: list[list[int]], obstacle: str
) -> None:
    program = Program(wide_path, tmp_path)
    flags = ()
    if obstacle == "a file in the folder's place":
        program.cache.write_text("not a folder")
    elif obstacle == "a tiny budget":
        flags = ("--cache-disk", "20KB")
    process = program.start(["hello", "world"], *flags)
    assert process.stdout is not None
    first = process.stdout.readline()
    if obstacle == "deleted in between":
        for path in program.cache.rglob("*"):
            if path.is_file():
                path.unlink(missing_ok=True)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert completions([json.loads(line) for line in [first, *rest.splitlines()]]) == expected
    assert len(err.strip().splitlines()) <= 1
