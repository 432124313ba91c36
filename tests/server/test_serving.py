"""The server as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from kvchat.cli import main


@contextmanager
def started(model: Path, folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`kvchat serve` in a process of its own, and where it listens."""
    names = {"MODELS": "models", "CACHE_DIR": "kv", "DATA": "data", "CONFIG": "none.toml"}
    environ = os.environ | {f"KVCHAT_{name}": str(folder / file) for name, file in names.items()}
    command = [sys.executable, "-m", "kvchat", "serve", "-m", str(model), "--port", "0", "--json", *flags]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()


def asked(url: str, text: str, key: str = "") -> dict[str, object]:
    body = json.dumps(
        {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    ).encode()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urlopen(Request(f"{url}/v1/chat/completions", body, headers), timeout=120) as reply:
        said: dict[str, object] = json.load(reply)
    return said


def engine_of(process: subprocess.Popen[str]) -> int:
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    (child,) = (int(number) for thread in threads for number in thread.read_text().split())
    return child


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the engine in /proc")
def test_it_serves_survives_its_engine_and_ends_with_a_signal_leaving_nothing(
    tiny_path: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("a-key-of-some-length\n")
    with started(tiny_path, tmp_path, "--api-key-file", str(key), "--temperature", "0") as (process, url):
        with pytest.raises(HTTPError, match="401"):
            asked(url, "hello")
        first = asked(url, "hello", "a-key-of-some-length")
        os.kill(engine_of(process), signal.SIGKILL)
        time.sleep(0.2)
        again = asked(url, "hello", "a-key-of-some-length")
        assert again["choices"] == first["choices"] and again["model"] == "tiny"
        engine = engine_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not Path(f"/proc/{engine}").exists() or "Z" in Path(f"/proc/{engine}/stat").read_text().split()[2]
    assert not list((tmp_path / "kv").rglob("*.kv*")) and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "others than this machine could ask"),
        (["--api-key", "short"], "this is no key"),
        (["--api-key-file", "/nowhere"], "can't read the key"),
        (["--api-key", "long enough", "--api-key-file", "/x"], "two keys"),
        (["--port", "99999999"], "can't listen"),
        (["-m", "http://localhost:1"], "has a server already"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *flags]) == 2
    assert message in capsys.readouterr().err
