"""A repository's prompts and a model's code from the command line: asked once, or refused in one line with the flag."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Event, ModelInfo, Options, Turn
from kvchat.backends.loading import trusting_settings
from kvchat.cli import main
from kvchat.commands.chat import Backends
from kvchat.commands.surroundings import surroundings_of
from kvchat.config import Config, ModelConfig
from kvchat.errors import UntrustedCodeError
from kvchat.models.loader import load_model
from tests.commands import test_sessions
from tests.commands.test_sessions import Run, rows
from tests.scripted import ScriptedBackend

run = test_sessions.run

THEIRS = "---\nmodel: theirs\noptions: {max_tokens: 1}\n---\nYou are theirs."


@pytest.fixture
def prompts(run: Run, tmp_path: Path) -> Path:
    """A repository's folder of prompts: one that hides a shipped one, and one of its own."""
    folder = tmp_path / "work" / "prompts"
    folder.mkdir()
    for name in ("explain", "theirs"):
        (folder / f"{name}.md").write_text(THEIRS)
    return folder


def system_of(run: Run) -> str:
    return str(json.loads(run("sessions", "show", "--json")[1])["messages"][0]["content"])


def answered(monkeypatch: pytest.MonkeyPatch, answer: str) -> list[str]:
    """Somebody who can be asked and answers so; the questions."""
    asked: list[str] = []
    monkeypatch.setattr("kvchat.commands.trusting.can_ask", lambda: True)

    def agrees(question: str) -> bool | None:
        asked.append(question)
        return {"y": True, "n": False}.get(answer)

    monkeypatch.setattr("kvchat.commands.trusting.agrees", agrees)
    return asked


def test_a_repositorys_prompt_is_refused_in_one_line_that_names_the_flag(run: Run, prompts: Path) -> None:
    code, out, err = run("-t", "theirs", "-p", "hello")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(prompts) in err and "--trust-prompts" in err
    assert run("-t", "theirs", "--trust-prompts", "-p", "hello")[0] == 0
    assert system_of(run) == "You are theirs."
    assert run("-t", "theirs", "-p", "hello")[0] == 2, "the flag is for one run"


def test_a_repositorys_prompt_hides_no_other(run: Run, prompts: Path) -> None:
    code, _, err = run("-t", "explain", "-p", "hello")
    assert code == 0 and "theirs" not in system_of(run)
    assert "(shipped)" in err and f"{prompts}/explain.md is not trusted" in err
    run("-t", "explain", "--trust-prompts", "-p", "hello")
    assert system_of(run) == "You are theirs."


@pytest.mark.parametrize("name", ["./prompts/explain.md", "prompts/../prompts/explain.md", "link.md"])
def test_of_a_prompt_that_is_given_by_its_path_it_is_not_said_that_it_is_not_used(
    run: Run, prompts: Path, name: str
) -> None:
    (prompts.parent / "link.md").symlink_to(prompts / "explain.md")
    code, _, err = run("-t", name, "-p", "hello")
    assert code == 0 and system_of(run) == "You are theirs."
    assert "(here)" in err and "not trusted" not in err


def test_beside_a_prompt_that_is_given_by_its_path_another_of_its_name_is_named(
    run: Run, prompts: Path
) -> None:
    shutil.copy(prompts / "theirs.md", prompts.parent / "explain.md")
    _, _, err = run("-t", "./explain.md", "-p", "hello")
    assert f"{prompts}/explain.md is not trusted" in err


def test_where_a_prompt_comes_from_and_what_it_sets_is_said(run: Run, prompts: Path) -> None:
    _, out, err = run("-t", "theirs", "--trust-prompts", "-p", "slow 3")
    assert out == "word0 \n"
    assert err == (
        f"kvchat: the prompt theirs is {prompts}/theirs.md (here); it sets model theirs, max_tokens 1\n"
        "kvchat: stopped at 1 tokens, the limit of the prompt theirs\n"
    )
    assert run("-q", "-t", "theirs", "--trust-prompts", "-p", "hello")[2] == ""
    assert run("--json", "-t", "theirs", "--trust-prompts", "-p", "hello")[2] == ""


