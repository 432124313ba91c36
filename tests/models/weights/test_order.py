from __future__ import annotations

import pytest
import torch

from kvchat.models.weights.order import block_rows, blocks, packed

pytestmark = pytest.mark.skipif(not block_rows(), reason="this torch packs in an unknown order")


@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (128, 96), (448, 576)])
def test_codes_are_packed_as_torch_packs_them(rows: int, columns: int) -> None:
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    assert torch.equal(packed(codes), torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1))
    other = codes.clone()
    other[rows // 2, 3] ^= 1
    assert not torch.equal(packed(other), packed(codes))


def test_a_block_holds_two_rows_in_every_byte() -> None:
    codes = torch.randint(0, 16, (128, 32), dtype=torch.uint8)
    half = block_rows() // 2
    found = blocks(packed(codes))
    assert torch.equal(found[0, :, 5] & 15, codes[5])
    assert torch.equal(found[0, :, 5] >> 4, codes[5 + half])
