"""Completion in the shells themselves, where they are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvchat.commands.completion import Place, places
from kvchat.commands.flags import FLAGS
from kvchat.commands.table import COMMANDS

PROBE = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_kvchat
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str) -> str:
    command = [sys.executable, "-m", "kvchat", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "kvchat.bash"
    file.write_text(script("bash"))
    return file


def completed(bash_script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    folder = bash_script.parent
    program = folder / "kvchat"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kvchat "$@"\n')
    program.chmod(0o755)
    own = {f"KVCHAT_{name}": str(folder / name) for name in ("MODELS", "CONFIG", "DATA", "CACHE_DIR")}
    environ = os.environ | own | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", "-c", PROBE, "bash", str(bash_script), "kvchat", *words]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert result.stderr == ""
    return set(result.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_flags_choices_and_names(bash_script: Path) -> None:
    assert completed(bash_script, "cac") == {"cache"}
    assert completed(bash_script, "cache", "") == {"ls", "stat", "verify", "prune", "clear", "path", "trace"}
    assert "--dry-run" in completed(bash_script, "cache", "prune", "--d")
    assert completed(bash_script, "--temp") == {"--temperature", "--template"}
    assert completed(bash_script, "--dtype", "") == {"auto", "float32", "bfloat16", "float16"}
    assert completed(bash_script, "--dtype", "=", "fl") == {"float32", "float16"}
    assert completed(bash_script, "models", "rm", "smo") == {"smollm2-135m"}
    assert completed(bash_script, "-m", "smo") == {"smollm2-135m"}
    assert completed(bash_script, "--json", "models", "p") == {"pull", "path"}
    assert completed(bash_script, "-p", "mod") == set()


def test_every_command_and_flag_has_its_place() -> None:
    found = {place.route: place for place in places()}
    assert {row.name for row in COMMANDS} <= set(found)
    top = {name for option in found[""].options for name in option.names}
    assert {name for flags in FLAGS.values() for flag in flags for name in flag.names.split()} <= top
    assert {row.name.split()[0] for row in COMMANDS} == set(found[""].words)
    verify = {name for option in found["cache verify"].options for name in option.names}
    assert {"--no-recompute", "-m", "--model", "--dtype", "--json", "--dry-run"} <= verify
    assert found["models rm"].group == "models"
    assert found["cache ls"].group == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_each_shells_script_names_every_command_and_flag(shell: str) -> None:
    text = script(shell)
    for place in places():
        lines = lines_of_place(text, shell, place)
        for word in place.words:
            assert any(f" -a {word} " in line or f"{word}:" in line for line in lines), word
        for option in place.options:
            for name in option.names:
                wanted = {"zsh": rf"[ ('\"]{name}:", "fish": f" {fish_name(name)} "}[shell]
                assert any(re.search(wanted, line) for line in lines), (place.route, name)
            assert all(choice in text for choice in option.choices)


def lines_of_place(text: str, shell: str, place: Place) -> list[str]:
    """What the script says of one place."""
    lines = text.splitlines()
    if shell == "fish":
        return [line for line in lines if f"__kvchat_at \\'{place.route}\\''" in line]
    begin = lines.index(f"        ({shlex.quote(place.route)})")
    return lines[begin : begin + 3]


def fish_name(name: str) -> str:
    return f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"


@pytest.mark.parametrize(("shell", "flag"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_script_is_right_syntax(shell: str, flag: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    file = tmp_path / "script"
    file.write_text(script(shell))
    subprocess.run([shell, flag, str(file)], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes_verbs_and_choices(tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text(script("fish"))
    ask = f'source {file}; complete -C "kvchat cache "; complete -C "kvchat --dtype b"'
    shown = subprocess.run(["fish", "-N", "-c", ask], capture_output=True, text=True, timeout=60)
    words = [line.split("\t")[0] for line in shown.stdout.splitlines()]
    assert shown.stderr == ""
    assert words == ["clear", "ls", "path", "prune", "stat", "trace", "verify", "bfloat16"]
