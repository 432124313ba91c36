"""GGUF files: every number as transformers reads it, every token as llama.cpp cuts it, every bad file refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kvchat.config import load_config
from kvchat.errors import KvchatError, ModelUnavailableError
from kvchat.models.gguf.checkpoint import GgufCheckpoint
from kvchat.models.gguf.file import TENSOR_TYPES, Unread
from kvchat.models.gguf.importing import write_model
from kvchat.models.gguf.parts import read_gguf
from kvchat.models.gguf.tokenizer import build_tokenizer, vocabulary_size
from kvchat.models.gguf.values import tensor_values
from kvchat.models.sources.catalog import Catalog, ModelFiles, silent
from tests.models.tiny_gguf import gguf_tensors, tiny_hf_model, write_gguf

FIXTURE = Path(__file__).parents[2] / "fixtures" / "smollm2_tokens.json"
PROBES = torch.tensor([[5, 77, 200, 9, 9, 31, 150]])


@pytest.fixture(scope="module")
def embedded() -> ModelFiles:
    return Catalog(load_config({}).paths.models).resolve("smollm2-135m")


def import_into(folder: Path, path: Path) -> Path:
    folder.mkdir()
    write_model(read_gguf(path), folder, silent)
    return folder


def model_of(folder: Path, path: Path) -> Any:
    """transformers' model of what was imported, with the weights of the file itself."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
    checkpoint = GgufCheckpoint.open(path)
    lacking, unknown = model.load_state_dict(
        {name: checkpoint.get(name) for name in checkpoint.names}, strict=False
    )
    assert not unknown and set(lacking) <= {"lm_head.weight"}
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=PROBES).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_an_imported_model_gives_the_logits_of_the_model_it_was_written_from(
    tmp_path: Path, family: str, tied: bool
) -> None:
    original = write_gguf(tmp_path / "tiny.gguf", tiny_hf_model(family, tie_word_embeddings=tied))
    folder = import_into(tmp_path / "out", tmp_path / "tiny.gguf")
    loaded = model_of(folder, tmp_path / "tiny.gguf")
    assert type(loaded) is type(original)
    assert torch.equal(logits(loaded), logits(original))
    assert loaded.config.rope_parameters == original.config.rope_parameters


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_positions_come_through(tmp_path: Path, rope: dict[str, Any]) -> None:
    original = tiny_hf_model(rope_parameters=rope)
    scaling: dict[str, Any] = {}
    if rope["rope_type"] != "llama3":
        scaling = {
            "llama__rope__scaling__type": rope["rope_type"],
            "llama__rope__scaling__factor": rope["factor"],
        }
        scaling["llama__rope__scaling__original_context_length"] = rope.get(
            "original_max_position_embeddings"
        )
    write_gguf(tmp_path / "tiny.gguf", original, **scaling)
    folder = import_into(tmp_path / "out", tmp_path / "tiny.gguf")
    loaded = model_of(folder, tmp_path / "tiny.gguf")
    assert torch.allclose(loaded.model.rotary_emb.inv_freq, original.model.rotary_emb.inv_freq, rtol=1e-6)
    assert torch.allclose(logits(loaded), logits(original), atol=1e-5)
    plain = model_of(folder, tmp_path / "tiny.gguf")
    plain.model.rotary_emb.inv_freq[:] = tiny_hf_model().model.rotary_emb.inv_freq
    assert not torch.allclose(logits(plain), logits(original), atol=1e-5)


def test_unknown_rope_factors_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 2.0}
    rope |= {"high_freq_factor": 3.0, "original_max_position_embeddings": 4096}
    write_gguf(tmp_path / "tiny.gguf", tiny_hf_model(rope_parameters=rope))
    with pytest.raises(ModelUnavailableError, match="positions"):
        import_into(tmp_path / "out", tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("kind", "stated"), [(Type.F16, "float16"), (Type.BF16, "bfloat16"), (Type.Q8_0, "float32")]
)
def test_a_config_states_the_type_that_the_file_was_made_from(
    tmp_path: Path, kind: Type, stated: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tensor_type=kind)
    folder = import_into(tmp_path / "out", tmp_path / "tiny.gguf")
    assert json.loads((folder / "config.json").read_text())["dtype"] == stated


