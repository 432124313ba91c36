import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvchat.cache.block import KVLayout
from kvchat.cache.codec import allocate, make_codec, stretches

BLOCK = 4
LAYOUTS = [
    KVLayout(((3, 8), (3, 8), (1, 5), (2, 7)), dtype) for dtype in ("float32", "bfloat16", "float16")
] + [KVLayout(((1, 3),), "bfloat16")]


def random_arena(layout: KVLayout, capacity: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    dtype = getattr(torch, layout.dtype)
    return [torch.randn(heads, capacity, dim).mul(3).to(dtype) for heads, dim in layout.planes]


def round_trip(
    name: str, layout: KVLayout, arena: list[torch.Tensor], block_size: int = BLOCK
) -> list[torch.Tensor]:
    codec = make_codec(name, layout, block_size)
    num_blocks = arena[0].shape[1] // block_size
    buffer = allocate(num_blocks * codec.block_bytes)
    codec.encode(arena, 0, buffer)
    back = [torch.full_like(plane, torch.nan) for plane in arena]
    codec.decode(buffer, back, 0, first=0, end=num_blocks * block_size)
    return back


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_gives_back_every_bit(layout):
    arena = random_arena(layout, 12)
    arena[0][0, 0, 0] = torch.nan
    arena[0][0, 1, 0] = torch.inf
    for plane, back in zip(arena, round_trip("raw", layout, arena), strict=True):
        bits = {4: torch.int32, 2: torch.int16}[plane.element_size()]
        assert torch.equal(plane.view(bits), back.view(bits))


def test_raw_keeps_the_bytes_of_a_block_together():
    layout = LAYOUTS[0]
    arena = random_arena(layout, 12)
    codec = make_codec("raw", layout, BLOCK)
    whole, second = allocate(3 * codec.block_bytes), allocate(codec.block_bytes)
    codec.encode(arena, 0, whole)
    codec.encode(arena, BLOCK, second)
    assert codec.block_bytes == layout.bytes_per_token * BLOCK
    assert torch.equal(whole[codec.block_bytes : 2 * codec.block_bytes], second)


@pytest.mark.parametrize("name", ["raw", "int8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_token_range_is_decoded_and_nothing_beside_it(name, layout):
    arena = random_arena(layout, 12)
    codec = make_codec(name, layout, BLOCK)
    buffer = allocate(3 * codec.block_bytes)
    codec.encode(arena, 0, buffer)
    whole = round_trip(name, layout, arena)
    for first in range(12):
        for end in range(first, 13):
            back = [torch.full_like(plane, torch.nan) for plane in arena]
            codec.decode(buffer, back, first, first=first, end=end)
            for plane, expected in zip(back, whole, strict=True):
                assert torch.equal(plane[:, first:end], expected[:, first:end])
                assert plane[:, :first].isnan().all() and plane[:, end:].isnan().all()


@pytest.mark.parametrize("name", ["raw", "int8"])
def test_a_run_is_read_from_and_written_to_any_place_of_the_arena(name):
    arena = random_arena(LAYOUTS[0], 20)
    codec = make_codec(name, LAYOUTS[0], BLOCK)
    buffer = allocate(2 * codec.block_bytes)
    codec.encode(arena, 7, buffer)
    back = [torch.full_like(plane, torch.nan) for plane in arena]
    codec.decode(buffer, back, 11, first=1, end=7)
    for plane, expected in zip(back, arena, strict=True):
        assert torch.allclose(plane[:, 11:17], expected[:, 8:14], atol=0.1)
        assert plane[:, :11].isnan().all() and plane[:, 17:].isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_int8_errs_by_at_most_half_a_step_and_what_two_roundings_add(layout):
    arena = random_arena(layout, 12)
    for plane, back in zip(arena, round_trip("int8", layout, arena), strict=True):
        largest = plane.float().abs().amax(-1, keepdim=True)
        rounding = torch.finfo(plane.dtype).eps * largest
        assert (
            (back.float() - plane.float()).abs() <= largest / 127 * 0.5 + largest * 2**-10 + rounding
        ).all()


def test_int8_takes_half_the_bytes_of_16_bits_and_a_scale():
    layout = KVLayout(((3, 64),) * 4, "bfloat16")
    assert make_codec("int8", layout, 16).block_bytes == 16 * 4 * 3 * (64 + 2)


def test_int8_keeps_neighbours_of_nan_and_infinity():
    layout = KVLayout(((1, 4),), "float32")
    arena = [
        torch.tensor([[[1.0, torch.nan, -torch.inf, torch.inf], [1, 2, 3, 4], [torch.nan] * 4, [0.0] * 4]])
    ]
    (back,) = round_trip("int8", layout, arena)
    assert torch.allclose(back[0, 0], torch.tensor([1.0, 0.0, -1.0, 1.0]), atol=1e-3)
    assert torch.allclose(back[0, 1], arena[0][0, 1], atol=0.02)
    assert (back[0, 2:] == 0).all()


@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-2, 1e4, 1e30])
def test_int8_stays_finite_and_close_at_any_size(size):
    layout = KVLayout(((1, 4),), "float32")
    arena = [torch.tensor([[[1.0, -0.5, 0.25, 0.0]] * 4]) * size]
    (back,) = round_trip("int8", layout, arena)
    assert back.isfinite().all()
    if 1e-2 <= size <= 1e4:
        assert torch.allclose(back, arena[0], atol=size / 100)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9))
def test_spans_cover_a_range_once_and_in_order(start, length, block_size):
    covered = [
        (span.first_block + number) * block_size + span.offset + token
        for span in stretches(start, start + length, block_size)
        for number in range(span.num_blocks)
        for token in range(span.num_tokens)
    ]
    assert covered == list(range(start, start + length))
    assert len(list(stretches(start, start + length, block_size))) <= 3
