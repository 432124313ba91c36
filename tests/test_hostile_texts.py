"""The same sixty-four hostile texts on every way to a terminal: nothing of them gives it orders or hides there."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kvchat.backends.base import Event, Notice, Options, Text, Turn
from kvchat.cli import main
from kvchat.commands.chat import Backends
from kvchat.errors import KvchatError
from kvchat.models.sources.sources import imports_folder
from tests.hostile import ALL, HOSTILE, found_in
from tests.scripted import ScriptedBackend
from tests.tiny import tiny_folder

NAMES = [text.replace("/", "_") for text in HOSTILE]
"""The texts as names of files."""

Run = Callable[..., str]

BAR = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h\r\x1b\[1A\x1b\[2K", re.DOTALL)
"""What a progress bar leaves behind where no time passes."""


class Screen(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        self.written = io.BytesIO()
        super().__init__(self.written, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True


class HostileBackend(ScriptedBackend):
    """Says, thinks, warns or fails with what it is asked."""

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        text = history[-1].text
        yield Notice(text)
        if text.startswith("fail"):
            raise KvchatError(text, text)
        for event in super().answer(history, options):
            if isinstance(event, Text):
                yield from (Text(char, reasoning=True) for char in text)
            yield event


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs kvchat in a terminal in an empty folder; all that it printed there."""
    for name in ("MODELS", "CACHE_DIR", "DATA"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    monkeypatch.setenv("KVCHAT_CONFIG", str(tmp_path / "config" / "config.toml"))
    monkeypatch.setenv("KVCHAT_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*argv: str, scripted: bool = True) -> str:
        monkeypatch.setattr("sys.stdin", Path(os.devnull).open())  # noqa: SIM115
        screen = Screen()
        monkeypatch.setattr("sys.stdout", screen)
        monkeypatch.setattr("sys.stderr", screen)
        fake = Backends(lambda config: HostileBackend(), lambda config: HostileBackend())
        main(argv, backends=fake if scripted else None)
        assert sys.stdout is screen
        return screen.written.getvalue().decode()

    return run


@pytest.fixture(params=["at once", pytest.param("each", marks=pytest.mark.slow)])
def texts(request: pytest.FixtureRequest) -> list[str]:
    """All texts in one, or each for itself."""
    return [ALL] if request.param == "at once" else HOSTILE


def assert_clean(printed: str, *, coloured: bool = False) -> None:
    printed = BAR.sub("", printed)
    assert printed.strip()
    assert "Traceback" not in printed
    assert not found_in(printed, coloured=coloured), ascii(printed)


@pytest.mark.parametrize(
    "argv",
    [
        ("{}",),
        ("--{}",),
        ("--dtype", "{}"),
        ("--cache-ram", "{}"),
        ("--context", "{}", "-p", "x"),
        ("--threads", "{}", "-p", "x"),
        ("--turns", "no {}"),
        ("-s", "@no {}", "-p", "x"),
        ("-t", "no {}", "-p", "x"),
        ("-t", "commit", "--var", "{}=x", "-p", "x"),
        ("-r", "no {}", "-p", "x"),
        ("models", "path", "no {}"),
        ("models", "pull", "no {}"),
        ("models", "{}"),
        ("sessions", "show", "no {}"),
        ("sessions", "export", "--format", "{}"),
        ("prompts", "show", "no {}"),
        ("prompts", "new", "{}"),
        ("prompts", "rm", "no {}"),
        ("cache", "prune", "--to", "{}"),
        ("bench", "ttft", "--against", "{}"),
    ],
)
def test_what_stands_on_the_command_line(run: Run, texts: list[str], argv: tuple[str, ...]) -> None:
    for text in texts:
        given = [word.replace("{}", text) for word in argv]
        assert_clean(run(*given))
        assert_clean(run(*given, "--json"))


@pytest.mark.parametrize("flags", [(), ("--json",), ("--markdown", "always"), ("-v",), ("-q",)])
def test_what_a_model_says_thinks_and_fails_with(run: Run, texts: list[str], flags: tuple[str, ...]) -> None:
    for text in (f"fail {ALL}", *texts):
        assert_clean(run("-p", f"a{text}b", *flags), coloured=True)


def test_what_was_said_in_a_session(run: Run, texts: list[str]) -> None:
    for text in texts:
        run("-s", f"a{text}b", "-m", f"model{text}", "-p", f"quest {text}")
    for command in ("ls", "show", "search quest", "export", "export --format html", "export --format json"):
        assert_clean(run("sessions", *command.split()))
        assert_clean(run("sessions", *command.split()[:2], "--json"))
    assert_clean(run("-c", "-p", "on", scripted=False))  # the model is not there


def test_what_a_saved_prompt_says(run: Run, tmp_path: Path, texts: list[str]) -> None:
    shelf = tmp_path / "config" / "prompts"
    shelf.mkdir(parents=True)
    for number, (text, name) in enumerate(zip(HOSTILE, NAMES, strict=True)):
        quoted = json.dumps(text)
        (shelf / f"p{number}{name}.md").write_text(
            f"---\ndescription: {quoted}\nmodel: {quoted}\n---\n{text}"
        )
        (shelf / f"q{number}{name}.md").write_text(f"---\n{quoted}: 1\n---\n{text}")
        (shelf / f"r{number}{name}.md").write_text(f"---\nvars: [x]\n---\n{text}{{{{ nobody }}}}")
    for argv in (("ls",), ("show", "p3"), ("lint",), ("rm", "p"), ("path", f"p0{NAMES[0]}")):
        assert_clean(run("prompts", *argv))
        assert_clean(run("prompts", *argv, "--json"))
    for kind in "pqr":
        for number, name in enumerate(NAMES[: len(texts)]):
            assert_clean(run("prompts", "show", f"{kind}{number}{name}"))
            assert_clean(run("-t", f"{kind}{number}{name}", "-p", "x", scripted=False))


def test_what_a_settings_file_says(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    for number, (text, name) in enumerate(zip(texts, NAMES, strict=False)):
        quoted = json.dumps(text)
        file = tmp_path / f"c{number}{name}.toml"
        monkeypatch.setenv("KVCHAT_CONFIG", str(file))
        for content in (
            f"[chat]\nsystem = {quoted}",
            f"[chat]\n{quoted} = 1",
            f"{quoted} = 1",
            f"[ui]\nvi = {quoted}",
            text,
        ):
            file.write_text(content)
            assert_clean(run("config", "show"))
            assert_clean(run("config", "show", "--json"))
        assert_clean(run("config", "path"))
        assert_clean(run("config", "path", "--json"))


def test_what_lies_in_the_folders_of_models_and_of_the_cache(run: Run, tmp_path: Path) -> None:
    for number, (text, name) in enumerate(zip(HOSTILE, NAMES, strict=True)):
        (imports_folder(tmp_path / "MODELS") / f"m{number}{name}").mkdir(parents=True)
        folder = tmp_path / "CACHE_DIR" / f"kv{number}{name}"
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(
            json.dumps({"described": {"model": text, "dtype": text}, "codec": text})
        )
    for argv in (
        "models ls",
        "cache ls",
        "cache stat",
        "cache verify --no-recompute",
        "cache prune",
        "cache path",
    ):
        assert_clean(run(*argv.split()) + ".")
        assert_clean(run(*argv.split(), "--json") + ".")


BAR_ERASED = "\r\x1b[1A\x1b[2K"
"""What a bar writes last, which is shown where loading takes long, on a busy machine."""


@pytest.mark.parametrize("kind", ["template", "model_type", "tensor", "safetensors", "tokenizer", "name"])
def test_what_a_model_folder_says(run: Run, tmp_path: Path, tiny_path: Path, kind: str) -> None:
    folder = tiny_folder(tmp_path / (f"m{ALL[:60]}".replace("/", "_") if kind == "name" else "model"))
    config = json.loads((folder / "config.json").read_text())
    if kind == "template":
        (folder / "chat_template.jinja").write_text("{{ raise_exception(" + json.dumps(ALL) + ") }}")
    elif kind == "model_type":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": ALL}))
    elif kind == "tensor":
        header = json.dumps({ALL: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    elif kind == "safetensors":
        header = json.dumps({"x": {"dtype": ALL, "shape": [1], "data_offsets": [0, 4]}}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    elif kind == "tokenizer":
        (folder / "tokenizer.json").write_text(json.dumps({"version": ALL, "model": {"type": ALL}}))
    else:
        (folder / "config.json").unlink()
    for flags in ((), ("--json",), ("-v",)):
        printed = run("-m", str(folder), "-p", "x", *flags, scripted=False).rpartition(BAR_ERASED)[2]
        assert not found_in(printed), ascii(printed)
        assert printed
