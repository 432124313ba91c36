"""What kind of server a remote is, which models it has and how long their context is: asked once. Sends no conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from kvchat.backends.remote.link import Link, api_url, root_url, speaks_anthropic
from kvchat.backends.remote.refusals import UnreachableError
from kvchat.errors import KvchatError, ModelUnavailableError
from kvchat.remotes import Target

PROBE_TIMEOUT_S = 20.0


class Kind(StrEnum):
    """Servers that take more than the protocol says, and those that don't."""

    KVCHAT = "kvchat"
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA = "llama.cpp"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Features:
    """What a kind of server takes beyond the protocol.

    `sampling` has the names of options by ours; `goes_on` is what a request has that continues its last message, None
    where that can't be asked for; `thoughts` are the names under which it takes an answer's reasoning. `gives_ids`
    says that text may come with its ids. `remedy` says how its cache can be seen, where that has to be switched on.
    """

    sampling: Mapping[str, str]
    goes_on: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None
    thoughts: tuple[str, ...] = ()
    takes_template_options: bool = False
    gives_ids: bool = False
    remedy: str = ""


_COMMON = {"temperature": "temperature", "top_p": "top_p", "seed": "seed"}
_OPEN = _COMMON | {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
_LLAMA = _OPEN | {"repetition_penalty": "repeat_penalty"}
_GOING_ON = {"continue_final_message": True, "add_generation_prompt": False}
_WHILE_STREAMING = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}

FEATURES: Mapping[Kind, Features] = {
    Kind.VLLM: Features(
        _OPEN,
        _GOING_ON,
        _WHILE_STREAMING | {"return_token_ids": True},
        thoughts=("reasoning", "reasoning_content"),
        takes_template_options=True,
        gives_ids=True,
        remedy="start vLLM with --enable-prompt-tokens-details",
    ),
    Kind.KVCHAT: Features(
        _OPEN,
        {},
        _WHILE_STREAMING | {"return_token_ids": True},
        thoughts=("reasoning_content",),
        takes_template_options=True,
        gives_ids=True,
    ),
    Kind.SGLANG: Features(
        _OPEN,
        {"continue_final_message": True},
        _WHILE_STREAMING,
        thoughts=("reasoning_content",),
        takes_template_options=True,
        remedy="start SGLang with --enable-cache-report",
    ),
    Kind.LLAMA: Features(
        _LLAMA,
        {},
        {"timings_per_token": True, "return_progress": True, "cache_prompt": True},
        thoughts=("reasoning_content",),
        takes_template_options=True,
    ),
    Kind.OPENAI: Features(_COMMON),
    Kind.ANTHROPIC: Features({"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}, {}),
}
_OWNERS = {"kvchat": Kind.KVCHAT, "vllm": Kind.VLLM, "sglang": Kind.SGLANG, "llamacpp": Kind.LLAMA}


@dataclass(frozen=True, slots=True)
class Served:
    """A model of a server. `context` is in tokens, 0 where it does not say; `source` is a name or path of its files."""

    id: str
    context: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """A remote that has answered: its kind, its models, and the one that is talked to."""

    target: Target
    kind: Kind
    models: tuple[Served, ...]
    model: Served
    template: str = ""

    @property
    def features(self) -> Features:
        """What it takes beyond the protocol."""
        return FEATURES[self.kind]

    @property
    def api(self) -> str:
        """Where its OpenAI-compatible paths begin."""
        return api_url(self.target.remote.url)

    @property
    def root(self) -> str:
        """Where its own paths begin."""
        return root_url(self.target.remote.url)


def models_of(link: Link, *, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[Kind, tuple[Served, ...]]:
    """A server's kind and its models; none where it has no list of them. Raises KvchatError."""
    remote = link.target.remote
    timeout_s = min(timeout_s, remote.timeout)
    given = Kind(remote.server) if remote.server != "auto" else None
    kind = Kind.ANTHROPIC if speaks_anthropic(remote) else given
    try:
        listed = link.call("GET", f"{api_url(remote.url)}/models", timeout_s=timeout_s)
    except ModelUnavailableError as error:
        if isinstance(error, UnreachableError) or "no such endpoint" not in error.message:
            raise
        listed = {}
    rows = listed.get("data") if isinstance(listed, dict) else None
    rows = [row for row in rows if isinstance(row, dict) and row.get("id")] if isinstance(rows, list) else []
    owner = next((_OWNERS[row["owned_by"]] for row in rows if row.get("owned_by") in _OWNERS), Kind.OPENAI)
    return kind or owner, tuple(_served(row) for row in rows)


def connect(link: Link) -> Server:
    """Find out what a remote is. Raises KvchatError."""
    target = link.target
    kind, models = models_of(link)
    wanted = target.model or (models[0].id if models else "")
    if not wanted:
        raise ModelUnavailableError(f"{target.where} does not say which models it has", "name one with -m")
    model = next((one for one in models if one.id == wanted), None)
    if model is None and models and kind in (Kind.KVCHAT, Kind.VLLM, Kind.SGLANG):
        raise _no_model(target, wanted, models)
    model = model or Served(wanted, models[0].context if kind is Kind.LLAMA and models else 0)
    template = ""
    if kind is Kind.LLAMA:
        model, template = _with_properties(link, model)
    if target.remote.context:
        model = Served(model.id, target.remote.context, model.source)
    return Server(target, kind, models, model, template)


def server_ids(text: str, server: Server, link: Link) -> tuple[int, ...] | None:
    """The ids that the server makes of a text, control tokens counting; None where it can't be asked."""
    if server.kind is Kind.LLAMA:
        body: dict[str, object] = {"content": text, "add_special": False, "parse_special": True}
    elif server.kind in (Kind.KVCHAT, Kind.VLLM, Kind.SGLANG):
        body = {"model": server.model.id, "prompt": text, "add_special_tokens": False}
    else:
        return None
    try:
        said = link.call("POST", f"{server.root}/tokenize", body)
    except KvchatError:
        return None
    ids = said.get("tokens") if isinstance(said, dict) else None
    is_right = isinstance(ids, list) and all(type(one) is int for one in ids)
    return tuple(ids) if is_right else None  # type: ignore[arg-type]


def _no_model(target: Target, wanted: str, models: tuple[Served, ...]) -> ModelUnavailableError:
    near = get_close_matches(wanted, [one.id for one in models], n=1, cutoff=0.0)[0]
    return ModelUnavailableError(f"{target.where} has no model {wanted[:80]!r}", f"did you mean {near[:80]}?")


def _served(row: Mapping[str, Any]) -> Served:
    meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}
    assert isinstance(meta, dict)
    lengths = (
        row.get("max_model_len"),
        row.get("context_length"),
        row.get("context_window"),
        meta.get("n_ctx"),
    )
    context = next((size for size in lengths if type(size) is int and size > 0), 0)
    source = row.get("root")
    return Served(str(row["id"]), context, source if isinstance(source, str) else "")


def _with_properties(link: Link, model: Served) -> tuple[Served, str]:
    """What llama-server says of itself: the context that one conversation has, its file and its chat template."""
    try:
        said = link.call("GET", f"{root_url(link.target.remote.url)}/props", timeout_s=PROBE_TIMEOUT_S)
    except KvchatError:
        return model, ""
    if not isinstance(said, dict):
        return model, ""
    settings = said.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    path, template = said.get("model_path"), said.get("chat_template")
    return Served(
        model.id,
        context if type(context) is int and context > 0 else model.context,
        path if isinstance(path, str) else "",
    ), template if isinstance(template, str) else ""
