"""What tells one resident engine from another: all settings that bear on KV or on the machine, and the program itself.

What a call brings with it (cache mode, saving, sampling) tells nothing apart. That the weights are still the same only the
engine can say, and does at each attach.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path

from kvchat.backends.resident.place import Place, runtime_folder
from kvchat.config import ChatConfig, Config, SamplingConfig, UiConfig

_LIBRARIES = ("kvchat", "torch", "transformers", "tokenizers")
_VARIABLES = ("CUDA_", "HIP_", "ROCR_", "HF_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH", "PYTORCH_", "LD_")
"""How the names of variables begin that bear on what an engine computes, and where."""


def engine_config(config: Config) -> Config:
    """The settings that one engine for all conversations runs with; paths no longer depend on the working folder."""
    model, paths = config.model, config.paths
    return replace(
        config,
        model=replace(
            model,
            name=_absolute(model.name) if is_path(model.name) else model.name,
            adapter=model.adapter and _absolute(model.adapter),
            chat_template=model.chat_template and _absolute(model.chat_template),
        ),
        sampling=SamplingConfig(),
        cache=replace(config.cache, mode="rw", prepare=True),
        chat=ChatConfig(),
        ui=UiConfig(),
        paths=replace(
            paths, models=paths.models.absolute(), cache=paths.cache.absolute(), data=paths.data.absolute()
        ),
        remotes={},
    )


def is_path(name: str) -> bool:
    """Whether a model's name can be nothing but a path."""
    return name.startswith((".", "~", "/")) or name.lower().endswith(".gguf")


def can_share(config: Config) -> bool:
    """Whether the settings allow an engine for several terminals, and what they name means the same in every folder."""
    name = config.model.name
    is_elsewhere = is_path(name) or not Path(name).exists()
    return config.engine.share and config.engine.keep_alive != 0 and is_elsewhere


def place_of(config: Config, environ: Mapping[str, str] | None = None) -> Place:
    """Where the engine for these settings is. Raises OSError where the runtime folder can't be used."""
    return Place(runtime_folder(config.paths.runtime), key_of(config, environ))


def key_of(config: Config, environ: Mapping[str, str] | None = None) -> str:
    """16 hex digits that two engines have in common if they give the same, at the same cost."""
    environ = os.environ if environ is None else environ
    sections = engine_config(config).to_json()
    told = {
        "model": {name: value for name, value in sections["model"].items() if name != "offline"},
        "cache": sections["cache"],
        "paths": {name: value for name, value in sections["paths"].items() if name != "runtime"},
        "environ": {name: environ[name] for name in sorted(environ) if name.startswith(_VARIABLES)},
        "program": program(),
    }
    return blake2b(
        json.dumps(told, sort_keys=True).encode(errors="surrogateescape"), digest_size=8
    ).hexdigest()


@cache
def program() -> str:
    """This very program: interpreter, versions, and the state of its own files, which a checkout changes without a version."""
    package = Path(__file__).parents[2]
    newest = max(_changes(str(package)))
    return " ".join((sys.executable, sys.version, str(package), str(newest), *_installed(sys.path)))


def _changes(folder: str) -> list[int]:
    """When each module below a folder was changed, in nanoseconds."""
    times = [0]
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                times.append(entry.stat().st_mtime_ns)
            elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith(("_", ".")):
                times += _changes(entry.path)
    return times


def _installed(folders: Sequence[str]) -> Iterator[str]:
    """Which versions of the libraries lie in these folders, by the names of what installers leave beside them: asking
    `importlib.metadata` takes as long as a fifteenth of what `kvchat -p` imports."""
    for folder in folders:
        with suppress(OSError):
            names = sorted(entry.name for entry in Path(folder or os.curdir).iterdir())
            told = (name for name in names if name.endswith((".dist-info", ".egg-info")))
            yield from (name for name in told if name.partition("-")[0].lower() in _LIBRARIES)


def _absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().resolve())
    except (OSError, RuntimeError):  # whoever loads it says what is wrong
        return path
