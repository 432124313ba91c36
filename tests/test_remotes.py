"""Names of remotes' models, their settings, and their keys, which nothing shows or keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvchat.cli import main
from kvchat.config import load_config
from kvchat.errors import UsageError
from kvchat.remotes import RemoteConfig, Target, ad_hoc_name, api_key, target_of

WORK = {"work": RemoteConfig("http://host:8000/v1", model="m", headers={"X": "y"})}


def settings(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return {"KVCHAT_CONFIG": str(file)}


@pytest.mark.parametrize(
    ("name", "remote", "model"),
    [
        ("work:org/x:y", "work", "org/x:y"),
        ("work:", "work", "m"),
        ("work", "work", "m"),
        ("http://other/v1#a/b", "http://other/v1", "a/b"),
        ("http://other", "http://other", None),
    ],
)
def test_a_name_stands_for_a_model_of_a_remote(name: str, remote: str, model: str | None) -> None:
    target = target_of(name, WORK)
    assert target and (target.name, target.model) == (remote, model)


@pytest.mark.parametrize("name", ["smollm2-135m", "org/model", "./work:x", "a.gguf", "C:model"])
def test_other_names_are_local_models(name: str) -> None:
    assert target_of(name, {}) is None


def test_a_url_has_the_key_of_the_remote_at_that_server_alone() -> None:
    target = target_of(ad_hoc_name("http://HOST:8000/v1", "z"), WORK)
    assert target and target.remote.headers == {"X": "y"} and target.model == "z"
    for other in ("https://host:8000/v1", "http://host:8001/v1", "http://host.evil:8000/v1"):
        target = target_of(other, WORK)
        assert target and target.remote.headers == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[remote.a]\nmodel = 'x'\n", "has no url"),
        ("[remote.a]\nurl = 'ftp://x'\n", "is no URL"),
        ("[remote.a]\nurl = 'http://me:secret@x'\n", "password in the URL"),
        ("[remote.a]\nurl = 'http://x'\nurll = 'y'\n", "no setting is called 'urll'"),
        ("[remote.a]\nurl = 'http://x'\nserver = 'vlm'\n", "is not one of"),
        ("[remote.a]\nurl = 'http://x'\nheaders = 'y'\n", "no table"),
        ("[remote.a]\nurl = 'http://x'\nheaders = { 'a b' = 'y' }\n", "is no header"),
        ("[remote.a]\nurl = 'http://x'\napi_key_env = 'A'\napi_key_cmd = 'b'\n", "two keys"),
        ("[remote.'a b']\nurl = 'http://x'\n", "can't be called"),
        ("[remote]\nurl = 'http://x'\n", "is a section"),
        ("remote = 3\n", "is a section"),
    ],
)
def test_a_remote_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_config({}, settings(tmp_path, text))
    assert "secret" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_key_comes_from_the_environment_or_a_command() -> None:
    by_name = Target("a", RemoteConfig("http://x", api_key_env="MY_KEY"))
    assert api_key(by_name, {"MY_KEY": " k1 \n"}) == "k1"
    with pytest.raises(UsageError, match="MY_KEY, which should hold the key, is not set"):
        api_key(by_name, {})
    printed = Target("a", RemoteConfig("http://x", api_key_cmd=f"{sys.executable} -c \"print('k2')\""))
    assert api_key(printed) == "k2"
    failing = Target(
        "a", RemoteConfig("http://x", api_key_cmd=f"{sys.executable} -c \"exit('k3 is secret')\"")
    )
    with pytest.raises(UsageError, match="api_key_cmd gives no key: it ended with 1") as caught:
        api_key(failing)
    assert "k3" not in str(caught.value)
    with pytest.raises(UsageError, match="is no key"):
        api_key(by_name, {"MY_KEY": "two\nlines"})


def test_the_settings_that_are_shown_hide_what_may_be_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "[remote.a]\nurl = 'http://x'\napi_key_cmd = 'pass show k4'\ncache_salt = 'k5'\n"
        "headers = { Auth = 'k6' }\n"
    )
    for name, value in settings(tmp_path, text).items():
        monkeypatch.setenv(name, value)
    for flags in ([], ["--json"]):
        assert main(["config", "show", *flags]) == 0
        shown = capsys.readouterr().out
        assert "remote.a.url" in shown and "Auth" in shown
        assert not any(secret in shown for secret in ("k4", "k5", "k6"))


def test_the_terminal_over_a_remote_loads_no_torch_and_before_the_first_key_no_http(tmp_path: Path) -> None:
    """Until somebody waits for the server, what starts the dialogue loads the screen and nothing that is slow."""
    program = """
import sys
from kvchat.commands.starting import dialogue_backend
from kvchat.config import load_config
from kvchat.chat.session import Session
import kvchat.ui.repl
backend = dialogue_backend(load_config({"model.name": "http://127.0.0.1:9/v1#m"}))
session = Session(backend)
slow = {"torch", "transformers", "tokenizers", "numpy", "jinja2", "httpx2", "huggingface_hub"}
print(sorted(slow & set(sys.modules)))
try:
    list(session.send("hello"))
except Exception as error:
    print(error)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    environ = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60)
    before, said, after = result.stdout.splitlines()
    assert before == "[]", result.stderr
    assert said == "nobody answers at 127.0.0.1:9: start the server, or check its url"
    assert after == "[]"
