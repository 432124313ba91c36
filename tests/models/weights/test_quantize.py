from __future__ import annotations

import pytest
import torch

from kvchat.errors import UsageError
from kvchat.models.weights.choice import choose_weights, why_no_integers
from kvchat.models.weights.matrix import IntegerMatrix
from kvchat.models.weights.mode import WeightsMode
from kvchat.models.weights.projection import LIKELIEST, MAX_ROWS, Projection
from kvchat.models.weights.quantize import (
    GROUP,
    GROUPS_OF_8_BITS,
    Integers,
    below_one_another,
    fits,
    planes,
    quantize,
)

CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(
    bool(why_no_integers(CPU, torch.bfloat16)), reason="this processor has no fast integer kernel"
)


def matrix(integers: Integers) -> IntegerMatrix:
    return IntegerMatrix(planes(integers))


def values(integers: Integers) -> torch.Tensor:
    """What the planes stand for, [rows, columns]."""
    of = matrix(integers)
    return of.values(0, of.rows, torch.empty(of.columns, of.rows)).t()


def weight(rows: int = 128, columns: int = 96, *, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, columns) * torch.rand(rows, 1)


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left.float() - right.float()).norm() / right.float().norm())


@pytest.mark.parametrize(("mode", "bound"), [(WeightsMode.INT8, 0.008), (WeightsMode.INT4, 0.1)])
def test_the_nearest_integers_are_near(mode: WeightsMode, bound: float) -> None:
    assert 0 < relative(values(quantize(weight(), mode)), weight()) < bound


def test_no_group_is_off_by_more_than_half_a_step() -> None:
    stored = quantize(weight(), WeightsMode.INT4)
    steps = stored.scale.repeat_interleave(GROUP, dim=1)
    off = (values(stored) - weight()).abs()
    assert bool((off <= 0.6 * steps + 0.01 * weight().abs()).all())


@pytest.mark.parametrize("mode", [WeightsMode.INT8, WeightsMode.INT4])
def test_equal_weights_are_no_division_by_zero(mode: WeightsMode) -> None:
    for value in (0.0, 3.0):
        found = values(quantize(torch.full((64, 32), value), mode)).unique()
        assert torch.allclose(found, torch.tensor([value]), rtol=2**-8)  # which is what a scale is rounded to


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", [WeightsMode.INT8, WeightsMode.INT4])
@pytest.mark.parametrize("rows", [1, 3, MAX_ROWS, MAX_ROWS + 1, 40])
def test_few_rows_and_many_are_multiplied_by_the_same_values(
    mode: WeightsMode, rows: int, dtype: torch.dtype
) -> None:
    parts = [quantize(weight(seed=1), mode), quantize(weight(seed=2), mode)]
    bias = torch.randn(256, dtype=dtype)
    x = torch.randn(rows, 96, dtype=dtype)
    truth = x.double() @ torch.cat([values(part) for part in parts]).double().T + bias.double()
    found = Projection(None, bias, [matrix(part) for part in parts])(x)
    assert found.dtype == dtype
    assert relative(found, truth) < 5e-3
    assert relative(Projection(None, bias, [matrix(part) for part in parts[::-1]])(x), truth) > 0.1


@needs_kernel
def test_matrices_of_4_and_of_8_bits_stand_below_one_another_each_with_its_own_bits() -> None:
    parts = [quantize(weight(seed=1), WeightsMode.INT4), quantize(weight(seed=2), WeightsMode.INT8)]
    x = torch.randn(1, 96, dtype=torch.bfloat16)
    both = Projection(None, None, [matrix(part) for part in parts])
    assert [len(of.planes) for of in both.matrices] == [1, 2]
    truth = x.double() @ torch.cat([values(part) for part in parts]).double().T
    assert relative(both(x), truth) < 5e-3
    assert relative(both.given(x.expand(16, -1)), truth.expand(16, -1)) < 5e-3


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(128, 96), (1088, 256), (4096, 2048)])
def test_a_given_row_has_the_same_bits_in_any_company_and_whether_values_are_kept_or_not(
    rows: int, columns: int, dtype: torch.dtype
) -> None:
    of = matrix(quantize(weight(rows, columns), WeightsMode.INT4))
    made, kept = Projection(None, None, [of]), Projection(None, None, [of], keeps=True)
    x = torch.randn(72, columns, dtype=dtype)
    whole = made.given(x)
    assert torch.equal(kept.given(x), whole)
    assert torch.equal(kept.given(x), whole)
    assert kept.num_bytes > rows * columns * dtype.itemsize > made.num_bytes
    if dtype == torch.float32:  # bfloat16 is a matter of the processor, and checked when a model is loaded
        assert all(torch.equal(made.given(x[:few]), whole[:few]) for few in (8, 16, 64))


