from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import torch

from kvchat.bench.exact import CONTROL, ExactRow, InexactError, check, measure
from kvchat.bench.ways import WAYS
from kvchat.config import Config
from kvchat.models.loaded import LoadedModel

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[ExactRow]:
    from tests.tiny import tiny_config, tiny_folder

    folder = tmp_path_factory.mktemp("exact")
    model = tiny_folder(folder / "model", max_position_embeddings=2048)
    return list(measure(tiny_config(model, folder), num_prompts=10))


def test_every_way_to_an_answer_gives_the_bits_of_a_computation_from_scratch(rows: list[ExactRow]) -> None:
    found = {row.way: row for row in rows}
    assert set(WAYS) < set(found)
    assert all(row.prompts == row.same_ids == row.same_bits for row in rows if row.way != CONTROL)
    assert sum(row.prompts for row in rows if row.way.startswith("chunks")) == 20
    check(rows)


def test_a_turned_bit_of_kv_is_seen_in_every_prompt(rows: list[ExactRow]) -> None:
    (control,) = [row for row in rows if row.way == CONTROL]
    assert (control.prompts, control.same_bits) == (10, 0)


def test_a_difference_and_an_unseen_bit_are_errors(rows: list[ExactRow]) -> None:
    for wrong in (replace(rows[0], same_bits=rows[0].same_bits - 1), ExactRow(CONTROL, 10, 10, 1)):
        with pytest.raises(InexactError, match=wrong.way):
            check([*rows[1:-1], wrong])


def test_a_model_that_never_rounds_alike_is_found_out(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = LoadedModel.logits, count()

    def rounding(self: LoadedModel, tokens: list[int], *arguments: object) -> torch.Tensor:
        return real(self, tokens, *arguments) * (1 + 1e-6 * next(calls))  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedModel, "logits", rounding)
    with pytest.raises(InexactError):
        check(list(measure(make_config(), num_prompts=3)))
