"""Files of prompts that somebody made to hang, kill or fool whoever lists them: each costs one line."""

import os
import random
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from kvchat.errors import UsageError
from kvchat.prompts.lint import Measure, lint
from kvchat.prompts.prompt import Shelf, read_prompt
from kvchat.prompts.shelves import Prompts

NOW = datetime(2031, 5, 7, 8, 9)
LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)
HEADS = {
    "laughs": LAUGHS + "\nvars: {x: *a9}",
    "laughs-description": LAUGHS + "\ndescription: *a9",
    "laughs-options": LAUGHS + "\noptions: {stop: *a9}",
    "laughs-key": LAUGHS + "\n? *a9\n: 1",
    "cycle": "vars: &v {x: *v}",
    "merge": "vars: {<<: &v {x: 1}, y: 2}\noptions: {<<: 1}",
    "date": "description: 2026-99-99",
    "date-key": "2026-02-31: x",
    "time": "vars: {x: 2026-01-01T99:99:99Z}",
    "huge": "vars: {x: " + "9" * 6000 + "}",
    "huge-key": "9" * 6000 + ": 1",
    "huge-hex": "vars: {x: 0x" + "f" * 6000 + "}",
    "huge-hex-key": "0x" + "f" * 6000 + ": 1",
    "huge-option": "options: {max_tokens: 0x" + "f" * 6000 + "}",
    "huge-seed": "options: {seed: " + "1" * 4000 + "}",
    "sixty": "vars: {x: " + ":".join(["59"] * 3000) + "}",
    "infinity": "options: {temperature: .inf}",
    "nan": "options: {top_p: .nan}",
    "deep-list": "vars: " + "[" * 8_000,
    "deep-map": "vars: " + "{a: " * 2_000,
    "deep-block": "\n".join(" " * n + "a:" for n in range(240)),
    "deep-sequence": "- " * 4_000,
    "long": "description: " + "x" * 40_000,
    "many": "\n".join(f"k{n}: 1" for n in range(5000)),
    "binary": "vars: {x: !!binary 4pyT}",
    "python": "vars: !!python/object/apply:os.system ['touch hacked']",
    "python-name": "description: !!python/name:os.system",
    "set": "vars: {x: !!set {a, b}}",
    "omap": "vars: !!omap [a: 1]",
    "unhashable": "? [a]\n: 1",
    "tabs": "\t\tpin:\ttrue",
    "nul": "description: \x00",
    "escape": "description: \x1b]0;x\x07",
    "two": "a: 1\n... \n--- b",
    "list-var": "vars: {x: [1, 2]}",
    "surrogate": 'description: "\\ud800"',
    "number-names": "vars: {1: 2}",
    "null": "null: null",
}
BODIES = {
    "deep-if": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "deep-for": "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "deep-brackets": "{{ " + "(" * 30_000 + ")" * 30_000 + " }}",
    "deep-list": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "deep-not": "{{ " + "not " * 20_000 + "1 }}",
    "deep-sum": "{{ " + "1+" * 20_000 + "1 }}",
    "includes-itself": "{% include 'body-includes-itself.md' %}",
    "extends-itself": "{% extends 'body-extends-itself.md' %}",
    "calls-itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "includes-pipe": "{% include 'pipe.md' %}",
    "no-end": "{% if",
}


