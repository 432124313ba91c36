"""Every name of `tokenizer.ggml.pre` cuts text as llama.cpp does, and what is unknown is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from kvchat.config import load_config
from kvchat.errors import ModelUnavailableError
from kvchat.models.gguf.cuts import CUTS
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.gguf.tokenizer import build_tokenizer, cut_up, end_ids
from kvchat.models.sources.catalog import Catalog
from kvchat.models.text.tokenizer_trial import check_pipeline
from tests.models.gguf.record_cuts import ABORTS, FIXTURE, short
from tests.models.gguf.texts import TEXTS
from tests.models.gguf.vocabularies import letters, llama_cpp_vocabulary, write_vocabulary

RECORDED = {
    name: shorts
    for names, shorts in json.loads(FIXTURE.read_text(encoding="utf-8")).items()
    for name in names.split()
}
HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None


@pytest.fixture(scope="module")
def embedded() -> dict[str, Any]:
    path = Catalog(load_config({}).paths.models).resolve("smollm2-135m").gguf
    assert path is not None
    return dict(read_gguf(path).metadata)


@pytest.fixture(scope="module")
def over_bytes(embedded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = write_vocabulary(tmp_path_factory.mktemp("bytes") / "vocabulary.gguf", embedded)
    tokenizer = build_tokenizer(read_gguf(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_the_table_has_every_name_that_llama_cpp_has() -> None:
    assert len(CUTS) == 91
    assert CUTS.keys() == RECORDED.keys() | ABORTS.keys()


@pytest.mark.parametrize("name", sorted(name for name, cut in CUTS.items() if cut.is_bytes))
def test_a_vocabulary_over_bytes_is_cut_as_llama_cpp_cuts_it(name: str, over_bytes: Tokenizer) -> None:
    over_bytes.model.ignore_merges = CUTS[name].whole_words
    cut_up(over_bytes, CUTS[name])
    ours = [short(over_bytes.encode(text, add_special_tokens=False).ids) for text in TEXTS]
    theirs = [RECORDED[name][start : start + 4] for start in range(0, 4 * len(TEXTS), 4)]
    assert [text for text, our, their in zip(TEXTS, ours, theirs, strict=True) if our != their] == []


@pytest.mark.parametrize("name", sorted(name for name, cut in CUTS.items() if cut.escapes_spaces))
def test_a_vocabulary_over_letters_is_cut_as_llama_cpp_cuts_it(name: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(read_gguf(write_vocabulary(tmp_path / "letters.gguf", letters(name))))
    tokenizer.encode_special_tokens = True
    ours = "".join(short(tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS)
    assert ours == RECORDED[name]
    assert tokenizer.decode(tokenizer.encode("an other thé", add_special_tokens=False).ids) == "an other thé"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="llama-cpp-python is the reference")
@pytest.mark.parametrize("name", sorted(CUTS.keys() - ABORTS.keys()))
def test_a_swapped_name_gives_the_ids_of_libllama(
    name: str, embedded: dict[str, Any], tmp_path: Path
) -> None:
    metadata = embedded | {"tokenizer.ggml.pre": name} if CUTS[name].is_bytes else letters(name)
    path = write_vocabulary(tmp_path / "vocabulary.gguf", metadata)
    tokenizer = build_tokenizer(read_gguf(path))
    with llama_cpp_vocabulary(path) as model:
        for text in TEXTS:
            ours = tokenizer.encode(text, add_special_tokens=False).ids
            assert ours == model.tokenize(text.encode(), add_bos=False, special=True), text
        assert tokenizer.encode("x").ids == model.tokenize(b"x", add_bos=True, special=True)


def test_no_pattern_is_taken_for_one_that_never_ends(over_bytes: Tokenizer) -> None:
    for cut in dict.fromkeys(CUTS.values()):
        cut_up(over_bytes, cut)
        check_pipeline(over_bytes.to_str(), Path("tokenizer.json"))


def test_an_unknown_name_is_refused(embedded: dict[str, Any], tmp_path: Path) -> None:
    metadata = letters("from-the-future")
    with pytest.raises(ModelUnavailableError, match=r"rules that are unknown.*'from-the-future'"):
        build_tokenizer(read_gguf(write_vocabulary(tmp_path / "new.gguf", metadata)))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("t5", "unigram"),
        ("bert", "WordPiece"),
        ("rwkv", "RWKV"),
        ("plamo2", "PLaMo"),
        ("cuneiform", "unknown"),
    ],
)
def test_another_kind_of_vocabulary_is_refused_by_its_name(tmp_path: Path, model: str, said: str) -> None:
    metadata = letters("default") | {"tokenizer.ggml.model": model}
    with pytest.raises(ModelUnavailableError, match=said):
        build_tokenizer(read_gguf(write_vocabulary(tmp_path / "other.gguf", metadata)))


def test_the_control_tokens_of_phi_3_take_the_white_space_behind_them_along(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "phi.gguf", letters("gemma4"))
    gguf = read_gguf(path)
    plain, phi = build_tokenizer(gguf), build_tokenizer(_named(gguf, "Phi-3 mini"))
    text = "</s> \n the<s> the"
    the = plain.token_to_id("\u2581the")
    assert plain.encode(text, add_special_tokens=False).ids != phi.encode(text, add_special_tokens=False).ids
    ids = phi.encode(text, add_special_tokens=False).ids
    assert ids == [2, plain.token_to_id("the"), 1, the]


def test_an_answer_of_harmony_does_not_end_where_a_message_ends(tmp_path: Path) -> None:
    metadata = letters("gpt-4o")
    tokens = ["<|end|>", "<|return|>", "<|call|>"]
    metadata["tokenizer.ggml.tokens"] = metadata["tokenizer.ggml.tokens"][:-3] + tokens
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"][:-3], 3, 3, 3]
    metadata["tokenizer.ggml.eos_token_id"] = len(metadata["tokenizer.ggml.tokens"]) - 2
    gguf = read_gguf(write_vocabulary(tmp_path / "harmony.gguf", metadata))
    ends = {metadata["tokenizer.ggml.tokens"][index] for index in end_ids(gguf)}
    assert ends == {"<|return|>", "<|call|>", "</s>"}


def _named(gguf: Any, name: str) -> Any:
    return type(gguf)(gguf.path, {**gguf.metadata, "general.name": name}, gguf.tensors)
