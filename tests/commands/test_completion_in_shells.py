"""Names that others gave, completed in the real shells: none is ever evaluated, and each arrives as it is.

Debian has all three: apt-get install bash zsh fish.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from kvchat.chat.session import Session
from kvchat.chat.store import FILE_NAME, Store
from kvchat.models.sources.sources import imports_folder
from tests.scripted import ScriptedBackend

NAMES = [
    "$(touch${IFS}HIT).md", "$(touch HIT)", "`touch HIT`", ";touch HIT;", "a;touch HIT", "&touch HIT&", "|touch HIT", "<(touch HIT)",
    ">HIT", "it's $(touch HIT)", "'$(touch HIT)'", '"$(touch HIT)"', '"; touch HIT; "', "'; touch HIT; '", "\\$(touch HIT)", "\\",
    "a b  c", "*", "?[a-z]", "{a,b}", "~root", "!!", "!x", "#x", "$HOME", "${HOME}", "$'x'", "(x)", "x=y", "a:b", "é日本", "=ls", "^x", "%1",
]  # fmt: skip
QUOTED = ["'", '"']
ROWS, COLUMNS = 40, 400
START_S = 60.0
ASKED_S = 1.0
"""How long a call may take to come; behind an open quote none comes."""

STUB = """#!{python}
import json, os, sys
if sys.argv[1:2] == ["completion"]:
    sys.stdout.write(open(os.environ["NAMES"], encoding="utf-8").read())
else:
    with open(os.environ["ASKED"] + ".new", "w") as file:
        json.dump(sys.argv[1:], file)
    os.rename(os.environ["ASKED"] + ".new", os.environ["ASKED"])
"""
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "--interactive"],
}
SET_UP = {
    "bash": "source {script}; bind 'set completion-ignore-case off'; cd {work}; echo re''ady",
    "zsh": "autoload -Uz compinit; compinit -D -u; source {script}; cd {work}; echo re''ady",
    "fish": "source {script}; cd {work}; echo re''ady",
}


@dataclass
class Shell:
    """A shell in which `kvchat` lists the names it is told and notes what it is asked."""

    name: str
    folder: Path
    child: pexpect.spawn

    def completed(self, words: str, names: list[str]) -> list[str] | None:
        """What kvchat is called with after `words`, Tab and Enter; None if it was not called."""
        (self.folder / "names").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        asked = self.folder / "asked"
        asked.unlink(missing_ok=True)
        self.child.send(f"kvchat {words}\t")
        self.settle()
        self.child.send("\r")
        deadline = time.monotonic() + ASKED_S
        while not asked.exists() and time.monotonic() < deadline:
            self.settle(0.02)
        self.settle()
        return list(json.loads(asked.read_text(encoding="utf-8"))) if asked.exists() else None

    def settle(self, quiet_s: float = 0.15) -> str:
        """Read until the shell is quiet; what it wrote."""
        said = ""
        try:
            while True:
                said += self.child.read_nonblocking(65536, timeout=quiet_s)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return said

    def give_up(self) -> None:
        """Leave the line as it is."""
        self.child.send("\x03")
        self.settle()

    @property
    def is_hit(self) -> bool:
        """Whether anything was evaluated."""
        return any(self.folder.rglob("HIT*"))


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"no {name}; Debian has it: apt-get install {name}")
    folder = tmp_path_factory.mktemp(name)
    (folder / "work").mkdir()
    (folder / "bin").mkdir()
    script = folder / "script"
    command = [sys.executable, "-m", "kvchat", "completion", name]
    script.write_bytes(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    stub = folder / "bin" / "kvchat"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    own = {"NAMES": str(folder / "names"), "ASKED": str(folder / "asked"), "HOME": str(folder)}
    environ = (
        os.environ
        | own
        | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    )
    child = pexpect.spawn(
        START[name][0],
        START[name][1:],
        env=environ,
        encoding="utf-8",
        codec_errors="replace",
        dimensions=(ROWS, COLUMNS),
    )
    child.delaybeforesend = None
    it = Shell(name, folder, child)
    it.settle(1.0)
    child.send(SET_UP[name].format(script=script, work=folder / "work") + "\r")
    child.expect_exact("ready", timeout=START_S)
    it.settle()
    yield it
    child.close(force=True)


@pytest.mark.parametrize(
    "name", [*NAMES[:6], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[6:])], ids=ascii
)
@pytest.mark.parametrize(
    "flag", ["-t", pytest.param("-r", marks=pytest.mark.slow), pytest.param("-m", marks=pytest.mark.slow)]
)
def test_a_name_arrives_as_it_is_and_nothing_is_evaluated(shell: Shell, flag: str, name: str) -> None:
    asked = shell.completed(f"{flag} ", [name])
    assert not shell.is_hit
    if shell.name == "fish" and name.startswith("~"):
        assert asked == [flag]  # not offered: fish quotes no tilde
    else:
        assert asked == [flag, name]


@pytest.mark.parametrize("quote", QUOTED)
def test_behind_an_open_quote_nothing_is_evaluated_either(shell: Shell, quote: str) -> None:
    for name in (NAMES[0], NAMES[10], NAMES[11], "plain"):
        asked = shell.completed(f"-t {quote}", [name])
        assert not shell.is_hit, name
        assert asked in (["-t", name], None)
        shell.give_up()


def test_of_many_names_none_is_evaluated_while_they_are_listed(shell: Shell) -> None:
    for words in ("-t ", "-t $", "-t '", "sessions show "):
        shell.completed(words, NAMES)
        shell.give_up()
        assert not shell.is_hit, words


@pytest.mark.parametrize("flag", ["--turns", "-m"])
def test_a_file_arrives_as_it_is(shell: Shell, flag: str) -> None:
    work = shell.folder / "work"
    for name in ("a b", NAMES[0], NAMES[1], NAMES[9]):
        (work / name).write_text("")
        asked = shell.completed(f"{flag} ./", [])
        (work / name).unlink()
        assert not shell.is_hit, name
        assert asked == [flag, f"./{name}"]


def test_the_names_of_a_group_are_listed_but_for_those_that_no_line_can_show(tmp_path: Path) -> None:
    shelf = tmp_path / "config" / "prompts"
    shelf.mkdir(parents=True)
    for name in (*NAMES, "two\nlines", "esc\x1b[2J", "\u202ebidi"):
        (shelf / f"{name}.md").write_text("x")
        (imports_folder(tmp_path / "MODELS") / name).mkdir(parents=True)
    (tmp_path / "DATA").mkdir()
    for name in (*NAMES, "of two lines"):
        session = Session(ScriptedBackend(), store=Store(tmp_path / "DATA" / FILE_NAME))
        session.ask("x")
        session.rename(name)
        session.close()
    with closing(
        sqlite3.connect(tmp_path / "DATA" / FILE_NAME, isolation_level=None)
    ) as db:  # by an earlier version
        db.execute("UPDATE session SET name = ? WHERE name = ?", ("two\nlines", "of two lines"))
    own = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA")}
    environ = os.environ | own | {"KVCHAT_CONFIG": str(tmp_path / "config" / "config.toml")}
    for group in ("prompts", "sessions", "models"):
        command = [sys.executable, "-m", "kvchat", "completion", "names", group]
        listed = subprocess.run(
            command, capture_output=True, check=True, env=environ, cwd=tmp_path, timeout=60
        )
        lines = listed.stdout.decode().splitlines()
        assert set(NAMES) <= set(lines)
        assert all(line.isprintable() for line in lines)
