"""What each command loads: listings, help and completion stay light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvchat

HEAVY = {"torch", "transformers", "tokenizers", "prompt_toolkit", "rich", "huggingface_hub"}

LIGHT = (
    "--help",
    "--version",
    "models ls",
    "cache ls",
    "cache stat",
    "cache path",
    "cache prune",
    "cache clear",
    "cache verify --no-recompute",
    "cache --help",
    "config path",
    "config show",
    "completion bash",
    "completion zsh",
    "completion fish",
    "doctor --help",
    "sessions ls",
    "sessions search x",
    "prompts ls",
)


READS_KV = {line for line in LIGHT if line.startswith("cache ")} - {"cache --help"} | {"sessions ls"}
"""What knows the files of stored KV, and so numpy."""


@pytest.mark.parametrize("line", LIGHT)
def test_what_needs_no_model_and_no_screen_loads_none(tmp_path: Path, line: str) -> None:
    heavy = HEAVY if line in READS_KV else HEAVY | {"numpy"}
    program = (
        "import sys, atexit, kvchat.cli\n"
        f"atexit.register(lambda: print('heavy:', {heavy!r} & set(sys.modules), file=sys.stderr))\n"
        f"sys.exit(kvchat.cli.main({line.split()!r}))"
    )
    folders = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "heavy: set()\n")
    assert result.stdout or line.split()[0] in ("cache", "sessions", "prompts")


def test_the_light_commands_are_told_from_the_heavy(tmp_path: Path) -> None:
    program = "import sys, kvchat.backends.local; sys.exit(not {'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def imported_by(path: Path) -> set[str]:
    """The modules of kvchat that a file names, wherever in it: also those that it needs for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import one another, in as few steps as may be, each circle once."""
    left = dict(imports)
    while ends := [name for name, needs in left.items() if not needs & left.keys() - {name}]:
        for name in ends:
            del left[name]
    reached: dict[str, set[str]] = {name: needs & left.keys() for name, needs in left.items()}
    for middle in left:
        for needs in reached.values():
            if middle in needs:
                needs |= reached[middle]
    groups = {frozenset(n for n in needs if name in reached[n]) for name, needs in reached.items()}
    return sorted(sorted(group) for group in groups if group)


def test_no_two_files_import_one_another() -> None:
    root = Path(kvchat.__file__).parent
    files = {
        ".".join(("kvchat", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    imports = {name: imported_by(path) & files.keys() - packages for name, path in files.items()}
    assert circles(imports) == []


def test_a_circle_is_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}, "g": set()}
    assert circles(imports) == [["a", "b", "c"], ["e", "f"]]
