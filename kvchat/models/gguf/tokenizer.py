"""A GGUF file's vocabulary -> a tokenizer that splits as llama.cpp does on the same file; knows no weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.documents import boundary, shown
from kvchat.models.gguf.file import GgufFile
from kvchat.models.hush import hushed_transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

logger = logging.getLogger(__name__)

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_ONE_DIGIT_A_TOKEN = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
_GPT2 = frozenset({"gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "mellum", "roberta-bpe"})
_LLAMA3 = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
)
_WHOLE_WORDS_FIRST = _LLAMA3 | {"tekken"}
_END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>"}
)
_END_OF_TURN |= {"<|END_OF_TURN_TOKEN|>", "<|end_of_role|>", "<turn|>", "<|return|>", "<|call|>", "<EOT>"}
_END_OF_TURN |= {"<|endoftext|>", "<|end_of_text|>", "</s>"}
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def build_tokenizer(gguf: GgufFile) -> Tokenizer:
    """The file's tokenizer. Raises ModelUnavailableError when it holds none, or one of an unknown kind."""
    model = gguf.metadata.get("tokenizer.ggml.model")
    tokenizer = _byte_level(gguf) if model == "gpt2" else _other_kind(gguf, model)
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
    return len(_tokens(gguf))


def end_ids(gguf: GgufFile) -> list[int]:
    """Every token that ends an answer: those the file names, then the known ones by their text."""
    control = (index for index, kind in enumerate(_token_types(gguf)) if kind == _CONTROL)
    tokens = _tokens(gguf)
    named = (special_id(gguf, "eos"), special_id(gguf, "eot"), special_id(gguf, "eom"))
    by_text = (index for index in control if tokens[index] in _END_OF_TURN)
    return list(dict.fromkeys(index for index in (*named, *by_text) if index is not None))


def _tokens(gguf: GgufFile) -> list[str]:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise ModelUnavailableError(f"{gguf.path} holds no tokenizer", "take a file that has one")
    return tokens


def _token_types(gguf: GgufFile) -> list[int]:
    types = gguf.metadata.get("tokenizer.ggml.token_type", [])
    return types if isinstance(types, list) and len(types) == len(_tokens(gguf)) else []


def _byte_level(gguf: GgufFile) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelUnavailableError(f"{gguf.path} holds no merges", "take a file with a whole tokenizer")
    vocabulary = {token: index for index, token in enumerate(_tokens(gguf))}
    pre = str(gguf.metadata.get("tokenizer.ggml.pre", "default"))
    pairs = [(left, right) for left, _, right in (str(merge).partition(" ") for merge in merges)]
    with boundary(f"{gguf.path}: its tokenizer is damaged", "fetch it again"):
        bpe = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(pre: str) -> PreTokenizer:
    """How text is cut before merging, by the names in `llama_vocab::impl::load` of llama.cpp."""
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in _ONE_DIGIT_A_TOKEN:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if pre in _GPT2:
        return words
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if pre not in GGUF_PRE_TOKENIZER_SPLITS:
        logger.warning(
            "the GGUF's pre-tokenizer %s is unknown; splitting as GPT-2 does, which may cost quality",
            shown(pre),
        )
        return words
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated")
    return pre_tokenizers.Sequence([split, bytes_only])


def _other_kind(gguf: GgufFile, model: object) -> Tokenizer:
    """SentencePiece vocabularies and their kin, which transformers knows how to build."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    what = f"{gguf.path} has a tokenizer {shown(model)} that can't be read"
    with boundary(what, "take the model's safetensors instead"), hushed_transformers():
        architecture, vocabulary, _ = get_gguf_tokenizer(str(gguf.path))
        tokenizer: Tokenizer = convert_gguf_tokenizer(architecture, vocabulary)[0]
    if model == "llama" and not architecture.startswith("gemma"):
        _space_as_llama_cpp(
            tokenizer, prefixed=gguf.metadata.get("tokenizer.ggml.add_space_prefix") is not False
        )
    return tokenizer


def _space_as_llama_cpp(tokenizer: Tokenizer, *, prefixed: bool) -> None:
    """A space goes before every stretch of text, also where one stands already; `Metaspace` leaves that out."""
    from tokenizers import decoders, normalizers

    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefixed else replace
    tokenizer.pre_tokenizer = None
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)


def _mark_added_tokens(tokenizer: Tokenizer, gguf: GgufFile) -> None:
    """Control tokens are matched whole and are special; user-defined ones are matched whole and are text."""
    from tokenizers import AddedToken

    tokens, kinds = _tokens(gguf), _token_types(gguf)
    marked = [(tokens[index], kind) for index, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)]
    known = [(text, kind) for text, kind in marked if tokenizer.token_to_id(text) is not None]
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text, kind in known if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=False) for text, kind in known if kind == _USER_DEFINED]
    )


def _frame(tokenizer: Tokenizer, gguf: GgufFile) -> None:
    """Tokens put around a text that is encoded with special tokens: BOS and EOS, where the file asks for them."""
    from tokenizers import processors

    bos = special_id(gguf, "bos") if _adds(gguf.metadata, "bos") else None
    eos = special_id(gguf, "eos") if _adds(gguf.metadata, "eos") else None
    tokens = _tokens(gguf)
    ends = {tokens[index]: index for index in (bos, eos) if index is not None}
    if ends:
        template = [tokens[bos]] * (bos is not None) if bos is not None else []
        template += ["$A", *([tokens[eos]] if eos is not None else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=list(ends.items())
        )


def _adds(metadata: Mapping[str, Any], role: str) -> bool:
    """The file's flag; without one llama.cpp adds BOS to SentencePiece vocabularies and to Llama 3's."""
    by_default = role == "bos" and (
        metadata.get("tokenizer.ggml.model") == "llama"
        or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS_FIRST
    )
    return bool(metadata.get(f"tokenizer.ggml.add_{role}_token", by_default))
