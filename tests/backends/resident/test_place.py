from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvchat.backends.resident.log import cut
from kvchat.backends.resident.place import (
    MAX_SOCKET_BYTES,
    Place,
    UnsafeFolderError,
    is_held,
    last_line,
    locked,
    runtime_folder,
)


def test_the_folder_is_made_private(tmp_path: Path) -> None:
    open_to_all = tmp_path / "run"
    open_to_all.mkdir(mode=0o755)
    assert stat.S_IMODE(runtime_folder(open_to_all).stat().st_mode) == 0o700


def test_a_link_is_no_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFolderError):
        runtime_folder(tmp_path / "link")


def test_a_path_that_no_socket_can_have_is_replaced_by_a_short_one(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    folder = runtime_folder(deep)
    assert folder == runtime_folder(deep) != runtime_folder(tmp_path / ("y" * 100))
    assert len(str(Place(folder, "0" * 16).socket)) <= MAX_SOCKET_BYTES
    for made in (folder, runtime_folder(tmp_path / ("y" * 100))):
        made.rmdir()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from kvchat.backends.resident.place import *\n"
        "assert try_lock(open_lock(Path(sys.argv[1])))\nprint('held', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        assert is_held(tmp_path / "lock")
        with pytest.raises(TimeoutError), locked(tmp_path / "lock", 0.05):
            pass
        holder.kill()
        holder.wait()
    assert not is_held(tmp_path / "lock")
    with locked(tmp_path / "lock", 0.05):
        assert is_held(tmp_path / "lock")


def test_a_log_stays_small_and_keeps_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    cut(log, max_bytes=1000, kept_bytes=100)
    assert log.stat().st_size <= 100
    assert log.read_text().startswith("line ") and last_line(log) == "line 999"
    before = log.read_text()
    cut(log, max_bytes=1000, kept_bytes=100)
    assert log.read_text() == before


def test_the_clients_side_loads_no_torch() -> None:
    code = (
        "import sys, kvchat.backends.resident.attaching, kvchat.backends.resident.asking\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
