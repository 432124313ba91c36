"""`kvchat help [TOPIC]`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pexpect
import pytest

from kvchat.cli import main
from kvchat.commands.help import summary, topics

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs kvchat with a settings file that can't be read, which help must not mind; (exit code, stdout, stderr)."""
    broken = tmp_path / "config.toml"
    broken.write_text("[[[")
    monkeypatch.setenv("KVCHAT_CONFIG", str(broken))

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_without_a_topic_each_page_is_listed_in_a_line(run: Run) -> None:
    code, out, err = run("help")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == sorted(topics())


@pytest.mark.parametrize("topic", sorted(topics()))
def test_every_page_has_a_heading_and_a_sentence_that_fits_into_the_list(run: Run, topic: str) -> None:
    page = topics()[topic]
    assert page.startswith("# ") and 10 < len(summary(page)) < 160
    assert run("help", topic) == (0, page.rstrip("\n") + "\n", "")


def test_an_unknown_topic_is_refused_with_the_nearest(run: Run) -> None:
    code, out, err = run("help", "exactnes")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "exactness" in err


def test_a_command_is_referred_to_its_own_help(run: Run) -> None:
    code, _, err = run("help", "sessions")
    assert code == 2 and "kvchat sessions --help" in err


def test_a_page_can_be_had_as_json(run: Run) -> None:
    assert json.loads(run("help", "library", "--json")[1])["text"].startswith("# As a library")
    assert {json.loads(line)["topic"] for line in run("help", "--json")[1].splitlines()} == set(topics())


def test_links_between_pages_and_from_the_readme_lead_somewhere() -> None:
    folder = Path(str(files("kvchat").joinpath("docs")))
    pages = [ROOT / "README.md", *folder.glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_the_readme_has_a_row_for_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8").partition("## Read on")[2]))
    assert {f"kvchat/docs/{topic}.md" for topic in topics()} <= linked


def test_a_long_page_goes_through_the_pager_and_without_one_to_the_screen(tmp_path: Path) -> None:
    kept = tmp_path / "shown"
    pager = tmp_path / "pager.sh"
    pager.write_text(f"#!/bin/sh\ncat > {kept}\n")
    pager.chmod(0o755)
    environ = dict(os.environ) | {"KVCHAT_CONFIG": str(tmp_path / "none.toml"), "TERM": "xterm-256color"}
    for command, is_paged in ((str(pager), True), ("no-such-pager", False)):
        kept.unlink(missing_ok=True)
        screen = pexpect.run(
            f"{sys.executable} -m kvchat help security",
            env=environ | {"PAGER": command},
            timeout=60,
            encoding="utf-8",
        )
        assert kept.exists() is is_paged
        assert "Traceback" not in screen
        assert "Security" in (kept.read_text() if is_paged else screen)
