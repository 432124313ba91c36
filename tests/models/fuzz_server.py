"""Runs kvchat on damaged models, each in a child with limits that is forked off a process with everything imported.

Reads the numbers of cases from stdin, a line each, and answers with a line of JSON each.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_S = 10.0
VIRTUAL_BYTES = 4 << 30
GGUF_SHARE = 0.3


def serve(bases: list[Path], gguf: Path) -> None:
    """Answer until stdin ends."""
    import torch
    from transformers.models.gemma2 import modeling_gemma2  # noqa: F401  # what the cases have in common

    import kvchat.backends.local
    import kvchat.models.gguf.importing
    import kvchat.models.stock.loader  # noqa: F401

    torch.set_num_threads(1)
    logging.getLogger("gguf").setLevel(logging.ERROR)  # the writer's, of what it was asked to write
    print(json.dumps({"rss_bytes": _rss_bytes()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_case(int(line), bases, gguf)), flush=True)


def _case(number: int, bases: list[Path], gguf: Path) -> dict[str, Any]:
    draw = random.Random(number)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place = Path(folder)
        target, what = _damaged(place, draw, bases, gguf)
        output = place / "output"
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(target, place, output)
        status, usage, is_late = _ended(child, started)
        return {
            "case": number,
            "what": what,
            "code": os.waitstatus_to_exitcode(status),
            "is_late": is_late,
            "seconds": usage.ru_utime + usage.ru_stime,
            "rss_bytes": usage.ru_maxrss * 1024,
            "stderr": output.read_text(encoding="utf-8", errors="replace")[:3000],
            "is_executed": any(place.rglob("executed")),
        }


def _damaged(place: Path, draw: random.Random, bases: list[Path], gguf: Path) -> tuple[Path, str]:
    from tests.models.fuzzing import damage_folder, damage_gguf

    if draw.random() < GGUF_SHARE:
        return place / "model.gguf", "gguf " + damage_gguf(gguf, place / "model.gguf", draw)
    base = draw.choice(bases)
    shutil.copytree(base, place / "model")
    return place / "model", f"{base.name} {damage_folder(place / 'model', draw)}"


def _run(target: Path, place: Path, output: Path) -> None:
    """The child: what a user's `kvchat -m TARGET -p hello` does."""
    code = 70
    try:
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + VIRTUAL_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(descriptor, 2)
        sys.stdin = os.fdopen(0)  # the other one has read already
        names = {"MODELS": "models", "CACHE_DIR": "cache", "DATA": "data", "CONFIG": "none.toml"}
        os.environ.update({f"KVCHAT_{name}": str(place / folder) for name, folder in names.items()})
        from kvchat.cli import main

        flags = [
            "-p",
            "hello",
            "--max-tokens",
            "2",
            "--dtype",
            "float32",
            "--offline",
            "--no-save",
            "--quiet",
        ]
        code = main(["-m", str(target), *flags])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 71
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int, started: float) -> tuple[int, resource.struct_rusage, bool]:
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage, False
        if time.monotonic() - started > 6 * LIMIT_S:  # of the clock: others compute too
            os.kill(child, 9)
            _, status, usage = os.wait4(child, 0)
            return status, usage, True
        time.sleep(0.005)


def _rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve([Path(folder) for folder in sys.argv[2:]], Path(sys.argv[1]))