def test_trust_is_asked_once_and_remembered(
    run: Run,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answered(monkeypatch, "y")
    for _ in range(2):
        assert run("-t", "theirs", "-p", "hello")[0] == 0 and system_of(run) == "You are theirs."
    (question,) = asked
    assert str(prompts) in question


def test_a_no_is_remembered_too_and_neither_is_asked_again(
    run: Run,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answered(monkeypatch, "")
    assert run("-t", "theirs", "-p", "hello")[0] == 2
    asked = answered(monkeypatch, "n")
    assert [run("-t", "theirs", "-p", "hello")[0] for _ in range(2)] == [2, 2]
    assert len(asked) == 1
    assert run("prompts", "trust")[0] == 0 and run("-t", "theirs", "-p", "hello")[0] == 0
    assert run("prompts", "trust", "--no")[0] == 0 and run("-t", "theirs", "-p", "hello")[0] == 2


def test_where_nothing_is_saved_no_trust_is_remembered(
    run: Run,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered(monkeypatch, "y")
    assert run("--no-save", "-t", "theirs", "-p", "hello")[0] == 0
    assert not (tmp_path / "DATA").exists()


def test_a_list_names_what_is_not_trusted_without_reading_it(run: Run, prompts: Path) -> None:
    os.mkfifo(prompts / "pipe.md")
    listed = {row["name"]: row for row in rows(run, "prompts", "ls")}
    assert listed["explain"]["shelf"] == "shipped" and listed["explain"]["error"] is None
    for name in ("theirs", "pipe"):
        assert listed[name]["shelf"] == "here" and "--trust-prompts" in listed[name]["error"]
    listed = {row["name"]: row for row in rows(run, "prompts", "ls", "--trust-prompts")}
    assert listed["theirs"]["error"] is None and listed["explain"]["shelf"] == "here"
    for verb in ("show", "edit", "path", "lint"):
        assert run("prompts", verb, "theirs")[0] == 2


def test_there_is_nothing_to_trust_where_no_prompts_lie(run: Run) -> None:
    assert run("prompts", "trust")[0] == 2


def test_trust_in_code_is_not_for_the_model_that_a_prompt_names(
    run: Run, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    seen: list[tuple[str, bool]] = []

    def backend(config: Config) -> ScriptedBackend:
        seen.append((config.model.name, config.model.trust_remote_code))
        return ScriptedBackend()

    asked = ["--trust-prompts", "--trust-remote-code", "-t", "theirs", "-p", "hello"]
    for argv in (asked, ["-m", "mine", *asked]):
        assert main(argv, backends=Backends(backend, backend)) == 0
    assert seen == [("theirs", False), ("mine", True)]


def test_the_models_that_are_changed_to_are_not_trusted_with_the_first(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(**{"model.trust_remote_code": True, "model.name": "mine"})
    opened: list[tuple[str, bool]] = []

    def open_backend(config: Config) -> None:
        opened.append((config.model.name, config.model.trust_remote_code))

    surroundings = surroundings_of(config, open_backend)  # type: ignore[arg-type]
    for name in ("theirs", "mine"):
        surroundings.open_model(name)
    assert opened == [("theirs", False), ("mine", True)]


# Code that comes with a model


def test_trust_from_the_environment_is_not_for_a_session_with_another_model(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []

    class Named(ScriptedBackend):
        def info(self) -> ModelInfo:
            return replace(super().info(), name="theirs")

    def backend(config: Config) -> Named:
        seen.append((config.model.name, config.model.trust_remote_code))
        return Named()

    monkeypatch.setattr("sys.stdin", None)
    backends = Backends(backend, backend)
    assert main(["-m", "theirs", "-p", "hello"], backends=backends) == 0
    monkeypatch.setenv("KVCHAT_MODEL", "mine")
    monkeypatch.setenv("KVCHAT_MODEL_TRUST_REMOTE_CODE", "1")
    assert main(["-c", "-p", "hello"], backends=backends) == 0
    assert main(["-c", "--trust-remote-code", "-p", "hello"], backends=backends) == 0
    assert main(["-p", "hello"], backends=backends) == 0
    assert seen == [("theirs", False), ("theirs", False), ("theirs", True), ("mine", True)]


class Wary(ScriptedBackend):
    """Answers once the user trusts the code of its model."""

    def __init__(self, config: Config, folder: Path) -> None:
        super().__init__()
        self.is_trusted = trusting_settings(config, folder).trust_remote_code

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        if not self.is_trusted:
            raise UntrustedCodeError("it needs code of its own", "give -m NAME --trust-remote-code")
        return super().answer(history, options)


def ask_wary(model: Path, *argv: str) -> int:
    def backend(config: Config) -> Wary:
        return Wary(config, model)

    return main([*argv, "-m", str(model), "-p", "hello"], backends=Backends(backend, backend))


@pytest.fixture
def silent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `run` has it, with nothing piped in."""
    monkeypatch.setattr("sys.stdin", None)


def test_code_is_asked_about_once_and_remembered_by_folder(
    silent: None, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_wary(tiny_path) == 3, "nobody can be asked"
    assert ask_wary(tiny_path, "--trust-remote-code") == 0
    assert ask_wary(tiny_path) == 3, "the flag is for one run"
    asked = answered(monkeypatch, "y")
    assert [ask_wary(tiny_path) for _ in range(2)] == [0, 0] and len(asked) == 1
    assert str(tiny_path) in asked[0]
    copy = shutil.copytree(tiny_path, tmp_path / "copy")
    answered(monkeypatch, "")
    assert ask_wary(copy) == 3, "another folder is another model"


def test_a_no_to_code_is_remembered(silent: None, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch, "n")
    assert [ask_wary(tiny_path) for _ in range(2)] == [3, 3] and len(asked) == 1


def test_code_is_trusted_for_this_run_where_nothing_is_saved(
    silent: None, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, "y")
    assert ask_wary(tiny_path, "--no-save") == 0
    assert not (tmp_path / "DATA").exists()


@pytest.mark.parametrize("maps_config", [True, False])
def test_a_model_that_needs_code_is_refused_by_name_and_nothing_of_it_runs(
    tiny_path: Path, tmp_path: Path, maps_config: bool
) -> None:
    folder = shutil.copytree(tiny_path, tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoModelForCausalLM": "theirs.Model"} | (
        {"AutoConfig": "theirs.Config"} if maps_config else {}
    )
    kind = "theirs" if maps_config else "vit"  # one that transformers knows, and knows no text generator for
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind, "auto_map": mapped}))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UntrustedCodeError, match=rf"give -m {folder} --trust-remote-code"):
        load_model(folder, ModelConfig(name=str(folder)))
    assert not (tmp_path / "ran").exists()
