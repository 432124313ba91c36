"""The page about the architecture names what exists, and no file is longer than a sitting. Reads sources, imports nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "kvchat" / "docs" / "architecture.md"
QUOTED = re.compile(r"`([^`\n]+)`")
NAMED_IN = re.compile(r"`([A-Za-z_][\w.]*)`\s\(`([\w/]+\.py)`\)")
PLACE = re.compile(r"[\w/]+(\.py|/)")
MOST_LINES = 300
PACKAGES = ("kvchat", "config.toml")
"""What is written like a name and is none."""
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")


def place(written: str) -> Path:
    """A path as the page writes it: below kvchat/, but for those of the tests."""
    return (ROOT if written.startswith("tests/") else ROOT / "kvchat") / written


@cache
def names(file: Path) -> frozenset[str]:
    """What a file defines: classes, functions and constants, and as Class.name what stands in a class."""
    return frozenset(_defined(ast.parse(file.read_text(encoding="utf-8")).body))


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from (node.name, *(f"{node.name}.{inner}" for inner in _defined(node.body)))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@cache
def everything() -> frozenset[str]:
    """What any file of the program or of its tests defines."""
    files = [file for room in ("kvchat", "tests") for file in (ROOT / room).rglob("*.py")]
    return frozenset(PACKAGES).union(*map(names, files))


def missing(page: str) -> list[str]:
    """What a page names and nobody finds: places, names, and names that are not where it says."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    quoted = set(QUOTED.findall(prose))
    places = {text for text in quoted if PLACE.fullmatch(text)}
    lost = [text for text in places if not place(text).exists()]
    lost += [text for text in quoted - places if NAME.fullmatch(text) and text not in everything()]
    lost += [
        f"{name} in {file}"
        for name, file in NAMED_IN.findall(prose)
        if place(file).is_file() and name not in names(place(file))
    ]
    return sorted(lost)


def test_every_file_class_and_function_on_the_page_exists() -> None:
    assert missing(PAGE.read_text(encoding="utf-8")) == []


def test_the_page_names_enough_to_be_worth_checking() -> None:
    assert len(NAMED_IN.findall(PAGE.read_text(encoding="utf-8"))) > 40


@pytest.mark.parametrize(
    ("page", "lost"),
    [
        ("See `engine/nowhere.py`.", ["engine/nowhere.py"]),
        ("See `nowhere/`.", ["nowhere/"]),
        ("`NoSuchClass` does it.", ["NoSuchClass"]),
        ("`Engine.no_such_verb` does it.", ["Engine.no_such_verb"]),
        ("`Engine.generate` (`engine/worker.py`)", ["Engine.generate in engine/worker.py"]),
        ("`Engine.generate`\n(`engine/engine.py`) and `LocalBackend`", []),
    ],
)
def test_what_does_not_exist_is_found(page: str, lost: list[str]) -> None:
    assert missing(page) == lost


def test_no_file_is_longer_than_a_sitting() -> None:
    lengths = {
        file: len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / "kvchat").rglob("*.py")
    }
    long = {str(file.relative_to(ROOT / "kvchat")) for file, length in lengths.items() if length > MOST_LINES}
    assert not long
