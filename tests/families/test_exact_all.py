"""Of every family whose KV is reused in blocks: `kvchat bench exact` on a tiny model. Writes RESULTS-exact.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
import transformers

from kvchat.bench.exact import CONTROL, ExactRow, InexactError, check
from kvchat.bench.ways import WAYS
from kvchat.errors import KvchatError
from kvchat.models.lean.network import LeanNetwork
from kvchat.models.loaded import LoadedModel
from kvchat.models.probe import probe
from kvchat.models.reuse import BLOCKS
from tests.families.exact import GGUFS, LEAN, exact_rows, loaded_model
from tests.families.results import replace_row
from tests.families.test_sweep_all import FAMILIES

FEW = {"qwen3, our own network": 3, "gemma3_text": 2, "qwen3_moe": 2}
"""Families that are measured in every run of the tests, and on how many prompts."""
_CHUNKS = "chunks"
_HEAD = f"""\
# To the bit: every family whose KV is reused in blocks

Written by `pytest -m sweep_all tests/families/test_exact_all.py`: what `kvchat bench exact` measures, on a tiny random model of each
family as it is loaded by default on the processor that is named here. Three prompts, of 65 to 1,100 tokens, one of them a chat with
generated turns: in how many of them an answer that takes up KV in this way has the ids and, at its first and tenth token,
the bits of an answer computed from scratch; and in how many a flipped bit of KV was found (it may be one of a token that
a layer chooses not to look at, or whose weight is all but nothing). The chunks are of 16 to 1,024 tokens.

transformers {transformers.__version__}, torch {torch.__version__.split("+")[0]}, {torch.backends.cpu.get_cpu_capability()}

| family | network | numbers | {" | ".join(WAYS)} | {_CHUNKS} | flipped bit | verdict |
|---|---|---|{"---|" * len(WAYS)}---|---|---|
"""


@pytest.mark.parametrize("family", FEW)
def test_a_family_gives_the_same_bits_in_every_way_in_which_its_kv_is_reused(
    family: str, tmp_path: Path
) -> None:
    model = loaded_model(family, tmp_path, "float32")
    assert model.is_exact and isinstance(model.network, LeanNetwork) == (family in LEAN)
    rows = exact_rows(model, FEW[family])
    check(rows)
    assert {row.way for row in rows} > {*WAYS, CONTROL}


@pytest.mark.sweep_all
@pytest.mark.timeout(400)
@pytest.mark.parametrize("family", [*LEAN, *GGUFS, *FAMILIES])
def test_every_family_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    try:
        model = loaded_model(family, tmp_path, "auto")
    except KvchatError as error:
        pytest.skip(error.message)
    except Exception as error:  # whatever a config or a model's own code raises for sizes it can't take
        pytest.skip(f"not built: {error}")
    if model.rule != BLOCKS:
        pytest.skip("not reused in blocks")
    if not model.is_exact or probe(model).is_exact is False:
        _record(family, model, [], "not promised")
        return
    try:
        rows = exact_rows(model, 3)
        check([row for row in rows if row.way != CONTROL])
        if not _sees_a_flip(rows):  # attention of a tiny model may lie below what bfloat16 resolves
            whole = loaded_model(family, tmp_path / "whole", "float32")
            assert _sees_a_flip(exact_rows(whole, 3)), "no flip was found"
    except InexactError as error:
        _record(family, model, rows, f"WRONG: {error.message.partition(': ')[2]}")
        raise
    except Exception as error:
        _record(family, model, [], f"FAILED: {type(error).__name__}: {error}"[:160])
        raise
    _record(family, model, rows, "the same bits")


def _sees_a_flip(rows: Iterable[ExactRow]) -> bool:
    return all(row.same_bits < row.prompts for row in rows if row.way == CONTROL)


def test_keys_of_an_indexer_in_float32_come_back_from_the_cache_as_they_were(tmp_path: Path) -> None:
    model = loaded_model("dots3_note_text", tmp_path, "bfloat16")
    check([row for row in exact_rows(model, 2) if row.way != CONTROL])


def _record(family: str, model: LoadedModel, rows: Sequence[ExactRow], verdict: str) -> None:
    network = "our own" if isinstance(model.network, LeanNetwork) else "transformers'"
    numbers = f"{str(model.dtype).removeprefix('torch.')} {model.weights.mode.value}"
    cells = [family, network, numbers, *(_share(row for row in rows if row.way == way) for way in WAYS)]
    cells.append(_share(row for row in rows if row.way.startswith(_CHUNKS)))
    found = [f"{row.prompts - row.same_bits}/{row.prompts}" for row in rows if row.way == CONTROL]
    line = " ".join(" | ".join([*cells, *(found or [""]), verdict]).split())
    replace_row("RESULTS-exact.md", _HEAD, family, f"| {line} |")


def _share(rows: Iterable[ExactRow]) -> str:
    """In how many prompts the bits were the same, of how many."""
    counts = [(row.same_bits, row.prompts) for row in rows]
    return f"{sum(a for a, _ in counts)}/{sum(b for _, b in counts)}" if counts else ""
