"""A GGUF read by transformers' names: every value as the gguf package has it, in transformers' order."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from kvchat.errors import ModelUnavailableError
from kvchat.models.gguf.checkpoint import GgufCheckpoint
from tests.models.tiny_gguf import HEADS, interleaved, tiny_hf_model, write_gguf

_ALL = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
_ALL += [Type.Q4_K, Type.Q5_K, Type.Q6_K]
_QUERIES, _DOWN = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_names_shapes_and_values_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", tiny_hf_model(family, tie_word_embeddings=tied))
    checkpoint = GgufCheckpoint.open(tmp_path / "tiny.gguf")
    expected = {
        name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    assert checkpoint.names == expected.keys()
    for name, value in expected.items():
        assert checkpoint.shape(name) == tuple(value.shape)
        assert torch.equal(checkpoint.get(name), value)


@pytest.mark.parametrize("kind", _ALL)
def test_values_of_every_type_are_those_of_the_gguf_package(tmp_path: Path, kind: Type) -> None:
    hidden = 256 if kind.name.endswith("_K") else 64
    write_gguf(tmp_path / "tiny.gguf", tiny_hf_model(hidden=hidden), tensor_type=kind)
    checkpoint = GgufCheckpoint.open(tmp_path / "tiny.gguf")
    stored = {item.name: item for item in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    for ours, theirs in ((_QUERIES, "attn_q"), (_DOWN, "ffn_down")):
        expected = torch.from_numpy(gguf.dequantize(stored[f"blk.1.{theirs}.weight"].data, kind).copy())
        values = checkpoint.get(ours).float()
        as_stored = torch.from_numpy(interleaved(values.numpy(), HEADS)) if theirs == "attn_q" else values
        assert torch.equal(as_stored, expected)


@pytest.mark.parametrize("kind", _ALL)
def test_some_rows_are_those_of_the_whole(tmp_path: Path, kind: Type) -> None:
    hidden = 256 if kind.name.endswith("_K") else 64
    write_gguf(tmp_path / "tiny.gguf", tiny_hf_model(hidden=hidden), tensor_type=kind)
    checkpoint, wanted = GgufCheckpoint.open(tmp_path / "tiny.gguf"), torch.tensor([7, 0, 7, 33])
    for name in (_QUERIES, _DOWN):
        whole = checkpoint.get(name)
        found = checkpoint.rows(name, wanted)
        assert found.dtype == whole.dtype
        assert torch.equal(found, whole[wanted])


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q8_0, Type.Q5_K])
def test_integers_of_some_rows_stand_for_the_values_of_these(tmp_path: Path, kind: Type) -> None:
    hidden = 256 if kind.name.endswith("_K") else 64
    write_gguf(tmp_path / "tiny.gguf", tiny_hf_model(hidden=hidden), tensor_type=kind)
    checkpoint = GgufCheckpoint.open(tmp_path / "tiny.gguf")
    for name in (_QUERIES, _DOWN):
        found = checkpoint.integers(name, 16, 48)
        assert found is not None and checkpoint.is_quantised(name)
        codes = (found.codes.float() - found.shift).unflatten(1, (-1, 32))
        values = (codes * found.scale[..., None] + found.minimum[..., None]).flatten(1)
        assert torch.allclose(values, checkpoint.get(name)[16:48], atol=1e-6)


def test_what_is_not_quantised_has_no_integers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tensor_type=Type.F16)
    checkpoint = GgufCheckpoint.open(tmp_path / "tiny.gguf")
    assert checkpoint.integers(_DOWN, 0, 64) is None
    assert not checkpoint.is_quantised(_DOWN)


def test_a_file_of_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", general__architecture="from-the-future")
    with pytest.raises(ModelUnavailableError, match="from-the-future"):
        GgufCheckpoint.open(tmp_path / "tiny.gguf")
