"""How a request wants to be answered, as the backend's options: what it says over what the settings say."""

from __future__ import annotations

from dataclasses import replace

from kvchat.backends.base import Options
from kvchat.server.reading import Fields

_UNDONE: dict[str, object] = {
    "n": 1,
    "best_of": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "prompt_logprobs": (),
    "use_beam_search": False,
    "min_tokens": 0,
    "ignore_eos": False,
    "cache_salt": (),
    "audio": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "grammar": ("",),
    "json_schema": (),
}
"""Fields of several servers that ask for what is not done here, each with the values that ask for nothing."""


def options_of(
    fields: Fields,
    defaults: Options,
    *,
    limits: tuple[str, ...],
    stop: str = "stop",
    max_tokens: int | None = None,
    top_logprobs: int | None = None,
) -> Options:
    """The options that a request asks for. `limits` are the fields that may bound the answer's length, the first one counts;
    `max_tokens` is the protocol's own default. For how many scores it asks each protocol says otherwise. Raises RefusedError."""
    fields.refuse_where_set(**_UNDONE)
    _refuse_formats(fields)
    lengths = (fields.whole(name, 1) for name in limits)
    length = next((length for length in lengths if length is not None), max_tokens)
    seed, top_k = fields.whole("seed", -(2**63), 2**64 - 1), fields.whole("top_k", -1)
    given = {
        "max_tokens": length,
        "temperature": fields.number("temperature", 0.0),
        "top_p": fields.number("top_p", 0.0, 1.0),
        "top_k": None if top_k is None else max(0, top_k),
        "min_p": fields.number("min_p", 0.0, 1.0),
        "repetition_penalty": fields.number("repetition_penalty", 0.01),
        "seed": None if seed is None else seed % 2**64,
        "think": _think(fields),
        "top_logprobs": top_logprobs,
    }
    chosen = replace(defaults, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    stops = fields.texts(stop)
    return replace(chosen, stop=stops or defaults.stop, repeat_stop=fields.flag("repeat_stop"))


def _think(fields: Fields) -> bool | None:
    """Whether it asks for reasoning: as templates name it, or by an effort."""
    asked = fields.inner("chat_template_kwargs")
    for name in ("enable_thinking", "thinking"):
        if asked.has(name):
            return asked.flag(name)
    effort = fields.raw("reasoning_effort")
    return None if not isinstance(effort, str) else effort != "none"


def _refuse_formats(fields: Fields) -> None:
    kind = fields.inner("response_format").raw("type")
    if kind not in (None, "text"):
        fields.refuse("response_format", "must be text: kvchat can't hold an answer to a form")
