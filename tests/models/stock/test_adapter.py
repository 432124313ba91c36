from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from kvchat.backends.base import Answer, Done, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.chat.session import Session
from kvchat.commands.doctor import self_test
from kvchat.config import Config, ModelConfig
from kvchat.errors import ModelUnavailableError
from kvchat.models.fingerprint import fingerprint
from kvchat.models.loader import load_model
from kvchat.models.sources.contents import Contents
from kvchat.models.stock.adapter import check_adapter
from kvchat.ui.oneshot import Form, OneShot
from tests.tiny import random_tokens, tiny_folder, transformers_model

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


def save_adapter(
    folder: Path, base: Path, *, seed: int = 0, targets: tuple[str, ...] = ("q_proj", "v_proj")
) -> Path:
    """A random LoRA for the model in `base`, strong enough to change what is said."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(transformers_model(base), LoraConfig(target_modules=list(targets), r=4))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tiny_path: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", tiny_path)


def logits(path: Path, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    settings = ModelConfig(dtype="float32", adapter=str(adapter) if adapter else None)
    loaded = load_model(path, settings)
    return loaded.forward(tokens, loaded.new_state())


@needs_peft
def test_with_an_adapter_the_logits_are_those_of_peft_merged_or_not(tiny_path: Path, adapter: Path) -> None:
    from peft import PeftModel

    tokens = random_tokens(40)
    expected = PeftModel.from_pretrained(transformers_model(tiny_path), str(adapter)).eval()
    with torch.inference_mode():
        unmerged = expected(input_ids=torch.tensor([tokens])).logits[0, -1]
        merged = expected.merge_and_unload()(input_ids=torch.tensor([tokens])).logits[0, -1]
    ours = logits(tiny_path, adapter, tokens)
    assert (ours - unmerged).abs().max() < 1e-4
    assert (ours - merged).abs().max() < 1e-4
    assert (ours - logits(tiny_path, None, tokens)).abs().max() > 1e-2


def ask(config: Config) -> Answer:
    backend = LocalBackend(config)
    try:
        events = list(
            backend.answer([Turn(Role.USER, "tell me of the lazy dog " * 8)], Options(max_tokens=6))
        )
        assert isinstance(events[-1], Done)
        assert backend.info().adapter == (config.model.adapter or "")
        return events[-1].answer
    finally:
        backend.close()


@needs_peft
def test_the_base_and_each_adapter_have_caches_of_their_own(
    make_config: Callable[..., Config], tiny_path: Path, adapter: Path, tmp_path: Path
) -> None:
    other = save_adapter(tmp_path / "other", tiny_path, seed=1)
    answers = {}
    for folder in (None, adapter, other):
        config = make_config(model__adapter=str(folder) if folder else None)
        first, again = ask(config), ask(config)
        assert first.usage.cached_tokens == 0
        assert again.usage.cached_tokens > 40
        assert again.completion == first.completion
        answers[folder] = first.completion
    assert len(set(answers.values())) == 3


@needs_peft
def test_the_mark_is_of_what_an_adapter_says_wherever_it_lies(
    tiny_path: Path, adapter: Path, tmp_path: Path
) -> None:
    def mark(folder: Path | None) -> bytes:
        return fingerprint(tiny_path, {}, contents=Contents(tmp_path / "memory"), adapter=folder)

    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    assert mark(moved) == mark(adapter) != mark(None)
    weights = moved / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert mark(moved) != mark(adapter)


@needs_peft
@pytest.mark.parametrize(
    ("targets", "overrides"),
    [
        (("q_proj",), {"hidden_size": 96}),
        (("q_proj",), {"num_hidden_layers": 4}),
        (("gate_proj",), {"intermediate_size": 48}),
    ],
)
def test_an_adapter_of_another_model_is_refused_in_one_line(
    tiny_path: Path, tmp_path: Path, targets: tuple[str, ...], overrides: dict[str, Any]
) -> None:
    other = tiny_folder(tmp_path / "other", **overrides)
    folder = save_adapter(tmp_path / "adapter", other, targets=targets)
    with pytest.raises(ModelUnavailableError, match="does not fit this llama model") as caught:
        logits(tiny_path, folder, [3, 4])
    assert "\n" not in str(caught.value)
    assert caught.value.remedy == "give the model that it was made for"


@needs_peft
def test_an_adapter_that_changes_the_prompt_instead_of_weights_is_refused(
    tiny_path: Path, tmp_path: Path
) -> None:
    from peft import PromptTuningConfig, get_peft_model

    base = transformers_model(tiny_path)
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "soft"
    )
    with pytest.raises(ModelUnavailableError, match="changes the prompt"):
        logits(tiny_path, tmp_path / "soft", [3, 4])


def test_a_folder_without_an_adapter_is_refused_before_the_model_is_loaded(
    tiny_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelUnavailableError, match="there is no adapter folder"):
        logits(tiny_path, tmp_path / "nowhere", [3])
    with pytest.raises(ModelUnavailableError, match=r"no adapter: it has no adapter_config\.json"):
        logits(tiny_path, tiny_path, [3])
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnavailableError, match=r"it has no adapter_model\.safetensors"):
        check_adapter(tmp_path)


def test_without_peft_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ModelUnavailableError, match=r"pip install 'kvchat\[adapters\]'"):
        check_adapter(tmp_path, find_spec=lambda name: None)


@needs_peft
def test_an_adapter_is_named_where_the_model_is(make_config: Callable[..., Config], adapter: Path) -> None:
    out = io.StringIO()
    with closing(LocalBackend(make_config(model__adapter=str(adapter)))) as backend:
        found = {finding.name: finding.value for finding in self_test(backend)}
        shot = OneShot(
            Session(backend, Options(max_tokens=2)), Form(json=True), stdout=out, stderr=io.StringIO()
        )
        assert shot.run(["hello"]) == 0
    assert found["adapter"] == json.loads(out.getvalue())["adapter"] == str(adapter)
