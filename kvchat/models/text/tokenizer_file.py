"""tokenizer.json and the settings beside it -> the model's tokenizer. Knows no chat and no template.

tokenizer.json is the reference: the model learned from the ids that it gives, whatever class a config names for it and
whatever that class would put in the place of its normalizer or of its pre-tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import FETCH_AGAIN, LARGE_BYTES, boundary, read_object_if_any, read_text, shown
from kvchat.models.hush import hushed_transformers
from kvchat.models.schema import MAX_TOKEN_ID, Rule, check, either, flag, several, text, whole
from kvchat.models.text.tokenizer_growth import check_growth
from kvchat.models.text.tokenizer_trial import check_pipeline

_ANOTHER = "take another model"
_NAMED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_IS_ID = whole(0, MAX_TOKEN_ID)
"""The bound of all ids: native code takes four bytes and a moment for every one that is left out below the largest."""
_MAYBE_TOO_LARGE = re.compile(rf":\s*\d{{{len(str(MAX_TOKEN_ID))}}}")


def read_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of a model's folder, and its special tokens by their names, such as `bos_token`.

    Raises ModelUnavailableError if there is none that can be used.
    """
    settings = _settings(folder)
    path, names = folder / "tokenizer.json", dict[str, str]()
    with boundary(f"no usable tokenizer in {folder}", _ANOTHER):
        if path.exists():
            source = read_text(path, LARGE_BYTES)
            _check_ids(_ids_of(source), path)
            check_pipeline(source, path)
            tokenizer = Tokenizer.from_str(source)
        else:
            _check_ids(read_object_if_any(folder / "vocab.json", LARGE_BYTES).items(), folder / "vocab.json")
            tokenizer, names = _through_transformers(folder)
        check_growth(tokenizer, path if path.exists() else folder)
        names |= {name: _content(settings[name]) for name in settings if name.endswith("_token")}
        _complete(tokenizer, settings, folder)
        return tokenizer, {name: content for name, content in names.items() if content}


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; what only special_tokens_map.json or added_tokens.json says too."""
    path = folder / "tokenizer_config.json"
    settings = read_object_if_any(path)
    check(settings, _RULES, path)
    map_path = folder / "special_tokens_map.json"
    named = read_object_if_any(map_path)
    check(named, _RULES, map_path)
    added = read_object_if_any(folder / "added_tokens.json")
    check(added, dict.fromkeys(added, _IS_ID), folder / "added_tokens.json")
    by_id = {str(number): {"content": content} for content, number in added.items()}
    stated = {key: value for key, value in settings.items() if value is not None}
    return named | stated | {"added_tokens_decoder": by_id | (stated.get("added_tokens_decoder") or {})}


def _check_ids(numbered: Iterable[tuple[Any, Any]], path: Path) -> None:
    """Raise ModelUnavailableError for the first of these tokens and ids whose id is beyond the bound, or no id."""
    for token, number in numbered:
        if not _IS_ID(number):
            what = f"{path}: the id of the token {shown(token)} can't be {shown(number)}"
            raise ModelUnavailableError(what, FETCH_AGAIN)


def _ids_of(source: str) -> Iterator[tuple[Any, Any]]:
    """The tokens of a tokenizer.json with their ids; none, for time's sake, where no number is too large for one.

    A list of tokens has no ids. Whatever else is no id the library refuses itself.
    """
    parsed = json.loads(source) if _MAYBE_TOO_LARGE.search(source) else None
    model, added = (parsed.get("model"), parsed.get("added_tokens")) if isinstance(parsed, dict) else ({}, [])
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    yield from vocabulary.items() if isinstance(vocabulary, dict) else ()
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            yield token.get("content"), token.get("id")


def _complete(tokenizer: Tokenizer, settings: Mapping[str, Any], folder: Path) -> None:
    """Make added tokens of those that are so by the settings alone. Ids that tokenizer.json gives stay as they are."""
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    by_id = sorted((int(number), token) for number, token in settings["added_tokens_decoder"].items())
    for number, stated in by_id:
        token = _added(stated)
        if token.content in known:
            continue
        is_new = tokenizer.token_to_id(token.content) is None
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if is_new and tokenizer.token_to_id(token.content) != number:
            raise ModelUnavailableError(
                f"{folder}: its tokenizer has no place {number} for the token {shown(token.content)}",
                FETCH_AGAIN,
            )
    special = [content for content in _special(settings) if tokenizer.token_to_id(content) is not None]
    tokenizer.add_special_tokens([AddedToken(content, normalized=False, special=True) for content in special])


def _added(stated: Mapping[str, Any]) -> AddedToken:
    is_special = bool(stated.get("special", False))
    flags = {name: bool(stated.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = bool(stated.get("normalized", not is_special))
    return AddedToken(str(stated["content"]), special=is_special, normalized=normalized, **flags)


def _special(settings: Mapping[str, Any]) -> Iterator[str]:
    """The tokens that settings call special, by name or in a list."""
    for key in _NAMED:
        yield _content(settings.get(key))
    for key in _LISTED:
        listed = settings.get(key) or []
        yield from map(_content, listed.values() if isinstance(listed, dict) else listed)


def _content(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _through_transformers(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """For vocabularies that are not in tokenizer.json, which transformers converts."""
    with hushed_transformers():
        from transformers import AutoTokenizer  # 1.7 s

        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not hasattr(loaded, "backend_tokenizer"):
        raise ValueError(f"{type(loaded).__name__} is no fast tokenizer")
    named = {key: str(value) for key, value in loaded.special_tokens_map.items() if isinstance(value, str)}
    return loaded.backend_tokenizer, named


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and text(value.get("content")) and len(json.dumps(value)) < 1 << 16


def _is_table(value: Any) -> bool:
    """Added tokens by id."""
    return isinstance(value, dict) and all(
        key.isdecimal() and len(key) < 12 and _IS_ID(int(key)) and _is_token(token)
        for key, token in value.items()
    )


def _are_tokens(value: Any) -> bool:
    """Special tokens in a list, or by name."""
    return several(_TOKEN)(list(value.values()) if isinstance(value, dict) else value)


_TOKEN: Rule = either(text, _is_token)
_RULES: Mapping[str, Rule] = {
    "tokenizer_class": text,
    "added_tokens_decoder": _is_table,
    "chat_template": either(text, lambda value: isinstance(value, list | str)),
    **dict.fromkeys(_NAMED, either(_TOKEN, flag)),
    **dict.fromkeys(_LISTED, _are_tokens),
}
"""What the settings beside tokenizer.json may say of what is used here."""
