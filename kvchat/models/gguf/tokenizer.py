"""A GGUF file's vocabulary -> a tokenizer that splits as llama.cpp does on the same file; knows no weights.

Kinds of vocabularies, defaults and attributes of tokens: `llama_vocab::impl::load` of llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import boundary, shown
from kvchat.models.gguf.cuts import CUTS, Cut
from kvchat.models.gguf.file import GgufFile, Unread

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type
_ELSEWHERE = "take the model's safetensors instead"
_REFUSED: Mapping[str, str] = {
    "t5": "unigram",
    "bert": "WordPiece",
    "rwkv": "RWKV",
    "plamo2": "PLaMo 2",
    "hybriddna": "DNA",
    "whitespace": "whitespace",
}
"""Kinds of vocabularies that llama.cpp knows and kvchat does not, by `tokenizer.ggml.model`."""
_END_OF_TURN = frozenset(
    (
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<turn|>"),
        *("<|END_OF_TURN_TOKEN|>", "<|end_of_role|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>"),
        *("<|endoftext|>", "<|end_of_text|>", "</s>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        *("[EOS]", "[EOT]", "<EOT>"),
    )
)
_HARMONY = frozenset(("<|return|>", "<|call|>"))
"""Tokens of OpenAI's Harmony format, in which <|end|> ends a message but no answer."""
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_PHI3 = ("phi-3", "phi3")
_KEEPS_SPACE = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def build_tokenizer(gguf: GgufFile) -> Tokenizer:
    """The file's tokenizer. Raises ModelUnavailableError when it holds none, or one that can't be built exactly."""
    tokenizer = _pieces(gguf) if gguf.metadata.get("tokenizer.ggml.model") == "llama" else _merged(gguf)
    _mark_added_tokens(tokenizer, gguf)
    _frame(tokenizer, gguf)
    return tokenizer


def tokenizer_settings(gguf: GgufFile) -> dict[str, Any]:
    """What tokenizer_config.json says beside tokenizer.json."""
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.integer("context_length"),
    }
    for role, key in _ROLES.items():
        token_id = special_id(gguf, key)
        if token_id is not None:
            settings[role] = _tokens(gguf)[token_id]
    return settings


def special_id(gguf: GgufFile, role: str) -> int | None:
    """The id of the special token `bos`, `eos`, `eot`, `eom`, `unknown` or `padding`; None without one."""
    token_id = gguf.metadata.get(f"tokenizer.ggml.{role}_token_id")
    return token_id if isinstance(token_id, int) and 0 <= token_id < len(_tokens(gguf)) else None


def vocabulary_size(gguf: GgufFile) -> int:
    """How many tokens the vocabulary has."""
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, Unread) else len(_tokens(gguf))


def end_ids(gguf: GgufFile) -> list[int]:
    """Every token that ends an answer: those the file names, then the known ones by their text."""
    tokens, marked = _tokens(gguf), (_CONTROL, _USER_DEFINED)
    by_text = {
        tokens[index]: index
        for index, kind in enumerate(_token_types(gguf))
        if kind in marked and tokens[index] in _END_OF_TURN
    }
    if by_text.keys() >= _HARMONY:
        by_text.pop("<|end|>", None)
    named = (special_id(gguf, "eos"), special_id(gguf, "eot"), special_id(gguf, "eom"))
    return list(dict.fromkeys(index for index in (*named, *by_text.values()) if index is not None))


def _tokens(gguf: GgufFile) -> list[str]:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise ModelUnavailableError(f"{gguf.path} holds no tokenizer", "take a file that has one")
    return tokens


def _token_types(gguf: GgufFile) -> list[int]:
    types = gguf.metadata.get("tokenizer.ggml.token_type", [])
    return types if isinstance(types, list) and len(types) == len(_tokens(gguf)) else []


def _cut(gguf: GgufFile) -> Cut:
    """How the file's text is cut into words. Raises ModelUnavailableError for a way that is unknown."""
    model, pre = gguf.metadata.get("tokenizer.ggml.model"), gguf.metadata.get("tokenizer.ggml.pre")
    if model in _REFUSED:
        what = f"{gguf.path} has a {_REFUSED[str(model)]} vocabulary ({model}), which kvchat does not read"
        raise ModelUnavailableError(what, _ELSEWHERE)
    if model not in ("gpt2", "gemma4"):
        raise ModelUnavailableError(
            f"{gguf.path} has a tokenizer {shown(model)}, which is unknown", _ELSEWHERE
        )
    cut = CUTS.get("gemma4" if model == "gemma4" else str(pre or "default"))
    if cut is None:
        what = f"{gguf.path} cuts its text by rules that are unknown: tokenizer.ggml.pre is {shown(pre)}"
        raise ModelUnavailableError(what, f"upgrade kvchat, or {_ELSEWHERE}")
    return cut


