"""A hundred settings files that nobody should write: each ends in one line and an exit code."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from kvchat.cli import main
from kvchat.config import SECTIONS, load_config
from kvchat.errors import UsageError

SETTINGS = [(section, item.name) for section, cls in SECTIONS.items() for item in fields(cls)]
VALUES = [
    "1", "-1", "0", "1.5", "-0.0", "nan", "inf", "1e400", "-1e-400", "9" * 400, "9" * 5000, "0x" + "f" * 9000, "true", '""',
    '"x"', '"\\u0000"', '"a\\u0000b"', '"\\u001b[2J"', '"~nobody/x"', '"~"', '"' + "x" * 100_000 + '"', '"' + "9" * 500 + '"', "[]",
    "[[[[]]]]", "[1, 2]", '["a", 1]', "{}", "{a = {b = 1}}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", '"\\uD7FF"', "[" * 90 + "]" * 90,
]  # fmt: skip
TEXTS: list[bytes] = [
    b"", b"\xff\xfe", b"\xef\xbb\xbf[ui]\nvi = true\n", b"[ui]\nvi = \xff", b"\0" * 100, b"[", b"[]", b"[[ui]]", b"=", b"a", b"a = ", b"[ui\n",
    b"a = " + b"[" * 50_000, b"a = " + b"{a=" * 10_000, b"[" * 10_000, b"a." * 60_000 + b"a = 1", b"[" + b"a." * 60_000 + b"a]",
    b"a" * 200_000 + b" = 1", b"[ui]\n" + b"x" * 200_000 + b" = 1", b" " * 200_000 + b"= 1", b"x" * 300_000, b"[a]\n" * 2, b"[ui]\nvi = 1\nvi = 2",
    b"[ui]\nvi = 1\n[ui.vi]\na = 1", b"ui = 1", b"ui = []", b"[model.name]\nx = 1", b"[ui]\r\nvi = true\r\n", "[\u202eui]\n".encode(),
    b"chat.system = '''" + b"x = [\n" * 20_000 + b"'''", b"#" * 200_000, b'"\\u0000" = 1', b"[\"\\u001b[2J\"]\nx = 1", b"1 = 1", b"[paths]\ncache = '/dev/null/x'",
]  # fmt: skip

Spoil = Callable[[Path], None]


def spoilt_by_kind() -> list[Spoil]:
    """What may stand in a file's place."""
    return [
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/dev/urandom"),
        lambda path: path.symlink_to("/dev/full"),
        lambda path: path.symlink_to("/dev/tty"),
        lambda path: path.symlink_to("/dev/null"),
        lambda path: path.symlink_to("/proc/self/mem"),
        lambda path: path.symlink_to("/"),
    ]


def spoilt_by_value(count: int) -> list[Spoil]:
    """Values of other kinds for settings that there are."""
    choice = random.Random(7)

    def written(section: str, name: str, value: str) -> Spoil:
        return lambda path: path.write_text(f"[{section}]\n{name} = {value}\n", encoding="utf-8") and None

    return [written(*choice.choice(SETTINGS), choice.choice(VALUES)) for _ in range(count)]


def spoilt_by_text() -> list[Spoil]:
    """Files that are no TOML, or another one."""
    return [lambda path, text=text: path.write_bytes(text) and None for text in TEXTS]  # type: ignore[misc]


def spoilt(num_values: int) -> list[Spoil]:
    return [*spoilt_by_kind(), *spoilt_by_text(), *spoilt_by_value(num_values)]


@pytest.mark.parametrize("num_values", [100 - 11 - len(TEXTS), pytest.param(2000, marks=pytest.mark.slow)])
def test_a_hundred_spoilt_files_give_one_line_and_an_exit_code_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], num_values: int
) -> None:
    for name in ("MODELS", "CACHE_DIR", "DATA"):
        monkeypatch.setenv(f"KVCHAT_{name}", str(tmp_path / name))
    cases = spoilt(num_values)
    assert len(cases) >= 100
    for number, spoil in enumerate(cases):
        path = tmp_path / f"{number}.toml"
        spoil(path)
        monkeypatch.setenv("KVCHAT_CONFIG", str(path))
        code = main(["config", "show"])
        said = capsys.readouterr()
        assert code in (0, 2), (number, said.err)
        assert said.err.count("\n") == (code != 0), (number, said.err)
        assert len(said.err) < 2100
        if code:
            assert said.out == ""
            assert said.err.startswith("kvchat: ")
            assert "internal error" not in said.err
            assert said.err.strip().isprintable()


@pytest.mark.parametrize(
    ("name", "said"),
    [("~nobody-of-that-name/x", "begins with a user that does not exist"), ("x" * 5000, "too long")],
)
def test_a_name_that_can_be_no_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    monkeypatch.setenv("KVCHAT_CONFIG", name)
    assert main(["config", "show"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("key", SETTINGS, ids=".".join)
def test_a_value_of_every_other_kind_is_refused_by_every_setting_in_one_line(
    tmp_path: Path, key: tuple[str, str]
) -> None:
    section, name = key
    for value in ("{a = 1}", "[[1]]", "1979-05-27", "[" * 90 + "]" * 90, '"\\u0000"'):
        (tmp_path / "config.toml").write_text(f"[{section}]\n{name} = {value}\n")
        with pytest.raises(UsageError) as caught:
            load_config({}, {"KVCHAT_CONFIG": str(tmp_path / "config.toml")})
        assert len(str(caught.value).splitlines()) == 1