def test_an_embedded_tensor_has_the_values_of_transformers_dequantisation(embedded: ModelFiles) -> None:
    from transformers.integrations.gguf.dequant import dequantize

    assert embedded.gguf is not None
    header = read_gguf(embedded.gguf)
    data = np.memmap(embedded.gguf, dtype=np.uint8, mode="r")
    for name, kind in (("token_embd.weight", 8), ("blk.0.attn_v.weight", 3), ("blk.29.ffn_down.weight", 3)):
        item = header.tensors[name]
        raw = torch.from_numpy(np.array(data[item.start : item.start + item.num_bytes]))
        assert np.array_equal(tensor_values(data, item).ravel(), dequantize(raw, kind).numpy())


@pytest.mark.slow
def test_the_embedded_model_is_bit_identical_to_transformers_reading_of_its_gguf(
    embedded: ModelFiles,
) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    assert embedded.gguf is not None
    checkpoint = GgufCheckpoint.open(embedded.gguf)
    config = AutoConfig.from_pretrained(embedded.folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    reference = load_gguf_checkpoint(str(embedded.gguf), return_tensors=True, model_to_load=model)["tensors"]
    assert checkpoint.names == reference.keys() - {"lm_head.weight"}
    for name in checkpoint.names:
        assert torch.equal(checkpoint.get(name), reference[name]), name


def test_the_tokenizer_cuts_text_as_llama_cpp_does(embedded: ModelFiles) -> None:
    tokenizer = Tokenizer.from_file(str(embedded.folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # text that looks like a control token stays text
    probes = json.loads(FIXTURE.read_text(encoding="utf-8"))["plain"]
    assert len(probes) >= 40
    for text, ids in probes:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_tokenizer_cuts_rendered_chats_as_llama_cpp_does(embedded: ModelFiles) -> None:
    tokenizer = Tokenizer.from_file(str(embedded.folder / "tokenizer.json"))
    for text, ids in json.loads(FIXTURE.read_text(encoding="utf-8"))["special"]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text


def test_a_sentencepiece_vocabulary_is_cut_as_llama_cpp_does(tmp_path: Path) -> None:
    known = json.loads(FIXTURE.with_name("sentencepiece_tokens.json").read_text(encoding="utf-8"))
    pieces = [piece for piece, _ in known["pieces"]]
    vocabulary = {
        "model": "llama",
        "merges": None,
        "add_bos_token": None,
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 1), 3],
        "scores": [0.0] * 259 + [score for _, score in known["pieces"]],
    }
    write_gguf(
        tmp_path / "tiny.gguf", **{f"tokenizer__ggml__{key}": item for key, item in vocabulary.items()}
    )
    tokenizer = build_tokenizer(read_gguf(tmp_path / "tiny.gguf"))
    for text, ids in known["special"]:
        assert tokenizer.encode(text).ids == ids, text
    tokenizer.encode_special_tokens = True
    for text, ids in known["plain"]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_transformers_reads_the_tokenizer_and_its_template(embedded: ModelFiles) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder)
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.decode(tokenizer.encode("a , b 's")) == "a , b 's"  # nothing is cleaned up


def test_answers_end_at_the_end_of_turn_and_are_not_sampled_unless_the_file_says_so(
    embedded: ModelFiles,
) -> None:
    written = json.loads((embedded.folder / "generation_config.json").read_text(encoding="utf-8"))
    assert written == {"eos_token_id": [2, 0], "bos_token_id": 1, "pad_token_id": 2}


def test_bos_is_added_once_where_the_file_asks_for_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__add_bos_token=True)
    tokenizer = build_tokenizer(read_gguf(tmp_path / "tiny.gguf"))
    assert tokenizer.encode("hello").ids[0] == 1
    assert 1 not in tokenizer.encode("hello", add_special_tokens=False).ids


@pytest.mark.parametrize(
    "kind", [Type(number) for number, item in TENSOR_TYPES.items() if item.block_size > 1]
)
def test_a_model_of_each_type_is_read_as_the_gguf_package_dequantises_it(tmp_path: Path, kind: Type) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_hf_model(hidden=256), tensor_type=kind)
    item = next(item for item in gguf.GGUFReader(path).tensors if item.name == "blk.1.ffn_down.weight")
    values = GgufCheckpoint.open(path).get("model.layers.1.mlp.down_proj.weight").numpy()
    assert item.tensor_type == kind
    assert np.array_equal(values, gguf.dequantize(item.data, kind), equal_nan=True)


