"""What a model's own settings ask of an answer, and a model that computes no numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvchat.backends.asking import effective_options
from kvchat.backends.base import Answer, Done, FinishReason, Notice, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.config import Config
from kvchat.errors import ModelUnavailableError, OutOfMemoryError
from tests.tiny import VOCABULARY, tiny_config, tiny_folder

HELLO = [Turn(Role.USER, "hello")]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., tuple[Answer, list[str]]]]:
    """Ask a tiny model whose generation_config.json says this; the answer, and what was noticed."""
    backends: list[LocalBackend] = []

    def ask(settings: dict[str, Any], **options: Any) -> tuple[Answer, list[str]]:
        folder = tiny_folder(tmp_path / f"model-{len(backends)}")
        stated = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps(stated | settings))
        backends.append(LocalBackend(tiny_config(folder, tmp_path)))
        events = list(backends[-1].answer(HELLO, Options(**options)))
        assert isinstance(events[-1], Done)
        return events[-1].answer, [event.message for event in events if isinstance(event, Notice)]

    yield ask
    for backend in backends:
        backend.close()


def test_a_models_length_and_stop_strings_hold_unless_the_user_says_otherwise(
    ask: Callable[..., tuple[Answer, list[str]]],
) -> None:
    plain, _ = ask({}, max_tokens=12)
    assert ask({"max_new_tokens": 5})[0].completion == plain.completion[:5]
    assert ask({"max_new_tokens": 5}, max_tokens=12)[0].completion == plain.completion
    stop = plain.text[4:6]
    stopped, _ = ask({"stop_strings": [stop]}, max_tokens=12)
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert ask({"stop_strings": stop}, max_tokens=12, stop=("nowhere",))[0].text == stopped.text


@pytest.mark.parametrize("is_stopped", [True, False])
def test_whether_an_answer_in_circles_is_stopped_is_the_users_choice(is_stopped: bool) -> None:
    assert effective_options(Options(), Options(repeat_stop=is_stopped)).repeat_stop is is_stopped


def test_tokens_and_runs_that_a_model_rules_out_do_not_come(
    ask: Callable[..., tuple[Answer, list[str]]],
) -> None:
    plain, _ = ask({}, max_tokens=12)
    first = plain.completion[0]
    for settings in ({"suppress_tokens": [first]}, {"bad_words_ids": [[first]]}):
        assert first not in ask(settings, max_tokens=12)[0].completion
    assert ask({"begin_suppress_tokens": [first]}, max_tokens=12)[0].completion[0] != first
    said = ask({"no_repeat_ngram_size": 1}, max_tokens=12)[0]
    assert len({*said.prompt, *said.completion}) == len(set(said.prompt)) + 12
    second = plain.completion[1]
    assert ask({"eos_token_id": [1, second]})[0].completion == plain.completion[:1]
    longer, _ = ask({"eos_token_id": [1, second], "min_new_tokens": 6}, max_tokens=12)
    assert len(longer.completion) >= 6 and second not in longer.completion[:6]


def test_an_answer_ends_sooner_where_a_model_asks_for_that(
    ask: Callable[..., tuple[Answer, list[str]]],
) -> None:
    plain, _ = ask({}, max_tokens=30)
    unsaid = next(token for token in range(100, 200) if token not in plain.completion)
    settings = {"eos_token_id": [1, unsaid]}
    assert ask(settings, max_tokens=30)[0].completion == plain.completion
    ended, notices = ask(settings | {"exponential_decay_length_penalty": [8, 3.0]}, max_tokens=30)
    assert (ended.finish_reason, notices) == (FinishReason.STOP, [])
    assert 8 < len(ended.completion) < 30
    assert ended.completion == plain.completion[: len(ended.completion)]


def test_what_a_model_asks_for_and_is_not_done_is_said_once(
    ask: Callable[..., tuple[Answer, list[str]]],
) -> None:
    settings = {
        "num_beams": 4,
        "typical_p": 0.5,
        "epsilon_cutoff": 0,
        "max_length": 20,
        "guidance_scale": 1.0,
    }
    _, notices = ask(settings, max_tokens=2)
    (said,) = [notice for notice in notices if "generation_config.json" in notice]
    assert said.endswith("asks for num_beams, typical_p, max_length, which kvchat does not do")
    assert ask({"num_beams": 1, "max_length": 512}, max_tokens=2)[1] == []


def test_tokens_that_a_model_would_force_are_named_once_as_not_done(
    ask: Callable[..., tuple[Answer, list[str]]],
) -> None:
    forced = {"forced_bos_token_id": 5, "forced_eos_token_id": [1], "forced_decoder_ids": [[1, 7]]}
    _, notices = ask(forced | {"renormalize_logits": True}, max_tokens=2)
    (said,) = [notice for notice in notices if "generation_config.json" in notice]
    assert f"asks for {', '.join(forced)}, which kvchat does not do" in said
    assert ask(dict.fromkeys(forced) | {"forced_decoder_ids": []}, max_tokens=2)[1] == []


def test_an_end_that_only_the_tokenizer_names_ends_an_answer(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    backend = LocalBackend(tiny_config(folder, tmp_path))
    backend.info()
    assert 1 in backend._worker.wait().model.engine.loaded.eos_ids
    backend.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "can't be read"),
        ("[]", "it is no JSON object"),
        ('{"temperature": -0.5}', "temperature can't be -0.5"),
        ('{"temperature": "hot"}', "temperature can't be 'hot'"),
        ('{"top_p": NaN}', "top_p can't be nan"),
        ('{"eos_token_id": 1000000000}', "eos_token_id can't be 1000000000"),
        ('{"eos_token_id": {"a": 1}}', "eos_token_id can't be"),
        ('{"bad_words_ids": [1]}', "bad_words_ids can't be"),
        ('{"max_new_tokens": 0}', "max_new_tokens can't be 0"),
        ('{"exponential_decay_length_penalty": [5]}', "exponential_decay_length_penalty can't be"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])  # our own network, and transformers' modules
def test_settings_that_make_no_sense_are_refused_in_one_line(
    tmp_path: Path, content: str, said: str, family: str
) -> None:
    folder = tiny_folder(tmp_path / "model", family=family)
    (folder / "generation_config.json").write_text(content)
    backend = LocalBackend(tiny_config(folder, tmp_path))
    with pytest.raises(ModelUnavailableError) as caught:
        backend.info()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.remedy.endswith(("or remove it", "fetch the model again"))
    backend.close()


@contextmanager
def far_too_large(folder: Path, name: str, factor: float) -> Iterator[LocalBackend]:
    """A model with one tensor multiplied."""
    weights = load_file(folder / "model.safetensors")
    weights[name] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    yield (backend := LocalBackend(tiny_config(folder, folder.parent, model__dtype="float16")))
    backend.close()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_that_computes_no_numbers_says_which_dtype_to_take(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path / "model", family=family)
    with far_too_large(folder, "model.layers.0.mlp.down_proj.weight", 1e6) as backend:
        events: list[object] = []
        with pytest.raises(ModelUnavailableError, match="computes no numbers in float16") as caught:
            events.extend(backend.answer(HELLO, Options(max_tokens=4)))
        assert "--dtype bfloat16 or --dtype float32" in caught.value.remedy
        assert not [event for event in events if isinstance(event, Notice)]


def test_a_model_without_numbers_for_one_token_does_not_blame_what_is_reused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][random.Random(0).randrange(VOCABULARY)] = (
        torch.nan
    )  # a probe's first
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    backend = LocalBackend(tiny_config(folder, tmp_path))
    with pytest.raises(ModelUnavailableError, match="computes no numbers in float32"):
        backend.info()
    assert backend._notices.empty()
    backend.close()


def test_scores_that_stop_being_numbers_later_end_the_answer_the_same_way(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    backend = LocalBackend(tiny_config(folder, tmp_path))
    (first, *_) = list(backend.answer(HELLO, Options(max_tokens=2, temperature=0)))[-1].answer.completion  # type: ignore[union-attr]
    backend.close()
    weights["model.embed_tokens.weight"][first] = torch.nan  # only once this token was said
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    backend = LocalBackend(tiny_config(folder, tmp_path))
    backend.config.paths.models.mkdir(exist_ok=True)
    with pytest.raises(ModelUnavailableError, match="computes no numbers in float32") as caught:
        list(backend.answer(HELLO, Options(max_tokens=4, temperature=0)))
    assert "fetch it again" in caught.value.remedy
    backend.close()


def test_a_token_that_the_model_does_not_know_is_refused(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "other", vocab_size=310)
    backend = LocalBackend(make_config(model__name=str(folder)))
    with pytest.raises(ModelUnavailableError, match="and the model knows 310"):
        list(backend.answer([Turn(Role.USER, "lazy dog brown fox jumps hello world")], Options(max_tokens=1)))
    backend.close()


def test_a_context_that_no_machine_has_memory_for_says_how_to_make_it_smaller(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", family="gemma2")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 2**31}
    (folder / "config.json").write_text(json.dumps(config))
    backend = LocalBackend(tiny_config(folder, tmp_path))
    with pytest.raises(OutOfMemoryError, match=f"no memory for the KV of the {2**31} tokens") as caught:
        backend.info()
    assert caught.value.remedy == "take a smaller --context, such as 32768"
    backend.close()


def test_of_a_context_that_no_machine_has_memory_for_as_much_is_taken_as_fits_unless_all_was_asked_for(
    tmp_path: Path,
) -> None:
    folder = tiny_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 2**31}
    (folder / "config.json").write_text(json.dumps(config))
    backend = LocalBackend(tiny_config(folder, tmp_path))
    assert 1024 <= backend.info().context < 2**31
    backend.close()
    backend = LocalBackend(tiny_config(folder, tmp_path, model__context=2**31))
    with pytest.raises(OutOfMemoryError, match=r"take --context \d+ or less"):
        backend.info()
    backend.close()


def test_a_config_that_its_own_modules_cant_run_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", family="gemma2")
    config = json.loads((folder / "config.json").read_text()) | {"sliding_window": None}
    (folder / "config.json").write_text(json.dumps(config))
    backend = LocalBackend(tiny_config(folder, tmp_path))
    with pytest.raises(ModelUnavailableError, match="can't be run") as caught:
        backend.info()
    assert "\n" not in str(caught.value)
    backend.close()
