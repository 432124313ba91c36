"""The shelves that saved prompts stand on, and who wins where two have one name. Reads no more than names.

There are three places, the first wins: `./prompts` if the user trusts it, the user's folder, those that are shipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from kvchat.config import config_file
from kvchat.errors import UsageError
from kvchat.prompts.head import nearest
from kvchat.prompts.prompt import Prompt, Shelf, read_prompt

SUFFIX = ".md"
_NAME = re.compile(r"[\w][\w.\-]*")


class Prompts:
    """All prompts that can be named here. `folders` in the order in which they win; nothing `untrusted` is read."""

    def __init__(self, folders: Sequence[tuple[Shelf, Path]], untrusted: Path | None = None) -> None:
        self._folders = folders
        self.untrusted = untrusted
        """The folder beside the user's work, where the user did not say that it is trusted."""

    @classmethod
    def around(
        cls,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        *,
        is_trusted: Callable[[Path], bool] = lambda folder: False,
    ) -> Prompts:
        """Those of a working folder, if `is_trusted` says so of it, the user's and the shipped ones."""
        here = folder / "prompts"
        own = [(Shelf.YOURS, user_folder(environ)), (Shelf.SHIPPED, shipped_folder())]
        if not here.is_dir() or here.resolve() in (place.resolve() for _, place in own):
            return cls(own)  # with kvchat's own repository
        return cls([(Shelf.HERE, here), *own]) if is_trusted(here) else cls(own, here)

    def paths(self) -> dict[str, tuple[Shelf, Path]]:
        """Every name with the file that wins, in the order of names."""
        found: dict[str, tuple[Shelf, Path]] = {}
        for shelf, folder in reversed(self._folders):
            found |= {path.stem: (shelf, path) for path in _files(folder)}
        return dict(sorted(found.items()))

    def waiting(self) -> dict[str, Path]:
        """The names in the folder that is not trusted, in their order."""
        return {path.stem: path for path in _files(self.untrusted)} if self.untrusted else {}

    def prompt(self, name: str) -> Prompt:
        """The prompt of this name, or in the file of this name if it ends in .md. Raises UsageError."""
        paths = self.paths()
        if name in paths:
            return read_prompt(paths[name][1], paths[name][0])
        if name.endswith(SUFFIX):
            return read_prompt(Path(name).expanduser(), Shelf.HERE)
        if name in self.waiting():
            raise UsageError(
                f"the prompt {name!r} is in {self.untrusted}, which you have not trusted yet",
                "look at it, then run kvchat prompts trust, or give --trust-prompts to use it once",
            )
        raise UsageError(f"no prompt is called {name!r}", nearest(name, paths))


def user_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's prompts lie."""
    return config_file(environ).parent / "prompts"


def shipped_folder() -> Path:
    """Where the prompts lie that came with the program: in the package, or beside it where it runs from its sources."""
    package = Path(str(files("kvchat")))
    packed = package / "prompts_shipped"
    return packed if packed.is_dir() else package.parent / "prompts"


def check_name(name: str) -> str:
    """A name that a prompt can be saved under. Raises UsageError for another."""
    if not _NAME.fullmatch(name) or name.endswith(SUFFIX):
        raise UsageError(f"a prompt can't be called {name!r}", "use letters, digits, -, _ and .")
    return name


def _files(folder: Path) -> list[Path]:
    """The files of prompts in a folder whose names can be said, in their order."""
    try:
        return sorted(path for path in folder.glob("*" + SUFFIX) if path.stem.isprintable())
    except OSError:
        return []