def _merged(gguf: GgufFile) -> Tokenizer:
    """A vocabulary with a list of merges (BPE), over bytes or over letters."""
    from tokenizers import Tokenizer, models

    cut, merges = _cut(gguf), gguf.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelUnavailableError(f"{gguf.path} holds no merges", "take a file with a whole tokenizer")
    with boundary(f"{gguf.path}: its tokenizer is damaged", "fetch it again"):
        bpe = models.BPE(
            vocab=_vocabulary(gguf),
            merges=[_pair(str(merge)) for merge in merges],
            ignore_merges=cut.whole_words,
            byte_fallback=not cut.is_bytes,
        )
    tokenizer = Tokenizer(bpe)
    cut_up(tokenizer, cut)
    return tokenizer


def cut_up(tokenizer: Tokenizer, cut: Cut) -> None:
    """Let a tokenizer cut text into words as `cut` says, and join decoded tokens accordingly."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in cut.patterns]
    in_bytes = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)] if cut.is_bytes else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, *in_bytes])
    if cut.escapes_spaces:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.ByteLevel() if cut.is_bytes else _letters_decoder()


def _vocabulary(gguf: GgufFile) -> dict[str, int]:
    return {token or f"[EMPTY_{index}]": index for index, token in enumerate(_tokens(gguf))}


def _pair(merge: str) -> tuple[str, str]:
    """The two parts of a merge; the first may itself begin with a space."""
    at = merge.find(" ", 1)
    return merge[:at], merge[at + 1 :]


def _letters_decoder(*, prefixed: bool = False) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)


def _pieces(gguf: GgufFile) -> Tokenizer:
    """SentencePiece's vocabulary, which has scores in the place of merges: the better piece is made first."""
    from tokenizers import Tokenizer, models, normalizers

    vocabulary = _vocabulary(gguf)
    unknown = special_id(gguf, "unknown")
    with boundary(f"{gguf.path}: its tokenizer is damaged", "fetch it again"):
        bpe = models.BPE(
            vocab=vocabulary,
            merges=list(_scored_merges(gguf, vocabulary)),
            unk_token=_tokens(gguf)[0 if unknown is None else unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    tokenizer = Tokenizer(bpe)
    # a space goes before every stretch of text, also where one stands already
    prefixed = gguf.metadata.get("tokenizer.ggml.add_space_prefix") is not False
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefixed else spaces
    )
    tokenizer.decoder = _letters_decoder(prefixed=prefixed)
    return tokenizer


def _scored_merges(gguf: GgufFile, vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that are a token together, the best of these first."""
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary):
        raise ModelUnavailableError(f"{gguf.path} holds no scores", "take a file with a whole tokenizer")
    for token in sorted(vocabulary, key=lambda token: -scores[vocabulary[token]]):
        for end in range(1, len(token)):
            if token[:end] in vocabulary and token[end:] in vocabulary:
                yield token[:end], token[end:]


def _mark_added_tokens(tokenizer: Tokenizer, gguf: GgufFile) -> None:
    """Control tokens are matched whole and are special; user-defined ones are matched whole and are text."""
    kinds = _token_types(gguf)
    special = [index for index, kind in enumerate(kinds) if kind in (_CONTROL, _UNKNOWN)]
    special += [index for index in end_ids(gguf) if kinds and kinds[index] not in (_CONTROL, _UNKNOWN)]
    text = [index for index, kind in enumerate(kinds) if kind == _USER_DEFINED and index not in special]
    tokenizer.add_special_tokens([_added(gguf, index, special=True) for index in special])
    tokenizer.add_tokens([_added(gguf, index, special=False) for index in text])


def _added(gguf: GgufFile, index: int, *, special: bool) -> AddedToken:
    """A token that is matched whole; those of Phi-3 take the white space behind them along, as llama.cpp knows by name."""
    from tokenizers import AddedToken

    content = _tokens(gguf)[index] or f"[EMPTY_{index}]"
    name = str(gguf.metadata.get("general.name", "")).lower()
    takes_space = any(phi3 in name for phi3 in _PHI3) and content not in _KEEPS_SPACE
    return AddedToken(content, normalized=False, special=special, rstrip=takes_space)


def _frame(tokenizer: Tokenizer, gguf: GgufFile) -> None:
    """Tokens put around a text that is encoded with special tokens: BOS and EOS, where the file asks for them."""
    from tokenizers import processors

    bos = special_id(gguf, "bos") if _adds(gguf, "bos") else None
    eos = special_id(gguf, "eos") if _adds(gguf, "eos") else None
    tokens = _tokens(gguf)
    ends = {tokens[index]: index for index in (bos, eos) if index is not None}
    if ends:
        template = [tokens[bos]] * (bos is not None) if bos is not None else []
        template += ["$A", *([tokens[eos]] if eos is not None else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=list(ends.items())
        )


def _adds(gguf: GgufFile, role: str) -> bool:
    """The file's flag; without one llama.cpp adds BOS to SentencePiece's vocabularies and to some others."""
    model = gguf.metadata.get("tokenizer.ggml.model")
    by_default = role == "bos" and (model == "llama" or _cut(gguf).adds_bos)
    return bool(gguf.metadata.get(f"tokenizer.ggml.add_{role}_token", by_default))