def test_another_tensor_type_is_refused_by_its_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_hf_model(hidden=256), tensor_type=Type.Q8_K)
    with pytest.raises(ModelUnavailableError, match=r"type Q8_K: take a file with F32, .*MXFP4"):
        read_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general__architecture": "wundermodell"}, "unknown architecture 'wundermodell'"),
        ({"llama__block_count": 3}, "lacks tensor blk.2"),
        ({"llama__block_count": 1}, "unknown tensor blk.1"),
        ({"llama__block_count": None}, "has no llama.block_count"),
        ({"llama__feed_forward_length": 64}, r"is \(128, 64\), not \(64, 64\)"),
        ({"llama__attention__head_count": 3}, "contradicts itself"),
        ({"llama__rope__dimension_count": 8}, "part of each head"),
        ({"llama__rope__scaling__type": "longrope"}, "longrope"),
        ({"tokenizer__ggml__tokens": None}, "no tokenizer"),
        ({"tokenizer__ggml__model": "cuneiform"}, "cuneiform"),
        ({"split__count": 4}, "one of 4 parts"),
    ],
)
def test_a_file_that_cant_be_carried_over_is_refused_in_one_line(
    tmp_path: Path, metadata: dict[str, Any], said: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", **metadata)
    with pytest.raises(ModelUnavailableError, match=said) as caught:
        import_into(tmp_path / "out", tmp_path / "tiny.gguf")
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_an_unknown_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    model = tiny_hf_model("qwen2")
    write_gguf(tmp_path / "tiny.gguf", model, general__architecture="llama", **_renamed(tmp_path, model))
    with pytest.raises(ModelUnavailableError, match=r"tensor blk\.0\.attn_output\.bias"):
        import_into(tmp_path / "out", tmp_path / "tiny.gguf")


def _renamed(tmp_path: Path, model: Any) -> dict[str, Any]:
    """The sizes of `model` under the keys of a llama."""
    write_gguf(tmp_path / "sizes.gguf", model)
    sizes = read_gguf(tmp_path / "sizes.gguf").metadata
    return {
        key.replace("qwen2.", "llama.").replace(".", "__"): value
        for key, value in sizes.items()
        if "qwen2." in key
    }


def test_no_truncated_file_gets_past_the_header(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 64), *range(64, len(whole), len(whole) // 150), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelUnavailableError) as caught:
            read_gguf(cut)
        assert "\n" not in str(caught.value)


def test_a_header_without_texts_is_the_same_but_for_them(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    whole, short = read_gguf(tmp_path / "tiny.gguf"), read_gguf(tmp_path / "tiny.gguf", has_texts=False)
    assert short.tensors == whole.tensors
    assert short.metadata.keys() == whole.metadata.keys()
    assert vocabulary_size(short) == vocabulary_size(whole)
    passed_over = [key for key, value in short.metadata.items() if isinstance(value, Unread)]
    assert "tokenizer.ggml.tokens" in passed_over
    for key, value in whole.metadata.items():
        assert len(short.metadata[key]) == len(value) if key in passed_over else short.metadata[key] == value
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:400])
    with pytest.raises(ModelUnavailableError, match="too early"):
        read_gguf(tmp_path / "cut.gguf", has_texts=False)


def test_flipped_header_bytes_never_raise_anything_else_and_leave_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    header_bytes = min(item.start for item in read_gguf(tmp_path / "whole.gguf").tensors.values())
    flipped, rng, refused = tmp_path / "flipped.gguf", random.Random(0), 0
    root = tmp_path / "models"
    for position in [*range(24), *(rng.randrange(header_bytes) for _ in range(80)), *_key_positions(whole)]:
        changed = bytearray(whole)
        changed[position] ^= 1 << rng.randrange(8)
        flipped.write_bytes(changed)
        catalog = Catalog(root)
        try:
            catalog.resolve(str(flipped), needs_template=False)
        except KvchatError as error:
            refused += 1
            assert "\n" not in str(error)
            assert catalog.find(str(flipped)) is None
        assert not list(root.glob("**/.*.new-*"))
    assert refused > 40


def _key_positions(whole: bytes) -> list[int]:
    """Where the model's sizes stand: the four bytes behind each key and its type."""
    keys = [b"block_count", b"embedding_length", b"head_count", b"head_count_kv", b"key_length", b"freq_base"]
    starts = [whole.index(b"." + key) + 1 + len(key) + 4 for key in keys]
    return [start + offset for start in starts for offset in range(4)]


def test_the_writer_of_these_tests_knows_every_tensor_of_a_llama() -> None:
    names = gguf_tensors(tiny_hf_model(tie_word_embeddings=False))
    assert len(names) == 2 * 9 + 3
