"""Every causal language model that transformers can build; writes RESULTS.md. Run with `pytest -m sweep_all`."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kvchat.errors import KvchatError
from kvchat.models.loaded import LoadedModel
from kvchat.models.stock import attention, experts
from kvchat.models.stock.network import describe
from tests.families.results import Row, record
from tests.families.shrink import tiny_random_model
from tests.families.sweep import TOLERANCE, Journey, Plain, plain_logits
from tests.families.zoo import VARIANTS

FAMILIES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS})


@pytest.mark.sweep_all
@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_right_or_refused(family: str, device: str, tmp_path: Path) -> None:
    try:
        name, overrides = VARIANTS.get(family, (family, {}))
        model = tiny_random_model(name, **overrides).to(device)
        plain = plain_logits(model)
        plain([3, 4, 5])
    except Exception as error:  # whatever a config or a model's own code raises for sizes it can't take
        record(Row(family, verdict=f"not built: {_in_short(error)}"), device)
        pytest.skip(f"not built: {_in_short(error)}")
    try:
        attention.enable(model)
        experts.enable(model)
        loaded = describe(model, name=family)
    except KvchatError as error:
        record(Row(family, verdict=f"refused: {error.message.removeprefix(f'{family}: ')}"), device)
        return
    differences = _differences(loaded, plain, tmp_path)
    wrong = {stage: value for stage, value in differences.items() if not value <= TOLERANCE}
    rule = loaded.rule
    verdict = "WRONG" if wrong else "right"
    record(Row(family, rule.policy.value, rule.continuation.value, differences, verdict), device)
    assert wrong == {}


def _differences(loaded: LoadedModel, plain: Plain, folder: Path) -> dict[str, float]:
    try:
        way = Journey(loaded, plain, folder)
        way.run()
    except Exception as error:
        record(
            Row(loaded.name, loaded.rule.policy.value, verdict=f"FAILED: {_in_short(error)}"),
            loaded.device.type,
        )
        raise
    return way.differences


def _in_short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
