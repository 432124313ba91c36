"""How children that run Python are started: the working folder is no part of their path, and need not exist any more.

A folder that was downloaded may hold a `random.py`; what runs in it is to import the standard library's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_RUN = """\
import runpy, sys
from importlib import util
spec = util.spec_from_file_location("kvchat", sys.argv.pop(1))
sys.modules["kvchat"] = util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["kvchat"])
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def own_command(module: str) -> list[str]:
    """The command that runs a module of ours: of this very package, wherever another one may lie."""
    package = Path(__file__).with_name("__init__.py")
    return [sys.executable, "-P", "-c", _RUN, str(package), module]


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """`environ`, by default this process's own, with nothing in it that brings the working folder onto Python's path.

    An older interpreter, which does not know PYTHONSAFEPATH, puts a script's own folder there, and never this one.
    """
    given = dict(os.environ if environ is None else environ)
    path = [entry for entry in given.pop("PYTHONPATH", "").split(os.pathsep) if Path(entry).is_absolute()]
    return given | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})


def child_folder() -> str | None:
    """Where a child is started: None for this process's folder, the root where that was deleted."""
    try:
        os.getcwd()  # noqa: PTH109  # all that is asked is whether there is one
    except OSError:
        return "/"
    return None
