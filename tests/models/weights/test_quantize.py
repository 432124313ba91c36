from __future__ import annotations

import pytest
import torch

from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.quantize import (
    GROUP,
    LIKELIEST,
    MAX_ROWS,
    Integers,
    Projection,
    dequantize,
    fits,
    planes,
    quantize,
    why_no_integers,
)

CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(
    bool(why_no_integers(CPU, torch.bfloat16)), reason="this processor has no fast integer kernel"
)


def weight(rows: int = 128, columns: int = 96, *, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, columns) * torch.rand(rows, 1)


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left.float() - right.float()).norm() / right.float().norm())


@pytest.mark.parametrize(("mode", "bound"), [(WeightsMode.INT8, 0.008), (WeightsMode.INT4, 0.1)])
def test_the_nearest_integers_are_near(mode: WeightsMode, bound: float) -> None:
    assert 0 < relative(dequantize([quantize(weight(), mode)]), weight()) < bound


def test_no_group_is_off_by_more_than_half_a_step() -> None:
    stored = quantize(weight(), WeightsMode.INT4)
    steps = stored.scale.repeat_interleave(GROUP, dim=1)
    off = (dequantize([stored]).float() - weight()).abs()
    assert bool((off <= 0.6 * steps + 0.01 * weight().abs()).all())


@pytest.mark.parametrize("mode", [WeightsMode.INT8, WeightsMode.INT4])
def test_equal_weights_are_no_division_by_zero(mode: WeightsMode) -> None:
    for value in (0.0, 3.0):
        assert torch.equal(dequantize([quantize(torch.full((64, 32), value), mode)]).float().unique(), torch.tensor([value]))  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("mode", [WeightsMode.INT8, WeightsMode.INT4])
@pytest.mark.parametrize("rows", [1, 3, MAX_ROWS, MAX_ROWS + 1, 40])
def test_few_rows_and_many_are_multiplied_by_the_same_values(mode: WeightsMode, rows: int) -> None:
    parts = [quantize(weight(seed=1), mode), quantize(weight(seed=2), mode)]
    values, bias = dequantize(parts), torch.randn(256, dtype=torch.bfloat16)
    x = torch.randn(rows, 96, dtype=torch.bfloat16)
    truth = x.double() @ values.double().T + bias.double()
    assert relative(Projection(values, bias, planes(parts))(x), truth) < 5e-3
    assert relative(Projection(values, bias, planes(parts[::-1]))(x[:1]), truth[:1]) > 0.1


@needs_kernel
def test_matrices_of_4_and_of_8_bits_stand_below_one_another() -> None:
    parts = [quantize(weight(seed=1), WeightsMode.INT4), quantize(weight(seed=2), WeightsMode.INT8)]
    x = torch.randn(1, 96, dtype=torch.bfloat16)
    out = Projection(dequantize(parts), None, planes(parts))(x)
    assert len(planes(parts)) == 2 and len(planes(parts[:1])) == 1
    assert relative(out, x.double() @ dequantize(parts).double().T) < 5e-3


@needs_kernel
@pytest.mark.parametrize(("shift", "bits"), [(0, 4), (8, 4), (0, 5), (16, 5), (128, 8)])
def test_a_scale_that_bfloat16_holds_loses_nothing_in_the_planes(shift: int, bits: int) -> None:
    torch.manual_seed(shift)
    codes = torch.randint(0, 2**bits, (64, 64), dtype=torch.uint8)
    scale = torch.full((64, 2), 0.25)
    minimum = torch.full((64, 2), 0.0 if shift else -1.0)
    stored = Integers(codes, scale, minimum, shift=shift, bits=bits)
    exact = (codes.float() - shift) * 0.25 + minimum.repeat_interleave(GROUP, dim=1)
    assert torch.equal(dequantize([stored]).float(), exact)
    eye = torch.eye(64, dtype=torch.bfloat16)[:MAX_ROWS]
    projection = Projection(dequantize([stored]), None, planes([stored]))
    assert torch.equal(projection(eye).float(), exact.T[:MAX_ROWS])


def test_what_rounding_a_scale_loses_is_made_up_for_on_average() -> None:
    torch.manual_seed(0)
    codes = torch.randint(10, 16, (64, 256), dtype=torch.uint8)
    scale = torch.rand(64, 8) + 0.5
    stored = Integers(codes, scale, -8 * scale, shift=0, bits=4)
    exact = (codes.float() - 8) * scale.repeat_interleave(GROUP, dim=1)
    naive = (codes.float() - 8) * scale.bfloat16().float().repeat_interleave(GROUP, dim=1)
    off, naively_off = (
        (values.float() - exact).view(64, 8, GROUP).mean(-1).abs().mean()
        for values in (dequantize([stored]), naive.bfloat16())
    )
    assert off < 0.5 * naively_off


@needs_kernel
@pytest.mark.parametrize("with_planes", [True, False])
@pytest.mark.parametrize("rows", [1, 5, MAX_ROWS, 40])
def test_the_greatest_scores_are_not_rounded(with_planes: bool, rows: int) -> None:
    parts = [quantize(weight(rows=512, seed=1), WeightsMode.INT8)]
    values, bias = dequantize(parts), torch.randn(512, dtype=torch.bfloat16)
    head = Projection(values, bias, planes(parts) if with_planes else ())
    x = torch.randn(rows, 96, dtype=torch.bfloat16) * 4
    truth = x.double() @ values.double().T + bias.double()
    found, rounded = head.scores(x, exact=True), head.scores(x, exact=False)
    likeliest = truth.topk(LIKELIEST // 2).indices
    assert found.dtype == torch.float32
    assert (found.double() - truth).gather(1, likeliest).abs().max() < 1e-4
    assert (rounded.double() - truth).gather(1, likeliest).abs().max() > 1e-2
    assert relative(found, truth) < relative(rounded, truth) < 5e-3
    if rows <= MAX_ROWS and with_planes:
        assert torch.equal(rounded, torch.cat([head.scores(row[None], exact=False) for row in x]))


def test_what_the_kernel_does_not_take_is_known_before() -> None:
    assert fits(64, 32) and fits(960, 576)
    assert not fits(96, 32) and not fits(64, 48)
    assert why_no_integers(torch.device("cuda"), torch.bfloat16)
    assert "float32" in why_no_integers(CPU, torch.float32)


@needs_kernel
def test_a_projection_knows_what_one_row_reads() -> None:
    parts = [quantize(weight(), WeightsMode.INT4)]
    assert Projection(dequantize(parts)).read_bytes == 128 * 96 * 2
    assert Projection(dequantize(parts), None, planes(parts)).read_bytes == 128 * 96 // 2 + 128 * 3 * 4
