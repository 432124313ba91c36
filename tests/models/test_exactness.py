"""The law: a token's bits depend on its place and its kind, never on how many were computed with it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvchat.models.kinds import as_generated
from kvchat.models.lean.attention import Attention
from kvchat.models.lean.flash import kernel
from kvchat.models.loaded import LoadedModel
from kvchat.models.weights.floats import ROWS_MULTIPLE, has_apart, laid_out, linear
from kvchat.models.weights.mode import WeightsMode
from tests.models.lean.test_network import KINDS, WIDE, folder_of, loaded_from
from tests.tiny import random_tokens

LENGTH = 450
RUNS = [(0, 150, False), (150, 171, True), (171, 430, False), (430, LENGTH, True)]
MODELS: dict[tuple[str, str, str], LoadedModel] = {}
MODES = [("float32", "native"), ("float32", "int8"), ("float32", "int4")]
MODES += [("bfloat16", "native"), ("bfloat16", "int8"), ("bfloat16", "int4")]


def talk() -> list[int]:
    tokens = random_tokens(LENGTH, seed=3)
    return [t for a, b, is_said in RUNS for t in (as_generated(tokens[a:b]) if is_said else tokens[a:b])]


Computed = tuple[torch.Tensor, list[torch.Tensor]]


@pytest.fixture(scope="module", params=MODES, ids=" ".join)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, Computed]:
    dtype, weights = request.param
    folder = folder_of("llama", tmp_path_factory.mktemp("exact") / "model", **WIDE)
    loaded = loaded_from(folder, dtype, weights=weights)
    return loaded, computed(loaded, set())


@pytest.fixture
def loaded(reference: tuple[LoadedModel, Computed]) -> LoadedModel:
    return reference[0]


def computed(loaded: LoadedModel, cuts: set[int]) -> Computed:
    """The last logits and all KV of `talk`, in forwards that end where kinds change and at `cuts`."""
    tokens, state = talk(), loaded.new_state()
    edges = {0, LENGTH, *cuts, *(end for _, end, _ in RUNS)}
    for start, end, is_said in RUNS:
        edges |= set(range(start, end, loaded.network.generated_at_once)) if is_said else set()
    for start, end in pairwise(sorted(edges)):
        logits = loaded.forward(tokens[start:end], state)
    return logits, [plane[:, :LENGTH].clone() for plane in state.planes]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, LENGTH - 1), max_size=25))
def test_wherever_forwards_end_all_kv_and_the_logits_are_the_same_to_the_bit(
    reference: tuple[LoadedModel, Computed], cuts: set[int]
) -> None:
    loaded, (expected, kept) = reference
    logits, planes = computed(loaded, cuts)
    assert torch.equal(logits, expected)
    assert all(torch.equal(plane, other) for plane, other in zip(planes, kept, strict=True))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("weights", ["native", "int8"])
def test_several_threads_keep_the_law(weights: str, threads: int, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    sizes = WIDE | {"intermediate_size": 2048, "num_hidden_layers": 2, "initializer_range": 0.3}
    try:
        loaded = loaded_from(folder_of("llama", tmp_path / "model", **sizes), "float32", weights=weights)
        logits, planes = computed(loaded, set())
        again, others = computed(loaded, {1, 2, 63, 64, 65, 153, 301, 333, 400})
    finally:
        torch.set_num_threads(before)
    assert torch.equal(again, logits)
    assert all(torch.equal(plane, other) for plane, other in zip(planes, others, strict=True))


def test_one_other_bit_of_kv_changes_the_logits(loaded: LoadedModel) -> None:
    tokens, state = talk()[:150], loaded.new_state()
    loaded.forward(tokens[:149], state)
    before = loaded.forward(tokens[149:], state)
    state.keep(149)
    plane = state.planes[1]
    plane[0, 120, 3] = torch.nextafter(plane[0, 120, 3], torch.tensor(9.0, dtype=plane.dtype)) * 2
    assert not torch.equal(loaded.forward(tokens[149:], state), before)


def test_what_is_generated_is_no_other_token_but_may_round_otherwise(loaded: LoadedModel) -> None:
    tokens = random_tokens(60, seed=5)
    found = []
    for kind in (list, as_generated):
        state = loaded.new_state()
        loaded.forward(tokens[:59], state)
        found.append(loaded.forward(kind(tokens[59:]), state))
    is_plain = loaded.dtype == torch.float32 and loaded.weights.mode is WeightsMode.NATIVE
    assert (found[0] - found[1]).norm() / found[0].norm() < (1e-5 if is_plain else 0.1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama"])
def test_every_family_of_ours_computes_tokens_the_same_in_any_company(kind: str, tmp_path: Path) -> None:
    loaded = loaded_from(folder_of(kind, tmp_path / "model"))
    logits, planes = computed(loaded, set())
    again, others = computed(loaded, {1, 2, 9, 63, 64, 65, *range(150, 190, 7), 302, 400, 433})
    assert torch.equal(again, logits)
    assert all(torch.equal(plane, other) for plane, other in zip(planes, others, strict=True))


def attended(task: Attention, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    held = [states[:, : task.reach] for states in (keys, values)]
    held = held if task.is_flat else [states[None] for states in held]
    return kernel(task, task.reach)(query, *held).reshape(query.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(9, 3, 64), (4, 2, 128), (8, 8, 32), (12, 2, 128), (8, 1, 256)])
@pytest.mark.parametrize("place", [0, 64, 100, 250, 511, 700, 1300, 2900])
def test_given_rows_attend_the_same_in_any_company(
    dtype: torch.dtype, sizes: tuple[int, int, int], place: int
) -> None:
    torch.manual_seed(place)
    last, (heads, kv_heads, dim) = place + 40, sizes
    query = torch.randn(last, heads, dim, dtype=dtype)
    keys, values = (torch.randn(kv_heads, 4096, dim, dtype=dtype) for _ in range(2))
    first = max(0, last - 300)
    some = [(place, last), (place, place + 1), (last - 1, last)]
    some += [(max(first, place - 100), place + 8), (max(first, place - 3), place + 29)]
    together, *others = (
        attended(Attention(*sizes, end - start, end, dtype, is_given=True), query[start:end], keys, values)
        for start, end in [(first, last), *some]
    )
    for (start, end), found in zip(some, others, strict=True):
        assert torch.equal(found, together[start - first : end - first])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(9, 3, 64), (32, 8, 128), (8, 1, 256)])
@pytest.mark.parametrize("place", [1, 120, 508, 1500, 2500, 4090])
def test_guesses_attend_as_if_each_came_alone(
    exact: bool, dtype: torch.dtype, sizes: tuple[int, int, int], place: int
) -> None:
    torch.manual_seed(place)
    heads, kv_heads, dim = sizes
    query = torch.randn(14, heads, dim, dtype=dtype)
    keys, values = (torch.randn(kv_heads, 4608, dim, dtype=dtype) for _ in range(2))
    few = [(0, num) for num in (2, 3, 7, 14)]
    found = [
        attended(
            Attention(*sizes, end - start, place + end, dtype, exact=exact, is_apart=True),
            query[start:end],
            keys,
            values,
        )
        for start, end in [*few, *((one, one + 1) for one in range(14))]
    ]
    alone = torch.cat(found[len(few) :])
    assert all(torch.equal(rows, alone[: len(rows)]) for rows in found[: len(few)])


_AVX2 = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
_WITHOUT_AMX = """
import sys, torch
torch.cpu._is_amx_tile_supported = lambda: False
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="it has no more than AVX2")
@pytest.mark.parametrize(
    "environment", [_AVX2, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}], ids=["AVX2", "no AMX"]
)
def test_the_law_holds_with_the_instructions_of_other_processors(environment: dict[str, str]) -> None:
    laws = "in_any_company or as_if_each_came_alone or do_not_depend or wherever_forwards_end"
    asked = ["-q", "-p", "no:cacheprovider", __file__, "-k", laws]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_AMX, *asked],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_context_can_be_filled_to_its_end_from_any_place(tmp_path: Path) -> None:
    loaded = replace(loaded_from(folder_of("llama", tmp_path / "model", **WIDE)), context=64)
    tokens = random_tokens(64)
    whole = loaded.forward(tokens, loaded.new_state())
    for held in (1, 15, 63):
        state = loaded.new_state()
        loaded.forward(tokens[:held], state)
        assert torch.equal(loaded.forward(tokens[held:], state), whole)


