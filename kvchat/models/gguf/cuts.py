"""How text is cut into words before they are merged, by the names that `tokenizer.ggml.pre` takes; knows no vocabulary.

The patterns are the models' own, as `llm_tokenizer_bpe` of llama.cpp (src/llama-vocab.cpp) reads them, its simplifications
included: a model's GGUF was tried out with those. They are written for Oniguruma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_TAIL = r"\s+(?!\S)|\s+"
_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_TAIL}"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LINES = r"\s*[\r\n]+"
_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_EACH_NUMBER = r"\p{N}"
_THREE_NUMBERS = r"\p{N}{1,3}"
_FROM_THE_RIGHT = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_NO_NEWLINES = r"[^\n]+|[\n]+"
_POSITIONED = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_EAST_ASIAN = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"


def _cl100k(numbers: str = _THREE_NUMBERS, *, word: str = r"\p{L}+", signs: str = _SIGNS) -> str:
    """The pattern of OpenAI's cl100k and of the many models that learned from it."""
    return f"{_SHORT}|{_HEAD}{word}|{numbers}|{signs}|{_LINES}|{_TAIL}"


def _o200k(upper: str, lower: str, numbers: str = _THREE_NUMBERS, *, short: str = f"{_SHORT}?") -> str:
    """The pattern of OpenAI's o200k: a word goes on from capital to small letters, and takes `'s` along."""
    words = f"{_HEAD}{upper}*{lower}+{short}|{_HEAD}{upper}+{lower}*{short}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}|{_TAIL}"


_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_UPPER_OR_MARK, _LOWER_OR_MARK = r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]"
_ANY = r"[\p{L}\p{M}]"
_HAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}"
    r"\x{2F800}-\x{2FA1F}"
)
_NO_HAN = rf"[\p{{L}}&&[^{_HAN}]]+"
_KIMI = (
    rf"[{_HAN}]+|{_HEAD}{_NO_HAN}{_SHORT}?|{_THREE_NUMBERS}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}|{_TAIL}"
)
_DEEPSEEK_LETTERS = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}"
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}"
    r"\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}"
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}"
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}"
    r"\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}"
    r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
_CJK_BLOCKS = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_DEEPSEEK_SIGNS = r"[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+"
_YOUTU_SCRIPTS = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
    r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}"
    r"\x{FE30}-\x{FE4F}]+"
    rf"|[\x{{3105}}-\x{{312F}}]+|{_EAST_ASIAN}"
)
_ASIAN_BLOCKS = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}"
    r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)