def made(folder: Path) -> None:
    """Fill a folder with 250 hostile prompts and two good ones."""
    for name, head in HEADS.items():
        (folder / f"head-{name}.md").write_text(f"---\n{head}\n---\nbody", encoding="utf-8")
    for name, body in BODIES.items():
        (folder / f"body-{name}.md").write_text(body)
    os.mkfifo(folder / "pipe.md")
    for name in ("zero", "random", "full", "tty", "stdin"):
        (folder / f"device-{name}.md").symlink_to(f"/dev/{name}")
    (folder / "memory.md").symlink_to("/proc/self/mem")
    (folder / "nowhere.md").symlink_to("nowhere")
    (folder / "itself.md").symlink_to("itself.md")
    (folder / "folder.md").mkdir()
    with (folder / "sparse.md").open("wb") as file:
        file.truncate(2**40)
    (folder / "bytes.md").write_bytes(b"\xff\xfe" * 100)
    (folder / "line\nbreak\x1b[2J.md").write_text("x")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket.md"))
    chance = random.Random(4)
    for number, head in enumerate(mutations(chance, 250 - len(list(folder.iterdir())))):
        (folder / f"random-{number}.md").write_text(head, encoding="utf-8", errors="replace")
    assert len(list(folder.iterdir())) == 250
    (folder / "good.md").write_text("---\ndescription: A good one\n---\nYou are good.")
    (folder / "plain.md").write_text("You are plain.")


def mutations(chance: random.Random, count: int) -> Iterator[str]:
    """Heads with some characters changed."""
    for _ in range(count):
        text = list(
            f"---\n{chance.choice(list(HEADS.values()))[:3000]}\n---\n{chance.choice(list(BODIES.values()))[:500]}"
        )
        for _ in range(chance.randrange(1, 20)):
            text[chance.randrange(len(text))] = chance.choice("{}[]:&*!|>%@`'\"\n\t #-0x")
        yield "".join(text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "prompts"
    folder.mkdir()
    made(folder)
    return folder


def bounded() -> None:
    """In a child: no more memory than it should need, and no file that grows."""
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def test_a_list_of_hostile_prompts_is_a_line_for_each_and_the_good_ones_are_there(
    hostile: Path, tmp_path: Path
) -> None:
    names = ("CONFIG", "DATA", "CACHE_DIR", "MODELS")
    environ = os.environ | {f"KVCHAT_{name}": str(tmp_path / name.lower() / "x") for name in names}
    listed = subprocess.run(
        [sys.executable, "-P", "-m", "kvchat", "--trust-prompts", "prompts", "ls"],
        cwd=hostile.parent,
        env=environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=bounded,
    )
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = listed.stdout.splitlines()
    here = [line for line in lines if re.search(r"\shere(\s|$)", line)]
    assert len(here) + 1 == 252, "one of them has a name that nobody can say"
    assert any(line.startswith("good ") and line.endswith("A good one") for line in here)
    assert all(len(line) < 700 for line in here)
    assert not (hostile.parent / "hacked").exists()


def test_every_hostile_head_is_refused_in_one_line_or_harmless(hostile: Path) -> None:
    for name in HEADS:
        try:
            prompt = read_prompt(hostile / f"head-{name}.md", Shelf.HERE)
        except UsageError as error:
            assert "\n" not in error.message and len(error.message) < 600, name
        else:
            assert len(str(prompt)) < 50_000, name


@pytest.mark.parametrize("name", BODIES)
def test_every_hostile_body_is_refused_in_one_line_or_harmless(hostile: Path, name: str) -> None:
    prompt = read_prompt(hostile / f"body-{name}.md", Shelf.HERE)
    lint(prompt, Measure())
    try:
        prompt.render({}, NOW)
    except UsageError as error:
        assert "\n" not in error.message, name


def test_what_is_no_regular_file_is_never_opened_for_long(hostile: Path) -> None:
    special = (
        "pipe",
        "device-zero",
        "device-random",
        "folder",
        "nowhere",
        "itself",
        "sparse",
        "socket",
        "memory",
    )
    for name in special:
        with pytest.raises(UsageError, match="can't read the prompt"):
            read_prompt(hostile / f"{name}.md", Shelf.HERE)


def test_a_folder_that_cannot_be_listed_has_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("no folder")
    environ = {"KVCHAT_CONFIG": str(tmp_path / "config.toml")}
    prompts = Prompts.around(tmp_path, environ, is_trusted=lambda folder: True)
    assert {shelf for shelf, _ in prompts.paths().values()} == {Shelf.SHIPPED}