@needs_kernel
@pytest.mark.parametrize("mode", [WeightsMode.INT8, WeightsMode.INT4])
@pytest.mark.parametrize("columns", [96, 320, 512])
def test_some_rows_of_a_matrix_are_those_of_the_whole(mode: WeightsMode, columns: int) -> None:
    of = matrix(quantize(weight(192, columns), mode))
    whole = of.values(0, 192, torch.empty(columns, 192)).t()
    wanted = torch.tensor([0, 191, 5, 31, 32, 63, 64, 5])
    assert torch.equal(of.take(wanted), whole[wanted])
    assert torch.equal(of.values(64, 128, torch.empty(columns, 64)).t(), whole[64:128])
    narrow = of.values(0, 192, torch.empty(columns, 192, dtype=torch.bfloat16)).t()
    assert torch.equal(narrow, whole.bfloat16())


@needs_kernel
def test_integers_made_of_a_part_of_the_rows_are_those_of_the_whole() -> None:
    whole, parts = planes(quantize(weight(192), WeightsMode.INT8)), [weight(192)[:64], weight(192)[64:]]
    joined = below_one_another([planes(quantize(part, WeightsMode.INT8)) for part in parts])
    for one, other in zip(whole, joined, strict=True):
        assert torch.equal(one.packed, other.packed) and torch.equal(one.scales, other.scales)


@pytest.mark.parametrize(("columns", "group"), [(512, 256), (384, 128), (576, 64), (96, 32)])
def test_8_bits_made_here_share_a_scale_in_the_largest_group_that_divides_a_row(
    columns: int, group: int
) -> None:
    made = quantize(weight(64, columns), WeightsMode.INT8)
    assert columns // made.scale.shape[1] == group in GROUPS_OF_8_BITS
    assert relative(values(made), weight(64, columns)) < 0.012


@needs_kernel
@pytest.mark.parametrize(("shift", "bits"), [(0, 4), (8, 4), (0, 5), (16, 5), (128, 8)])
def test_a_scale_that_bfloat16_holds_loses_nothing_in_the_planes(shift: int, bits: int) -> None:
    torch.manual_seed(shift)
    codes = torch.randint(0, 2**bits, (64, 64), dtype=torch.uint8)
    scale = torch.full((64, 2), 0.25)
    minimum = torch.full((64, 2), 0.0 if shift else -1.0)
    stored = Integers(codes, scale, minimum, shift=shift, bits=bits)
    exact = (codes.float() - shift) * 0.25 + minimum.repeat_interleave(GROUP, dim=1)
    assert torch.equal(values(stored), exact)
    eye = torch.eye(64, dtype=torch.bfloat16)[:MAX_ROWS]
    projection = Projection(None, None, [matrix(stored)])
    assert torch.equal(projection(eye).float(), exact.T[:MAX_ROWS])


def test_what_rounding_a_scale_loses_is_made_up_for_on_average() -> None:
    torch.manual_seed(0)
    codes = torch.randint(10, 16, (64, 256), dtype=torch.uint8)
    scale = torch.rand(64, 8) + 0.5
    stored = Integers(codes, scale, -8 * scale, shift=0, bits=4)
    exact = (codes.float() - 8) * scale.repeat_interleave(GROUP, dim=1)
    naive = (codes.float() - 8) * scale.bfloat16().float().repeat_interleave(GROUP, dim=1)
    off, naively_off = (
        (found - exact).view(64, 8, GROUP).mean(-1).abs().mean() for found in (values(stored), naive)
    )
    assert off < 0.5 * naively_off


@needs_kernel
@pytest.mark.parametrize("with_planes", [True, False])
@pytest.mark.parametrize("rows", [1, 5, MAX_ROWS, 40])
def test_the_greatest_scores_are_not_rounded(with_planes: bool, rows: int) -> None:
    stored = quantize(weight(rows=512, seed=1), WeightsMode.INT8)
    dense, bias = values(stored).bfloat16(), torch.randn(512, dtype=torch.bfloat16)
    head = Projection(None, bias, [matrix(stored)]) if with_planes else Projection(dense, bias)
    x = torch.randn(rows, 96, dtype=torch.bfloat16) * 4
    truth = x.double() @ (values(stored) if with_planes else dense).double().T + bias.double()
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
    assert "float16" in why_no_integers(CPU, torch.float16)


@needs_kernel
def test_float32_and_bfloat16_are_both_multiplied_by_integers() -> None:
    assert not why_no_integers(CPU, torch.float32) and not why_no_integers(CPU, torch.bfloat16)


def test_what_stands_in_the_way_of_integers_is_said_and_never_passed_over_when_they_were_asked_for() -> None:
    assert choose_weights("auto", obstacle="", is_own=True).is_own
    assert choose_weights("auto", obstacle="no kernel", is_own=True).why == "no kernel"
    with pytest.raises(UsageError, match="no kernel"):
        choose_weights("int8", obstacle="no kernel", is_own=False)


@needs_kernel
def test_a_projection_knows_what_one_row_reads() -> None:
    stored = quantize(weight(), WeightsMode.INT4)
    assert Projection(values(stored).bfloat16()).read_bytes == 128 * 96 * 2
    assert Projection(None, None, [matrix(stored)]).read_bytes == 128 * 96 // 2 + 128 * 3 * 4
