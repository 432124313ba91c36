"""What a model's generation_config.json asks of whoever decodes, read through a schema; and what of it is not done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvchat.models.documents import read_object_if_any
from kvchat.models.schema import (
    MAX_TOKEN_ID,
    Rule,
    check,
    either,
    flag,
    number,
    one_each,
    several,
    text,
    whole,
)

_REMEDY = "fetch the file again, or remove it"
_MANY = 1 << 31
_ID = whole(-100, MAX_TOKEN_ID)  # some write a negative one for none
_RULES: Mapping[str, Rule] = {
    "do_sample": flag,
    "temperature": number(0, 1e4),
    "top_k": number(-1, MAX_TOKEN_ID),
    "top_p": number(0, 1),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 1e3),
    "no_repeat_ngram_size": whole(0, _MANY),
    **dict.fromkeys(("min_length", "max_length", "min_new_tokens"), whole(0, _MANY)),
    "max_new_tokens": whole(1, _MANY),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), either(_ID, several(_ID))),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), several(_ID)),
    "bad_words_ids": several(several(_ID)),
    "stop_strings": either(text, several(text)),
    "exponential_decay_length_penalty": one_each(whole(0, _MANY), number(0.01, 1e3)),
}
_NOT_DONE: Mapping[str, object] = {
    **dict.fromkeys(
        ("num_beams", "num_beam_groups", "typical_p", "encoder_repetition_penalty", "guidance_scale"), 1
    ),
    **dict.fromkeys(("penalty_alpha", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0),
    "encoder_no_repeat_ngram_size": 0,
    **dict.fromkeys(("sequence_bias", "watermarking_config", "top_h")),
    **dict.fromkeys(("constraints", "force_words_ids", "dola_layers", "max_time")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id")),
    "forced_decoder_ids": [],
    "token_healing": False,
}
"""Settings that would change answers and are not done, each with the value at which it changes nothing."""


def read_generation(folder: Path) -> dict[str, Any]:
    """What the model's generation_config.json states; empty where there is none.

    Raises ModelUnavailableError for a file that can't be read, and for values that make no sense.
    """
    path = folder / "generation_config.json"
    return checked_generation(read_object_if_any(path), path)


def checked_generation(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`settings` of the file `path` without what is null. Raises ModelUnavailableError for values that make no sense."""
    check(settings, _RULES, path, _REMEDY)
    return {key: value for key, value in settings.items() if value is not None}


def not_done(settings: Mapping[str, Any], context: int) -> list[str]:
    """The names of settings that would change answers and are not done."""
    names = [name for name, idle in _NOT_DONE.items() if settings.get(name) not in (None, idle)]
    if settings.get("max_length", context) < context and "max_new_tokens" not in settings:
        names.append("max_length")
    return names
