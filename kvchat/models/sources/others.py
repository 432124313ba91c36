"""Models that other programs have fetched to this disk: ollama, LM Studio, llama.cpp, the hub's own cache. Only looks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvchat.models.gguf.parts import model_name, named_parts

_MAX_MANIFEST_BYTES = 1 << 20
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_LEAST_BYTES = 1 << 20  # smaller files hold no weights


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model of another program: what that calls it, the path that stands for it here, its size, and the program."""

    name: str
    path: Path
    num_bytes: int
    program: str


def others(home: Path, environ: Mapping[str, str]) -> list[FoundModel]:
    """All that is found in the usual folders of `home`, or in those that the programs' own variables name."""
    ollama = Path(environ.get("OLLAMA_MODELS") or home / ".ollama/models")
    llama = Path(environ.get("LLAMA_CACHE") or home / ".cache/llama.cpp")
    hub_home = Path(environ.get("HF_HOME") or home / ".cache/huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or hub_home / "hub")
    found = [*_of_ollama(ollama), *_ggufs(llama, "llama.cpp")]
    for folder in (home / ".lmstudio/models", home / ".cache/lm-studio/models"):
        found += _ggufs(folder, "LM Studio")
    return [*found, *_of_hub(hub)]


def _of_ollama(folder: Path) -> Iterator[FoundModel]:
    """Each tag's manifest names the blob with its weights, which is a GGUF."""
    for manifest in _files(folder / "manifests", "*"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
                continue
            layers = json.loads(manifest.read_bytes())["layers"]
            digest = next(layer["digest"] for layer in layers if layer["mediaType"] == _OLLAMA_MODEL)
            blob = folder / "blobs" / digest.replace(":", "-")
            name = f"{manifest.parent.name}:{manifest.name}"
            yield FoundModel(name, blob, blob.stat().st_size, "ollama")


def _ggufs(folder: Path, program: str) -> Iterator[FoundModel]:
    """Whole GGUFs, each by its first part; its vision part is nothing that could be loaded."""
    for path in _files(folder, "*.gguf"):
        parts = named_parts(path)
        if path != parts[0] or path.name.startswith("mmproj"):
            continue
        with suppress(OSError):  # a part is missing
            if (num_bytes := sum(part.stat().st_size for part in parts)) >= _LEAST_BYTES:
                yield FoundModel(model_name(path), path, num_bytes, program)


def _of_hub(folder: Path) -> Iterator[FoundModel]:
    """The newest snapshot of each repository that has weights and a config."""
    with suppress(OSError):
        for repository in sorted(folder.glob("models--*")):
            snapshots = [path.parent for path in repository.glob("snapshots/*/config.json")]
            if not snapshots:
                continue
            newest = max(snapshots, key=lambda path: path.stat().st_mtime)
            num_bytes = sum(path.stat().st_size for path in newest.glob("*.safetensors"))
            if num_bytes >= _LEAST_BYTES:
                name = repository.name.removeprefix("models--").replace("--", "/")
                yield FoundModel(name, newest, num_bytes, "the hub's cache")


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.rglob(pattern) if path.is_file())
    except OSError:
        return []
