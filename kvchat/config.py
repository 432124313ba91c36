"""Settings in frozen sections; defaults < config.toml < KVCHAT_* < flags. Reads, never acts; knows no torch.

Each field of a section is one setting: `cache.ram` in config.toml is `[cache] ram = "2GiB"`, in the environment
`KVCHAT_CACHE_RAM`, and whatever flag the command line maps onto it.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import platformdirs

from kvchat.errors import UsageError
from kvchat.remotes import RemoteConfig, check_remote
from kvchat.setting import ByteSize as ByteSize
from kvchat.setting import Origin, checked
from kvchat.setting import parse_bytes as parse_bytes
from kvchat.settings_file import REMOTE, own_folder, read_settings, runtime_folder
from kvchat.settings_file import config_file as config_file

DEFAULT_MODEL = "smollm2-135m"
CACHE_MODES = ("rw", "ro", "off")
CODECS = ("packed", "raw", "int8")
POLICIES = ("kvchat", "lru")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MARKDOWN = ("auto", "always", "never")
WHEN_FULL = ("auto", "ask", "drop", "off")
TITLES = ("auto", "off")
TYPE_AHEAD = ("auto", "prefill", "off")
WEIGHTS = ("auto", "native", "int8", "int4")
THINK = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, and how it is run. `context` is in tokens; None means the model's own.

    `threads` None means as many as torch takes. `draft` is how many tokens are guessed ahead at a time; None means as many as pay off.
    """

    name: str = field(default=DEFAULT_MODEL, metadata={"env": "KVCHAT_MODEL"})
    dtype: str = field(default="auto", metadata={"env": "KVCHAT_DTYPE", "choices": DTYPES})
    device: str = field(default="auto", metadata={"env": "KVCHAT_DEVICE", "choices": DEVICES})
    threads: int | None = field(
        default=None, metadata={"env": "KVCHAT_THREADS", "min": 1, "max": 1024, "none": "auto"}
    )
    weights: str = field(default="auto", metadata={"env": "KVCHAT_WEIGHTS", "choices": WEIGHTS})
    context: int | None = field(default=None, metadata={"env": "KVCHAT_CONTEXT", "min": 32})
    chat_template: str | None = field(default=None, metadata={"env": "KVCHAT_CHAT_TEMPLATE"})
    adapter: str | None = field(default=None, metadata={"env": "KVCHAT_ADAPTER"})
    trust_remote_code: bool = False
    draft: int | None = field(
        default=None,
        metadata={"env": "KVCHAT_DRAFT", "min": 0, "max": 64, "none": "auto", "words": {"off": 0}},
    )
    offline: bool = field(default=False, metadata={"env": "KVCHAT_OFFLINE"})


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the next token is chosen; None means the model's own generation_config.

    `repeat_stop` stops an answer that goes round in circles.
    """

    max_tokens: int | None = field(default=None, metadata={"min": 1})
    temperature: float | None = field(default=None, metadata={"min": 0.0})
    top_k: int | None = field(default=None, metadata={"min": 0})
    top_p: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    min_p: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    repetition_penalty: float | None = field(default=None, metadata={"min": 0.01})
    seed: int | None = field(default=None, metadata={"min": 0, "max": 2**64 - 1})
    stop: tuple[str, ...] = ()
    think: bool | None = field(default=None, metadata={"env": "KVCHAT_THINK", "none": "auto"})
    repeat_stop: bool = True


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The prefix cache. Budgets in bytes; None means the default worked out for this machine.

    `mode`: `rw` uses and stores, `ro` uses only, `off` computes every prompt from its first token. `policy`: what is
    evicted first, what is worth least or what was not used for longest. `prepare`: what the next prompt begins with (a resumed conversation, a past that the template changes) is computed while nobody
    waits, and not when the message is sent.
    """

    mode: str = field(default="rw", metadata={"env": "KVCHAT_CACHE", "choices": CACHE_MODES})
    ram: ByteSize | None = None
    disk: ByteSize | None = None
    codec: str = field(default="packed", metadata={"choices": CODECS})
    policy: str = field(default="kvchat", metadata={"choices": POLICIES})
    block_size: int = field(default=16, metadata={"min": 1, "max": 1024})
    prepare: bool = True


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """The conversation as it starts. `pin`: the KV of the system prompt is evicted last. `when_full`: the oldest messages
    are summarised (`auto`) or left out (`drop`) before the context is full, the user chooses (`ask`), or nothing is done
    (`off`); None means `ask` in a dialogue and `off` elsewhere. `titles`: in a dialogue the model gives a conversation its
    title while nobody waits."""

    system: str | None = field(default=None, metadata={"env": "KVCHAT_SYSTEM"})
    pin: bool = False
    save: bool = field(default=True, metadata={"env": "KVCHAT_SAVE"})
    when_full: str | None = field(default=None, metadata={"env": "KVCHAT_WHEN_FULL", "choices": WHEN_FULL})
    titles: str = field(default="auto", metadata={"env": "KVCHAT_TITLES", "choices": TITLES})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine that terminals `share`. `keep_alive` is how many seconds it stays without a client; -1 is for good, and
    0 gives each an engine of its own."""

    share: bool = field(default=True, metadata={"env": "KVCHAT_SHARE"})
    keep_alive: int = field(default=600, metadata={"env": "KVCHAT_KEEP_ALIVE", "min": -1})


@dataclass(frozen=True, slots=True)
class UiConfig:
    """What the terminal looks like, and what it has computed while one types: with `type_ahead` `auto` the answer's
    beginning too, with `prefill` the prompt alone; on a battery with less than `type_ahead_battery` percent nothing."""

    markdown: str = field(default="auto", metadata={"choices": MARKDOWN})
    vi: bool = False
    plain: bool = False
    reasoning: bool = True
    type_ahead: str = field(default="prefill", metadata={"env": "KVCHAT_TYPE_AHEAD", "choices": TYPE_AHEAD})
    type_ahead_battery: int = field(default=50, metadata={"min": 0, "max": 101})


@dataclass(frozen=True, slots=True)
class PathsConfig:
    """Folders. Models, KV and data are kept apart, so that each can be moved or deleted on its own."""

    models: Path = field(
        default_factory=lambda: own_folder(platformdirs.user_cache_path) / "models",
        metadata={"env": "KVCHAT_MODELS"},
    )
    cache: Path = field(
        default_factory=lambda: own_folder(platformdirs.user_cache_path) / "kv",
        metadata={"env": "KVCHAT_CACHE_DIR"},
    )
    data: Path = field(
        default_factory=lambda: own_folder(platformdirs.user_data_path), metadata={"env": "KVCHAT_DATA"}
    )
    runtime: Path = field(
        default_factory=lambda: runtime_folder(os.environ), metadata={"env": "KVCHAT_RUNTIME"}
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    ui: UiConfig = field(default_factory=UiConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    remotes: Mapping[str, RemoteConfig] = field(default_factory=dict)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """A JSON-ready form without the remotes, of which an engine knows nothing; `Config.from_json` reads it back."""
        sections = {name: asdict(getattr(self, name)) for name in SECTIONS}
        return {
            section: {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
            for section, values in sections.items()
        }

    @classmethod
    def from_json(cls, sections: Mapping[str, Mapping[str, Any]]) -> Config:
        """The settings that `to_json` wrote."""
        flat = {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}
        return _build({key: Origin(value, key) for key, value in flat.items()})


SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "sampling": SamplingConfig,
    "cache": CacheConfig,
    "chat": ChatConfig,
    "engine": EngineConfig,
    "ui": UiConfig,
    "paths": PathsConfig,
}


def setting_key(name: str) -> str:
    """`section.key` of a setting that is named without its section. Raises UsageError, naming the nearest."""
    homes = {item.name: f"{section}.{item.name}" for section, cls in SECTIONS.items() for item in fields(cls)}
    if name not in homes:
        nearest = difflib.get_close_matches(name, homes, n=1, cutoff=0.0)
        raise UsageError(f"no setting is called {name!r}", f"did you mean {nearest[0]!r}?")
    return homes[name]


def editor(environ: Mapping[str, str] | None = None) -> str:
    """The command that opens a file to be edited: VISUAL, EDITOR, or vi."""
    environ = os.environ if environ is None else environ
    return environ.get("VISUAL") or environ.get("EDITOR") or "vi"


def pager(environ: Mapping[str, str] | None = None) -> list[str]:
    """The command that shows a long text: PAGER, or less; empty where PAGER is empty, `cat` or no command."""
    environ = os.environ if environ is None else environ
    try:
        command = shlex.split(environ.get("PAGER", "less"))
    except ValueError:  # an open quote
        return []
    return [] if command == ["cat"] else command


def load_config(
    flags: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    *,
    flag_names: Mapping[str, str] | None = None,
) -> Config:
    """The settings of this run. `flags` maps `section.key` to a value, or to None if the flag was not given.

    Raises UsageError for an unknown key or a value out of range, naming where it stands; `flag_names` says what
    the flags are called.
    """
    return _build(origins(flags, environ, flag_names=flag_names))


def origins(
    flags: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    *,
    flag_names: Mapping[str, str] | None = None,
) -> dict[str, Origin]:
    """What was given for each setting (`section.key`) that differs from its default, and where. Raises UsageError."""
    environ = os.environ if environ is None else environ
    layers = read_settings(config_file(environ), SECTIONS)
    given: dict[str, Origin] = {}
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            short = f"KVCHAT_{item.name.upper()}"  # what one tries first: KVCHAT_TEMPERATURE
            names = (*([short] if section == "sampling" else []), variable_name(section, item))
            if name := next((name for name in names if environ.get(name)), None):
                given[f"{section}.{item.name}"] = Origin(environ[name], name)
    layers = _over(layers, given)
    named = flag_names or {}
    return _over(
        layers, {key: Origin(value, named.get(key, key)) for key, value in flags.items() if value is not None}
    )


def _over(below: Mapping[str, Origin], above: Mapping[str, Origin]) -> dict[str, Origin]:
    """One layer of settings over another. Trust in the code of one model does not extend to another model that is named
    in the upper layer."""
    layers = dict(below)
    before = layers.get("model.name", Origin(DEFAULT_MODEL, ""))
    if above.get("model.name", before).value != before.value:
        layers.pop("model.trust_remote_code", None)
    return {**layers, **above}


def variable_name(section: str, item: Field[Any]) -> str:
    """The environment's variable for a setting."""
    return str(item.metadata.get("env", f"KVCHAT_{section}_{item.name}".upper()))


def _build(layers: Mapping[str, Origin]) -> Config:
    sections = {section: _section(cls, section, layers) for section, cls in SECTIONS.items()}
    return Config(**sections, remotes=_remotes(layers))


def _section(cls: type[Any], section: str, layers: Mapping[str, Origin]) -> Any:
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for item in fields(cls):
        origin = layers.get(f"{section}.{item.name}")
        if origin is not None:
            given[item.name] = checked(origin, hints[item.name], item.metadata)
    return cls(**given)


def _remotes(layers: Mapping[str, Origin]) -> dict[str, RemoteConfig]:
    """The remotes by name. Raises UsageError for one that can't be used, naming where it stands."""
    places: dict[str, str] = {}
    for key, origin in layers.items():
        if key.startswith(f"{REMOTE}."):
            places.setdefault(key.removeprefix(f"{REMOTE}.").rpartition(".")[0], origin.where)
    remotes = {name: _section(RemoteConfig, f"{REMOTE}.{name}", layers) for name in places}
    for name, remote in remotes.items():
        check_remote(name, remote, places[name])
    return remotes