@dataclass(frozen=True, slots=True)
class Cut:
    """How one kind of vocabulary cuts text. `patterns` are applied one after another, each to what the last one left.

    `whole_words`: a word that is a token is not built from its parts. `adds_bos`: unless the file says otherwise.
    `is_bytes`: words are spelled in bytes before merging, as GPT-2 does; else in letters, with U+2581 for a space.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    is_bytes: bool = True
    escapes_spaces: bool = False


def _named(cut: Cut, *names: str) -> dict[str, Cut]:
    return dict.fromkeys(names, cut)


_GPT2_CUT = Cut((_GPT2,))
_DIGITS_CUT = Cut((_EACH_NUMBER, _GPT2))
_QWEN2_CUT = Cut((_cl100k(_EACH_NUMBER),))
_DEEPSEEK3_WORDS = rf"{_MARKS}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_DEEPSEEK3 = Cut((_THREE_NUMBERS, _EAST_ASIAN, rf"{_DEEPSEEK3_WORDS}[\r\n]*|{_LINES}|{_TAIL}"))

CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        **_named(
            Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
            "default",
        ),
        **_named(
            Cut((_cl100k(),), whole_words=True, adds_bos=True),
            *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
            "jina-v5-nano",
        ),
        **_named(Cut((_THREE_NUMBERS, _cl100k(r"\p{N}+")), whole_words=True), "minicpm5"),
        **_named(Cut((_cl100k(),)), "dbrx", "smaug-bpe", "chatglm-bpe"),
        **_named(Cut((_cl100k(),), whole_words=True), "glm4", "glm5"),
        **_named(
            Cut(
                (
                    rf"{_SHORT}|{_HEAD}\p{{L}}+|{_THREE_NUMBERS}|{_SIGNS}|{_LINES}|\s{{512}}(?!\S)|\s{{256}}(?!\S)"
                    r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
                    r"|\s{1,2}(?!\S)|\s",
                )
            ),
            "jais-2",
        ),
        **_named(
            Cut(
                (
                    r"[\r\n]",
                    rf"\s?[{_DEEPSEEK_LETTERS}]+",
                    rf"\s?{_DEEPSEEK_SIGNS}",
                    r"\s+$",
                    _CJK_BLOCKS,
                    r"\p{N}+",
                )
            ),
            "deepseek-llm",
        ),
        **_named(
            Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_BLOCKS, _EACH_NUMBER)),
            "deepseek-coder",
        ),
        **_named(_DEEPSEEK3, "deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        **_named(
            Cut((_THREE_NUMBERS, _EAST_ASIAN, rf"{_DEEPSEEK3_WORDS}|[\r\n]|{_TAIL}", _EACH_NUMBER)),
            "spark2_5",
        ),
        **_named(
            Cut(
                (
                    _YOUTU_SCRIPTS,
                    _o200k(_ANY, _ANY, _EACH_NUMBER),
                ),
                whole_words=True,
            ),
            "youtu",
        ),
        **_named(Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
        **_named(
            _DIGITS_CUT,
            *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
        ),
        **_named(
            _GPT2_CUT,
            *(
                "gpt-2",
                "phi-2",
                "jina-es",
                "jina-de",
                "gigachat",
                "jina-v2-es",
                "jina-v2-de",
                "a.x-4.0",
                "mellum",
            ),
            *("modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "trillion"),
            *("granite-docling", "exaone4"),
        ),
        **_named(
            _QWEN2_CUT,
            *(
                "qwen2",
                "deepseek-r1-qwen",
                "kormo",
                "f2llmv2",
                "megrez",
                "stablelm2",
                "hunyuan",
                "solar-open",
            ),
            "grok-2",
        ),
        **_named(Cut((_cl100k(_EACH_NUMBER).removeprefix(f"{_SHORT}|"),)), "ufakzeka"),
        **_named(
            Cut((_cl100k(_EACH_NUMBER, word=f"{_ANY}+", signs=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),)), "qwen35"
        ),
        **_named(Cut((_POSITIONED,)), "poro-chat", "bloom", "gpt3-finnish"),
        **_named(Cut((_POSITIONED, _EACH_NUMBER)), "viking"),
        **_named(
            Cut((_o200k(_UPPER, _LOWER, _EACH_NUMBER, short=""),), whole_words=True, adds_bos=True), "tekken"
        ),
        **_named(Cut((_o200k(_UPPER, _LOWER),)), "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        **_named(Cut((_o200k(_UPPER_OR_MARK, _LOWER_OR_MARK),), whole_words=True), "granite-embed-multi-97m"),
        **_named(Cut((_FROM_THE_RIGHT, _o200k(_ANY, _ANY))), "tiny_aya", "cohere2moe"),
        **_named(
            Cut(
                (
                    r"<sentinel:[0-9]+>",
                    r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                    r"([\t\n]|    |  )",
                    _EACH_NUMBER,
                    r"[\p{P}!-/:-@\[-`{-~]",
                    _GPT2,
                ),
                adds_bos=True,
            ),
            "chameleon",
        ),
        **_named(Cut((_KIMI,)), "kimi-k2"),
        **_named(Cut((r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))")), "superbpe"),
        **_named(
            Cut(
                (
                    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
                    rf"|{_HEAD}\p{{L}}+|\p{{N}}|{_SIGNS}|\s*[\r\n]|{_TAIL}",
                )
            ),
            *("bailingmoe", "bailingmoe2", "llada-moe"),
        ),
        **_named(Cut((_cl100k(_EACH_NUMBER, signs=r" ?[^\s\p{L}\p{N}\r\n]+"),)), "seed-coder"),
        **_named(
            Cut(
                (
                    _FROM_THE_RIGHT,
                    _ASIAN_BLOCKS,
                    rf"{_DEEPSEEK3_WORDS}[\r\n]*|{_LINES}|{_TAIL}",
                )
            ),
            "afmoe",
        ),
        **_named(Cut((_NO_NEWLINES, _cl100k(_EACH_NUMBER))), "laguna"),
        **_named(
            Cut(
                (
                    rf"{_SHORT}|{_HEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_TAIL}",
                )
            ),
            "exaone-moe",
        ),
        **_named(
            Cut((_NO_NEWLINES,), is_bytes=False, escapes_spaces=True, adds_bos=True),
            *("gemma4", "granite-embed-multi-311m"),
        ),
        **_named(Cut((_NO_NEWLINES,), is_bytes=False, escapes_spaces=True), "sarvam-moe"),
        **_named(Cut((r"\S+",), is_bytes=False), "whitespace"),
    }
)
"""By the name that the file gives; a name that is not here is a vocabulary that llama.cpp does not know either."""
