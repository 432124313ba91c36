"""The command line as a whole: streams, exit codes, what it loads. A model is scripted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kvchat
from kvchat.commands.flags import FLAGS

PUBLIC_NAMES = {
    "Answer",
    "Config",
    "ContextOverflowError",
    "EngineDiedError",
    "KvchatError",
    "LocalBackend",
    "ModelUnavailableError",
    "Options",
    "OutOfMemoryError",
    "Role",
    "Session",
    "Turn",
    "UsageError",
    "load_config",
    "open",
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "KVCHAT_SHARE" or not name.startswith("KVCHAT_")
    }
    folders = {f"KVCHAT_{name}": str(tmp_path / name) for name in ("MODELS", "CACHE_DIR", "DATA", "CONFIG")}
    return kept | folders


def ran(
    environ: dict[str, str], *argv: str, piped: str = "", module: str = "tests.scripted_cli"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *argv]
    return subprocess.run(command, input=piped, env=environ, capture_output=True, text=True, timeout=60)


def test_a_prompt_is_answered_on_stdout_alone(environ: dict[str, str]) -> None:
    result = ran(environ, "-p", "hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, "[1] you said: hello\n", "")


def test_piped_text_comes_first_and_invalid_bytes_are_marked(environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "tests.scripted_cli", "-p", "after"]
    result = subprocess.run(command, input=b"bef\xffore\n", env=environ, capture_output=True, timeout=60)
    assert result.stdout.decode() == "[1] you said: bef\ufffdore\n\nafter\n"


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ((), 2, "nothing to ask"),
        (("--max-tokens", "0", "-p", "x"), 2, "--max-tokens: 0 must be at least 1"),
        (("--max-tokens", "many", "-p", "x"), 2, "--max-tokens"),
        (("--prom=x",), 2, "--prom"),
        (("--turns", "x", "-p", "x"), 2, "--turns and -p"),
        (("--turns", "no-such-file"), 2, "no-such-file"),
        (("-s", "@no-such-file", "-p", "x"), 2, "'no-such-file': No such file or directory: check the path"),
        (("--cache-ram", "lots", "-p", "x"), 2, "'lots' is not a size"),
        (("config",), 2, "path, show, edit"),
        (("hello",), 2, "after -p"),
        (("-p", "fail"), 1, "it failed: try again"),
        (("-m", "nobody", "-p", "x"), 3, "no model is called 'nobody'"),
        (("-p", "overflow"), 4, "context of 8192"),
        (("-p", "oom"), 5, "out of memory"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    environ: dict[str, str], argv: tuple[str, ...], code: int, said: str
) -> None:
    result = ran(environ, *argv)
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("kvchat: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9"])
def test_a_name_that_is_no_text_is_refused(environ: dict[str, str], name: bytes) -> None:
    command = [sys.executable, "-m", "kvchat", "sessions", "show", name]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("kvchat: ")
    assert result.stderr.endswith("see kvchat sessions ls\n")
    assert result.stderr.isprintable() or result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("models ls >&-", 0, ""),
        ("-p hello <&- >&-", 0, ""),
        ("-p hello >&- 2>&-", 0, ""),
        ("hello <&- >&-", 2, "kvchat: there is no such command"),
        ("-p hello >/dev/full", 1, "kvchat: can't write the output: the disk is full: free some space\n"),
    ],
)
def test_streams_that_lead_nowhere_are_no_bug(
    environ: dict[str, str], line: str, code: int, said: str
) -> None:
    shell = f"{sys.executable} -m tests.scripted_cli {line}"
    result = subprocess.run(["bash", "-c", shell], env=environ, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == (code != 0)


def test_a_working_folder_that_was_deleted_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    shell = f"cd {tmp_path}; mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m kvchat prompts ls"
    result = subprocess.run(["bash", "-c", shell], env=environ, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "kvchat: the folder you are in was deleted: change to another one\n"


@pytest.mark.parametrize(
    ("argv", "kind", "code"), [(("-p", "overflow"), "ContextOverflowError", 4), ((), "UsageError", 2)]
)
def test_an_error_with_json_is_an_object_on_stderr(
    environ: dict[str, str], argv: tuple[str, ...], kind: str, code: int
) -> None:
    result = ran(environ, "--json", *argv)
    error = json.loads(result.stderr)["error"]
    assert (result.returncode, error["exit_code"], error["type"]) == (code, code, kind)
    assert error["message"]
    assert error["remedy"]


def test_a_bug_is_one_line_and_a_traceback_only_when_asked(environ: dict[str, str]) -> None:
    result = ran(environ, "-p", "say \\q\\xZZ")
    assert result.returncode == 1
    assert result.stderr.startswith("kvchat: internal error: UnicodeDecodeError")
    assert result.stderr.count("\n") == 1
    assert "Traceback" in ran(environ, "-v", "-p", "say \\q\\xZZ").stderr


def test_turns_are_read_from_a_file_or_from_stdin(environ: dict[str, str], tmp_path: Path) -> None:
    turns = tmp_path / "turns.txt"
    turns.write_text('one\n\n"two\\nlines"\n')
    expected = "[1] you said: one\n[3] you said: two\nlines\n"
    assert ran(environ, "--turns", str(turns)).stdout == expected
    assert ran(environ, "--turns", "-", piped=turns.read_text()).stdout == expected


def test_turns_on_a_pipe_are_answered_as_they_come(environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "tests.scripted_cli", "--turns", "-", "--json"]
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        for n, message in enumerate(("one", "two")):
            child.stdin.write(message + "\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["response"] == f"[{1 + 2 * n}] you said: {message}"
        child.stdin.close()
        assert child.wait(20) == 0


def test_the_system_prompt_can_stand_in_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    prompt = tmp_path / "system.md"
    prompt.write_text("be brief\n")
    assert ran(environ, "-s", f"@{prompt}", "-p", "hi").stdout == "[2] you said: hi\n"


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_answer_and_the_exit_code_says_so(
    environ: dict[str, str], signum: int, code: int
) -> None:
    command = [sys.executable, "-m", "tests.scripted_cli", "-p", "slow 500"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        assert child.stdout
        first = os.read(child.stdout.fileno(), 100)
        time.sleep(0.1)
        child.send_signal(signum)
        rest = child.stdout.read()
        assert child.wait(20) == code
    assert first.startswith(b"word0")
    assert b"word400" not in rest


def test_a_signal_while_the_model_loads_ends_at_once(environ: dict[str, str], tmp_path: Path) -> None:
    mark = tmp_path / "waiting"
    command = [sys.executable, "-m", "tests.scripted_cli", "-p", "hello"]
    slow = environ | {"KVCHAT_TEST_LOAD_S": "100", "KVCHAT_TEST_WAITING": str(mark)}
    with subprocess.Popen(
        command, env=slow, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        while not mark.exists():
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=50)
        assert (child.returncode, out, err) == (130, b"", b"")


def test_a_reader_that_leaves_ends_the_program_quietly(environ: dict[str, str]) -> None:
    shell = f"{sys.executable} -m tests.scripted_cli -p 'lines 3000' | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", shell], env=environ, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (141, "line number 0\n", "")


def test_help_names_every_flag_and_every_exit_code(environ: dict[str, str]) -> None:
    shown = ran(environ, "--help").stdout
    for flags in FLAGS.values():
        for flag in flags:
            for name in flag.names.split():
                assert re.search(rf"^  (.*, )?{name}\b", shown, re.MULTILINE), name
    for code in (
        "1 failure",
        "2 wrong",
        "3 model",
        "4 context",
        "5 out of memory",
        "130 inter",
        "141 output",
    ):
        assert code in shown


def test_importing_kvchat_loads_neither_torch_nor_a_ui() -> None:
    program = "import sys, kvchat; kvchat.Session, kvchat.Options; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    loaded = set(result.stdout.split())
    assert "kvchat.chat.session" in loaded
    assert not {"torch", "transformers", "prompt_toolkit", "rich"} & loaded


def test_the_public_names_are_pinned() -> None:
    assert set(kvchat.__all__) == PUBLIC_NAMES
    assert set(dir(kvchat)) == PUBLIC_NAMES | {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES - {"LocalBackend"}))
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(kvchat, name).__doc__


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(kvchat.UsageError, match="did you mean 'temperature'"):
        kvchat.open("smollm2-135m", temperatur=0)
