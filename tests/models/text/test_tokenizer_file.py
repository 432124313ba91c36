"""tokenizer.json as it is, the settings beside it, and files that no tokenizer can be made of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from kvchat.errors import ModelUnavailableError
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.gguf.tokenizer import build_tokenizer, tokenizer_settings
from kvchat.models.schema import MAX_TOKEN_ID
from kvchat.models.text.tokenizer import ChatTokenizer, load_tokenizer, read_template
from kvchat.models.text.tokenizer_file import read_tokenizer
from kvchat.models.text.tokenizer_trial import is_suspect
from tests.models.tiny_gguf import write_gguf
from tests.tiny import byte_level_tokenizer

CHAT = "<|im_start|>user\nhello<|im_end|>\n"
FIXTURE = Path(__file__).parents[2] / "fixtures" / "sentencepiece_tokens.json"


def folder_with(folder: Path, tokenizer: Tokenizer | dict[str, Any], **files: Any) -> Path:
    """A folder with a tokenizer.json and other JSON files beside it."""
    folder.mkdir(exist_ok=True)
    parsed = json.loads(tokenizer.to_str()) if isinstance(tokenizer, Tokenizer) else tokenizer
    for name, content in {"tokenizer": parsed, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def without_added_tokens() -> dict[str, Any]:
    """A tokenizer.json that has its control tokens in the vocabulary alone."""
    parsed: dict[str, Any] = json.loads(byte_level_tokenizer().to_str())
    return parsed | {"added_tokens": []}


IDS = ChatTokenizer(byte_level_tokenizer()).encode(CHAT)
STATED = {
    "tokenizer_config": {
        "added_tokens_decoder": {
            "1": {"content": "<|im_end|>", "special": True},
            "2": {"content": "<|im_start|>", "special": True},
        }
    },
    "special_tokens_map": {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "additional_special_tokens": ["<|im_start|>"],
    },
    "added_tokens": {"<|im_end|>": 1, "<|im_start|>": 2},
}


@pytest.mark.parametrize("file", STATED)
def test_control_tokens_count_wherever_they_are_stated(tmp_path: Path, file: str) -> None:
    bare = load_tokenizer(folder_with(tmp_path, without_added_tokens()), control_text=CHAT)
    assert len(bare.encode(CHAT)) > 2 * len(IDS)
    told = load_tokenizer(
        folder_with(tmp_path, without_added_tokens(), **{file: STATED[file]}), control_text=CHAT
    )
    assert told.encode(CHAT) == IDS
    assert {"<|im_end|>": 1, "<|im_start|>": 2}.items() <= told.control.items()
    assert not {1, 2} & set(told.encode_as_text(CHAT))


def test_names_of_tokens_are_read_from_both_files_and_the_settings_come_first(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        byte_level_tokenizer(),
        tokenizer_config={"eos_token": "<|im_end|>", "bos_token": None},
        special_tokens_map={"bos_token": {"content": "<s>"}, "eos_token": "</s>"},
    )
    assert load_tokenizer(folder).names == {"bos_token": "<s>", "eos_token": "<|im_end|>"}


def test_a_token_behind_the_vocabulary_gets_the_id_that_the_settings_state(tmp_path: Path) -> None:
    size = byte_level_tokenizer().get_vocab_size()
    for place, is_right in ((size, True), (size + 7, False)):
        stated = {"added_tokens_decoder": {str(place): {"content": "<new>", "special": False}}}
        folder = folder_with(tmp_path, byte_level_tokenizer(), tokenizer_config=stated)
        if is_right:
            assert load_tokenizer(folder).encode("<new>") == (size,)
        else:
            with pytest.raises(ModelUnavailableError, match="no place 327 for the token '<new>'"):
                load_tokenizer(folder)


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_a_folder_and_the_gguf_of_one_model_cut_text_alike_whatever_class_is_named(
    tmp_path: Path, named: str
) -> None:
    known = json.loads(FIXTURE.read_text(encoding="utf-8"))
    pieces = [piece for piece, _ in known["pieces"]]
    vocabulary = {
        "model": "llama",
        "merges": None,
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 1), 3],
        "scores": [0.0] * 259 + [score for _, score in known["pieces"]],
    }
    metadata = {f"tokenizer__ggml__{key}": item for key, item in vocabulary.items()}
    write_gguf(tmp_path / "tiny.gguf", **metadata)
    gguf = read_gguf(tmp_path / "tiny.gguf")
    settings = tokenizer_settings(gguf) | {"tokenizer_class": named}
    folder = folder_with(tmp_path / "model", build_tokenizer(gguf), tokenizer_config=settings)
    tokenizer = load_tokenizer(folder)
    for text, ids in known["plain"]:  # llama.cpp's, on the same file
        if not any(name in text for name in tokenizer.control):
            assert list(tokenizer.encode(text, is_start=True)) == ids, text


def test_a_pre_tokenizer_is_the_files_own_though_the_named_class_has_another(tmp_path: Path) -> None:
    own = byte_level_tokenizer()
    own.normalizer = normalizers.NFKC()
    cut = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}]"), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_only])
    folder = folder_with(tmp_path, own, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"})
    for text in ("the quick brown fox", "12345 hello", "ｗｉｄｅ"):
        expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False)
        assert list(load_tokenizer(folder).encode(text, is_start=True)) == expected.ids


def with_part(part: str, value: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(byte_level_tokenizer().to_str())
    return parsed | {part: value}


def split_at(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return with_part("pre_tokenizer", split)


@pytest.mark.parametrize(
    "tokenizer",
    [
        split_at(r"(a+)+b"),
        split_at(r"(\p{L}+\s?)+\d"),
        split_at("("),
        with_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        with_part("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}),
        with_part("normalizer", {"type": "Replace", "pattern": {"Regex": "b*"}, "content": "xx"}),
        with_part("normalizer", {"type": "Replace", "pattern": {"Regex": ""}, "content": "xx"}),
        with_part("model", {"type": "BPE", "vocab": {"a": 2**32}, "merges": []}),
        with_part("model", {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 10**9}),
        with_part("added_tokens", [{"id": -1, "content": "x"}]),
        {},
        {"model": []},
    ],
    ids=lambda tokenizer: str(tokenizer)[-60:],
)
def test_a_tokenizer_that_fails_or_never_ends_is_refused_in_one_line(
    tmp_path: Path, tokenizer: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        load_tokenizer(folder_with(tmp_path, tokenizer)).encode("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!")
    assert "\n" not in str(caught.value) and caught.value.remedy
    assert capfd.readouterr().err == ""


def numbered(place: str, number: object) -> dict[str, Any]:
    """A tokenizer.json that gives one token this id."""
    parsed: dict[str, Any] = json.loads(byte_level_tokenizer().to_str())
    if place == "added_tokens":
        parsed["added_tokens"].append(parsed["added_tokens"][0] | {"id": number, "content": "zzz"})
    else:
        parsed["model"] |= {"type": place, "unk_token": "zzz"}
        parsed["model"]["vocab"]["zzz"] = number
    return parsed


@pytest.mark.parametrize("place", ["BPE", "WordLevel", "added_tokens"])
@pytest.mark.parametrize("number", [2**31, 2**31 - 1, 10**8, MAX_TOKEN_ID + 1, -1, 1.5, True, None, "1"])
def test_an_id_that_no_vocabulary_has_is_refused_in_one_line(
    tmp_path: Path, place: str, number: object
) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        read_tokenizer(folder_with(tmp_path, numbered(place, number)))
    assert "\n" not in str(caught.value) and caught.value.remedy
    if isinstance(number, int) and number > 1:
        assert f"the id of the token 'zzz' can't be {number}" in str(caught.value)


def test_ids_with_holes_between_them_are_taken(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, numbered("BPE", 1 << 20))
    assert load_tokenizer(folder).piece(1 << 20) == "zzz"


def test_an_absurd_id_in_a_vocabulary_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"zzz": 2**31}))
    with pytest.raises(ModelUnavailableError, match=r"vocab\.json: the id of the token 'zzz' can't be"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("regex", "is_one"),
    [
        (r"(a+)+b", True),
        (r"(?:a|b)*c", True),
        (r"(?:\p{L}*){2,}", True),
        (r"\s+\s+\s+\s+x", True),
        (r"(x)\1+", True),
        (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", False),
        (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|\s*[\r\n]+|\s+", False),
        (r"[(+*]+|\(\+\)", False),
    ],
)
def test_only_a_regex_that_may_backtrack_for_long_is_suspect(regex: str, is_one: bool) -> None:
    assert is_suspect(regex) is is_one


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("what", ["folder", "fifo", "pointer", "no UTF-8", "too large"])
def test_what_is_no_file_of_text_is_refused_in_one_line(tmp_path: Path, place: str, what: str) -> None:
    path = folder_with(tmp_path, byte_level_tokenizer()) / place
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif what == "no UTF-8":
        path.write_bytes(b'{"a": "\xff"}')
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    with pytest.raises(ModelUnavailableError) as caught:
        read_template(tmp_path)
        load_tokenizer(tmp_path)
    assert place in str(caught.value) and "\n" not in str(caught.value)
    if what == "pointer":
        assert caught.value.remedy == "fetch it with git lfs pull"


def test_added_tokens_are_not_added_twice(tmp_path: Path) -> None:
    own = byte_level_tokenizer("<think>")
    stated = {"added_tokens_decoder": {str(own.token_to_id("<think>")): {"content": "<think>"}}}
    folder = folder_with(tmp_path, own, tokenizer_config=stated)
    own.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    assert load_tokenizer(folder).id == ChatTokenizer(own).id
