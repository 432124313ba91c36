"""A model's GGUF in one file, or in several that are named `NAME-00001-of-00003.gguf` and so on: opened by any of them.

The first part holds what is said of the model, each part some of its tensors; llama.cpp's `llama-gguf-split` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import shown
from kvchat.models.gguf.file import GgufFile, GgufTensor, read_file

_FETCH_AGAIN = "fetch all parts again, into one folder"
_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)
_OF_PARTS = "split."


def read_gguf(path: Path, *, has_texts: bool = True) -> GgufFile:
    """The header of a model's GGUF, every tensor known to lie inside its file and to have a type we read; of one in
    several parts that of all of them, whichever `path` names.

    Without `has_texts` arrays of strings are passed over, and are `Unread`: a vocabulary takes longer than all the rest.
    Raises ModelUnavailableError for a file that is missing, truncated, not GGUF, of another tensor type, or of other
    parts than those beside it.
    """
    paths = named_parts(path)
    if len(paths) > 1:
        _check_all_there(paths)
    first = read_file(paths[0], has_texts=has_texts)
    count = first.metadata.get("split.count", 1)
    if count in (0, 1) and len(paths) == 1:
        return first
    if count != len(paths):
        raise _misnamed(path, first)
    return _joined([first, *(read_file(part, has_texts=has_texts) for part in paths[1:])])


def named_parts(path: Path) -> list[Path]:
    """The files of a model by the name of one of them, the first part first; the file itself if it is named as no part."""
    match = _NAME.fullmatch(path.name)
    count = int(match["count"]) if match else 1
    if match is None or not 1 <= int(match["number"]) <= count:
        return [path]
    names = (
        f"{match['stem']}-{number:05d}-of-{match['count']}{match['end']}" for number in range(1, count + 1)
    )
    return [path.with_name(name) for name in names]


def model_name(path: Path) -> str:
    """What a model's file is called, without what says which part it is."""
    match = _NAME.fullmatch(path.name)
    return match["stem"] if match else path.stem


def located(path: Path) -> Path:
    """The one path by which a model is known, whichever of its parts `path` names: of the first of them.

    A link is followed, but for one that is named as a part: beside it the others are found, not beside where it leads
    (in the hub's cache to a file that is named by its hash).
    """
    real = path if _NAME.fullmatch(path.name) else path.resolve()
    first = named_parts(real)[0]
    return first.parent.resolve() / first.name


def _check_all_there(paths: Sequence[Path]) -> None:
    missing = [path.name for path in paths if not path.exists()]
    if len(missing) == len(paths):
        raise ModelUnavailableError(f"there is no file {paths[0]}", "check the path")
    if missing:
        what = f"{paths[0].parent} lacks {len(missing)} of the {len(paths)} parts of a model: {missing[0]}"
        raise ModelUnavailableError(what, "fetch it into the same folder")


def _misnamed(path: Path, first: GgufFile) -> ModelUnavailableError:
    """Of a file that is another number of parts than its name says."""
    count = first.metadata.get("split.count", 1)
    what = f"{path} is one of {shown(count)} parts" if count != 1 else f"{path} is no part of a model"
    return ModelUnavailableError(
        f"{what}, and its name says otherwise", "give its file the name that it was published under"
    )


def _joined(parts: Sequence[GgufFile]) -> GgufFile:
    """All parts as one file. Raises ModelUnavailableError for parts that are not of one model."""
    first = parts[0]
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        stated = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if (
            stated != (number, len(parts))
            or not _agrees(part.metadata, first.metadata)
            or tensors.keys() & part.tensors.keys()
        ):
            raise ModelUnavailableError(f"{part.path} does not belong to {first.path}", _FETCH_AGAIN)
        tensors |= part.tensors
    if first.metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise ModelUnavailableError(f"the parts of {first.path} lack some of its tensors", _FETCH_AGAIN)
    return replace(first, tensors=tensors, paths=tuple(part.path for part in parts))


def _agrees(metadata: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether a part says nothing of the model that the first one does not say."""
    said = {key: value for key, value in metadata.items() if not key.startswith(_OF_PARTS)}
    return all(key in first and first[key] == value for key, value in said.items())