SHAPES = pytest.mark.parametrize(("out", "columns"), [(960, 576), (576, 1536), (33, 17), (256, 4096)])


@SHAPES
@pytest.mark.skipif(not has_apart(torch.float32), reason="this torch has no such product")
def test_a_products_rows_do_not_depend_on_how_many_there_are(out: int, columns: int) -> None:
    torch.manual_seed(out)
    weight, x = torch.randn(out, columns), torch.randn(512, columns)
    whole = linear(x, weight)
    for rows in (*range(1, 20), 31, 64, 104, 250, 504):
        for start in (0, 1, 37):
            some = slice(start, min(start + rows, 512))
            for form in (laid_out(weight), weight, weight.t().contiguous().t()):
                assert torch.equal(linear(x[some].clone(), form), whole[some])


@SHAPES
def test_a_products_rows_do_not_depend_on_how_many_eights_there_are(out: int, columns: int) -> None:
    torch.manual_seed(out)
    weight = torch.randn(out, columns, dtype=torch.bfloat16)
    x = torch.randn(512, columns, dtype=torch.bfloat16)
    whole = linear(x, weight)
    for rows in (8, 16, 24, 40, 64, 104, 128, 256, 504):
        for start in (0, 8, 37):
            some = slice(start, min(start + rows, 512 - start))
            if (some.stop - some.start) % ROWS_MULTIPLE == 0:
                assert torch.equal(linear(x[some].clone(), weight), whole[some])
