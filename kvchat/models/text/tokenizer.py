"""Text <-> token ids for one model, control tokens kept apart from text. Knows no message and no model."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import xxhash
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from kvchat.models.documents import boundary, read_object_if_any, read_text
from kvchat.models.pauses import Interrupted
from kvchat.models.text.long_text import PIECE, in_pieces, places_of
from kvchat.models.text.piece_cache import PieceCache
from kvchat.models.text.reasoning import marks_in
from kvchat.models.text.tokenizer_file import read_tokenizer

_ANCHOR = "\uf8fa\uf8fb\uf8fa"  # private use: stands for "there is text before this"
_REPLACEMENT = "\ufffd"
_STRETCH = 1 << 14  # characters that are encoded at a time to see whether a text is too long
_LOOK_BACK = 512  # characters in which the last word is looked for
_SEAM_TOKENS = 64  # more than a cut in the text adds


class ChatTokenizer:
    """One model's tokenizer. `id` names it: equal ids mean equal token ids for equal text.

    Control tokens are those marked special, and those that `control_text` (a chat template) writes itself; in text
    that a user supplies they must not count, see `encode_as_text`. Those that mark reasoning are decoded as text.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, names: dict[str, str] | None = None, control_text: str = ""
    ) -> None:
        self.id = xxhash.xxh3_64_hexdigest(tokenizer.to_str().encode())
        self.names = names or {}  # bos_token, eos_token … as chat templates want them
        added = tokenizer.get_added_tokens_decoder()
        self.control: dict[str, int] = {
            token.content: number
            for number, token in added.items()
            if token.content.strip() and (token.special or token.content in control_text)
        }
        self._control_ids = frozenset(self.control.values())
        marks = marks_in(control_text, self.control)
        self._visible = {
            number: token.content
            for number, token in added.items()
            if marks and token.special and token.content.strip() and token.content in marks.start + marks.end
        }
        longest_first = sorted([*self.control, _ANCHOR], key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._partings = _partings(self.control, added.values())
        self._full = _anchored(tokenizer)
        self._encode_part = PieceCache(partial(self._encoded, self._full))
        self._heard = threading.local()

    def encode(self, text: str, *, is_start: bool = False) -> tuple[int, ...]:
        """Ids of `text`, control tokens counting. Unless `is_start`, it is encoded as what stands behind other text.

        Where a control token begins nothing before it matters to what follows, so each part is encoded once for all.
        """
        starts = [found.start() for found in self._partings.finditer(text)] if self._partings else []
        ends = [start for start in starts if start > 0] + [len(text)]
        if len(ends) == 1:
            return self._encode_part(text, is_start=is_start)
        parts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        first = self._encode_part(parts[0], is_start=is_start)
        return tuple(chain(first, *map(self._encode_part, parts[1:])))

    def encode_whole(self, text: str) -> tuple[int, ...]:
        """Ids of a whole prompt that no template made, with what the tokenizer itself puts in front; once, if it stands there."""
        with boundary("the model's tokenizer fails on this text", "say it in other words"):
            ids = tuple(self._full.encode(text, add_special_tokens=True).ids)
        is_doubled = len(ids) > 1 and ids[0] == ids[1] == self.control.get(self.names.get("bos_token", ""))
        return ids[1:] if is_doubled else ids

    def encode_as_text(self, text: str) -> tuple[int, ...]:
        """Ids of `text` in which control tokens are only letters; never contains a control token's id."""
        ids = self._encoded(self._plain, text)
        forged = {*self._control_ids, self._plain.token_to_id(_ANCHOR)}
        if forged.isdisjoint(ids):
            return ids
        return tuple(i for letter in text for i in _encode(self._plain, letter) if i not in forged)

    def has_control(self, text: str) -> bool:
        """Whether a control token is written in `text`, as it is or in other letters that are normalized to it."""
        return bool(self.control_pattern.search(text)) or not self._control_ids.isdisjoint(self.encode(text))

    @contextmanager
    def hearing(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """In this thread, let encoding a long text raise Interrupted soon after it was cancelled."""
        before = getattr(self._heard, "is_cancelled", None)
        self._heard.is_cancelled = is_cancelled
        try:
            yield
        finally:
            self._heard.is_cancelled = before

    def _encoded(self, tokenizer: Tokenizer, text: str, is_start: bool = False) -> tuple[int, ...]:
        if len(text) <= 2 * PIECE or self._places is None:
            return _encode(tokenizer, text, is_start)
        return in_pieces(text, partial(_encode, tokenizer), self._places, self._pause, is_start=is_start)

    def _pause(self) -> None:
        is_cancelled = getattr(self._heard, "is_cancelled", None)
        if is_cancelled is not None and is_cancelled():
            raise Interrupted

    @cached_property
    def _places(self) -> re.Pattern[str] | None:
        return places_of(self._full.get_vocab())

    @cached_property
    def _plain(self) -> Tokenizer:
        with boundary("the model's tokenizer can't tell text from control tokens", "take another model"):
            return _anchored(_without_control(self._full, set(self.control)))

    def count(self, text: str) -> int:
        """Number of tokens that `text` is, control tokens taken as text."""
        return len(self.encode_as_text(text))

    def settled(self, text: str) -> int:
        """How many of the first characters of a text that is being typed have tokens that more typing hardly changes:
        those before its last word, as the tokenizer itself cuts it, or before the last space where it cuts none."""
        start = max(0, len(text) - _LOOK_BACK)
        cutter = self._full.pre_tokenizer
        words = cutter.pre_tokenize_str(text[start:]) if cutter and text else []
        if len(words) > 1:
            return start + int(words[-1][1][0])
        return max((found.start() for found in re.finditer(r"\s+", text[start:])), default=-start) + start

    def least_tokens(self, text: str) -> Iterator[int]:
        """How many tokens `text` has at least, from its beginning on; whoever asks stops when that is enough."""
        counted = 0
        for start in range(0, len(text), _STRETCH):
            counted += max(0, len(_encode(self._full, text[start : start + _STRETCH])) - _SEAM_TOKENS)
            yield counted

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens that are no marks of reasoning."""
        pieces: list[str] = []
        run: list[int] = []
        for token in ids:
            if token in self._visible:
                pieces += [_decode(self._full, run), self._visible[token]]
                run = []
            else:
                run.append(token)
        return "".join([*pieces, _decode(self._full, run)])

    def piece(self, token: int) -> str:
        """A token as the vocabulary writes it; empty for one that it does not have."""
        return str(self._full.id_to_token(token) or "")

    def is_blank(self, token: int) -> bool:
        """Whether a token is nothing but white space."""
        text = self.decode([token])
        return bool(text) and not text.strip()

    def stream(self) -> TextStream:
        """A decoder for one answer; what an unfinished answer said is pushed first, and its text put aside."""
        return TextStream(self._full, self._visible)


class TextStream:
    """Ids in, text out as soon as it is certain: never ends inside a character, never waits for a space.

    Special tokens give no text but for those in `visible`.
    """

    def __init__(self, tokenizer: Tokenizer, visible: Mapping[int, str]) -> None:
        self._tokenizer = tokenizer
        self._visible = visible
        self._restart()

    def _restart(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        if token in self._visible:
            text = self.finish() + self._visible[token]
            self._restart()
            return text
        try:
            text = self._step(token)
        except Exception:  # a bare one: a byte that is no text changed what the bytes before it were read as
            self._restart()
            text = self._step(token)
        self._given += len(text)
        return text

    def _step(self, token: int) -> str:
        self._ids.append(token)
        return str(self._stream.step(self._tokenizer, token) or "")

    def finish(self) -> str:
        """What was held back and is whole after all; an unfinished character is left out."""
        rest = _decode(self._tokenizer, self._ids)[self._given :].rstrip(_REPLACEMENT)
        self._given += len(rest)
        return rest


def load_tokenizer(folder: Path, *, control_text: str = "") -> ChatTokenizer:
    """The tokenizer of a model's folder. Raises ModelUnavailableError if there is none that can be used."""
    tokenizer, names = read_tokenizer(folder)
    return ChatTokenizer(tokenizer, names=names, control_text=control_text)


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _encode(tokenizer: Tokenizer, text: str, is_start: bool = False) -> tuple[int, ...]:
    with boundary("the model's tokenizer fails on this text", "take another model, or say it in other words"):
        if is_start:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        return tuple(tokenizer.encode(_ANCHOR + text, add_special_tokens=False).ids[1:])


def _partings(control: Iterable[str], added: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """The control tokens at which text falls apart: they take no white space along, and none runs into another."""
    plain = {
        token.content
        for token in added
        if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    }
    others = [token.content for token in added]
    apart = [name for name in control if name in plain and not any(_meet(other, name) for other in others)]
    longest_first = sorted(apart, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if apart else None


def _meet(left: str, right: str) -> bool:
    """Whether `left` may lie over the beginning of `right` in a text, or around it."""
    if left == right:
        return False
    return right in left or any(left.endswith(right[:size]) for size in range(1, len(right)))


def _anchored(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with one more special token, in front of text that does not start the prompt.

    SentencePiece tokenizers put a space before the first word; behind a special token they don't.
    """
    tokenizer.add_special_tokens([AddedToken(_ANCHOR, normalized=False, special=True)])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_control(tokenizer: Tokenizer, control: set[str]) -> Tokenizer:
    """The tokenizer for which `control` is only text, with the same vocabulary in memory. All other tokens keep their
    ids: a control token that the vocabulary has anyway is not matched any more, one that exists only as an added token
    gets an unwritable name."""
    plain = Tokenizer(tokenizer.model)
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    for number, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        if token.content in control and tokenizer.model.token_to_id(token.content) is not None:
            continue
        if token.content in control or token.content == _ANCHOR:
            token = AddedToken(f"{_ANCHOR}{number}{_ANCHOR}", normalized=False, special=True)
        (plain.add_special_tokens if token.special else plain.add_tokens)([token])
        if plain.token_to_id(token.content) != number:
            raise ValueError(f"the tokenizer has no place {number} for an added token")
    return plain


def read_template(folder: Path, named: Path | None = None) -> str | None:
    """The chat template's source: the file `named`, else the folder's own; None if there is none.

    Raises ModelUnavailableError for a file that can't be read.
    """
    if named is not None:
        with boundary(f"can't read the chat template {named}", "name another file"):
            return read_text(named)
    own = folder / "chat_template.jinja"
    if own.exists():
        return read_text(own)
    for file in ("tokenizer_config.json", "chat_template.json"):
        template = read_object_if_any(folder / file).get("chat_template")
        if isinstance(template, list):  # several, by name
            by_name = {
                entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)
            }
            template = by_name.get("default") or next(iter(by_name.values()), None)
        if isinstance(template, str):
            return template
    return None
