"""Settings in frozen sections; defaults < config.toml < KVCHAT_* < flags. Reads, never acts; knows no torch.

Each field of a section is one setting: `cache.ram` in config.toml is `[cache] ram = "2GiB"`, in the environment
`KVCHAT_CACHE_RAM`, and whatever flag the command line maps onto it.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import platformdirs

from kvchat.errors import UsageError

DEFAULT_MODEL = "smollm2-135m"
CACHE_MODES = ("rw", "ro", "off")
CODECS = ("raw", "int8")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MARKDOWN = ("auto", "always", "never")

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "kib": 2**10, "m": 10**6, "mb": 10**6, "mib": 2**20}
_UNITS |= {"g": 10**9, "gb": 10**9, "gib": 2**30, "t": 10**12, "tb": 10**12, "tib": 2**40}


class ByteSize(int):
    """A number of bytes, written `4GiB`, `512 MB` or `1000000`."""


def parse_bytes(text: str) -> ByteSize:
    """Bytes from `4GiB`, `512MB`, `1.5 g` or a plain number. Raises ValueError."""
    stripped = text.strip().lower().replace("_", "")
    unit = stripped.lstrip("0123456789.")
    number = stripped[: len(stripped) - len(unit)]
    if not number or unit.strip() not in _UNITS:
        raise ValueError(f"{text!r} is not a size such as 512MB or 4GiB")
    return ByteSize(float(number) * _UNITS[unit.strip()])


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, and how it is run. `context` is in tokens; None means the model's own."""

    name: str = field(default=DEFAULT_MODEL, metadata={"env": "KVCHAT_MODEL"})
    dtype: str = field(default="auto", metadata={"env": "KVCHAT_DTYPE", "choices": DTYPES})
    device: str = field(default="auto", metadata={"env": "KVCHAT_DEVICE", "choices": DEVICES})
    context: int | None = field(default=None, metadata={"env": "KVCHAT_CONTEXT", "min": 32})
    chat_template: str | None = field(default=None, metadata={"env": "KVCHAT_CHAT_TEMPLATE"})
    trust_remote_code: bool = False
    offline: bool = field(default=False, metadata={"env": "KVCHAT_OFFLINE"})


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the next token is chosen; None means the model's own generation_config."""

    max_tokens: int | None = field(default=None, metadata={"min": 1})
    temperature: float | None = field(default=None, metadata={"min": 0.0})
    top_k: int | None = field(default=None, metadata={"min": 0})
    top_p: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    min_p: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    repetition_penalty: float | None = field(default=None, metadata={"min": 0.01})
    seed: int | None = field(default=None, metadata={"min": 0})
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The prefix cache. Budgets in bytes; None means the default worked out for this machine.

    `mode`: `rw` uses and stores, `ro` uses only, `off` computes every prompt from its first token.
    """

    mode: str = field(default="rw", metadata={"env": "KVCHAT_CACHE", "choices": CACHE_MODES})
    ram: ByteSize | None = None
    disk: ByteSize | None = None
    codec: str = field(default="raw", metadata={"choices": CODECS})
    block_size: int = field(default=16, metadata={"min": 1, "max": 1024})


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """The conversation as it starts."""

    system: str | None = field(default=None, metadata={"env": "KVCHAT_SYSTEM"})
    save: bool = field(default=True, metadata={"env": "KVCHAT_SAVE"})


@dataclass(frozen=True, slots=True)
class UiConfig:
    """The terminal's face."""

    markdown: str = field(default="auto", metadata={"choices": MARKDOWN})
    vi: bool = False
    plain: bool = False


@dataclass(frozen=True, slots=True)
class PathsConfig:
    """Folders. Models, KV and data lie apart, so that each can be moved or deleted alone."""

    models: Path = field(
        default_factory=lambda: platformdirs.user_cache_path("kvchat") / "models",
        metadata={"env": "KVCHAT_MODELS"},
    )
    cache: Path = field(
        default_factory=lambda: platformdirs.user_cache_path("kvchat") / "kv",
        metadata={"env": "KVCHAT_CACHE_DIR"},
    )
    data: Path = field(
        default_factory=lambda: platformdirs.user_data_path("kvchat"), metadata={"env": "KVCHAT_DATA"}
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    ui: UiConfig = field(default_factory=UiConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """A JSON-ready form; `Config.from_json` reads it back."""
        sections = asdict(self)
        return {
            section: {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
            for section, values in sections.items()
        }

    @classmethod
    def from_json(cls, sections: Mapping[str, Mapping[str, Any]]) -> Config:
        """The settings that `to_json` wrote."""
        flat = {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}
        return _build({key: _Origin(value, "json") for key, value in flat.items()})


@dataclass(frozen=True, slots=True)
class _Origin:
    value: object
    where: str


_SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "sampling": SamplingConfig,
    "cache": CacheConfig,
    "chat": ChatConfig,
    "ui": UiConfig,
    "paths": PathsConfig,
}


def config_file(environ: Mapping[str, str] | None = None) -> Path:
    """Where config.toml is looked for: `KVCHAT_CONFIG`, or the platform's config folder."""
    environ = os.environ if environ is None else environ
    named = environ.get("KVCHAT_CONFIG")
    return Path(named).expanduser() if named else platformdirs.user_config_path("kvchat") / "config.toml"


def setting_key(name: str) -> str:
    """`section.key` of a setting that is named without its section. Raises UsageError, naming the nearest."""
    homes = {
        item.name: f"{section}.{item.name}" for section, cls in _SECTIONS.items() for item in fields(cls)
    }
    if name not in homes:
        nearest = difflib.get_close_matches(name, homes, n=1, cutoff=0.0)
        raise UsageError(f"no setting is called {name!r}", f"did you mean {nearest[0]!r}?")
    return homes[name]


def load_config(flags: Mapping[str, object], environ: Mapping[str, str] | None = None) -> Config:
    """The settings of this run. `flags` maps `section.key` to a value; None means the flag was not given.

    Raises UsageError for an unknown key or a value out of range, naming where it stands.
    """
    environ = os.environ if environ is None else environ
    layers: dict[str, _Origin] = _read_toml(config_file(environ))
    for section, cls in _SECTIONS.items():
        for item in fields(cls):
            name = item.metadata.get("env", f"KVCHAT_{section}_{item.name}".upper())
            if environ.get(name):
                layers[f"{section}.{item.name}"] = _Origin(environ[name], name)
    for key, value in flags.items():
        if value is not None:
            layers[key] = _Origin(value, "--" + key.partition(".")[2].replace("_", "-"))
    return _build(layers)


def _read_toml(path: Path) -> dict[str, _Origin]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"can't read {path}: {error}", "mend or remove it") from error
    layers: dict[str, _Origin] = {}
    for section, values in table.items():
        if section not in _SECTIONS or not isinstance(values, dict):
            _refuse_key(section, list(_SECTIONS), path)
        known = [item.name for item in fields(_SECTIONS[section])]
        for key, value in values.items():
            if key not in known:
                _refuse_key(key, known, path)
            layers[f"{section}.{key}"] = _Origin(value, f"{path}, {section}.{key}")
    return layers


def _refuse_key(key: str, known: list[str], path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next((i for i, line in enumerate(lines, 1) if line.lstrip("[ ").startswith(key)), 1)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise UsageError(f"{path}, line {number}: no setting is called {key!r}", f"did you mean {nearest[0]!r}?")


def _build(layers: Mapping[str, _Origin]) -> Config:
    sections: dict[str, Any] = {}
    for section, cls in _SECTIONS.items():
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for item in fields(cls):
            origin = layers.get(f"{section}.{item.name}")
            if origin is not None:
                given[item.name] = _checked(origin, hints[item.name], item.metadata)
        sections[section] = cls(**given)
    return Config(**sections)


def _checked(origin: _Origin, hint: Any, rules: Mapping[str, Any]) -> object:
    value = origin.value
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    if value is None and type(None) in get_args(hint):
        return None
    try:
        value = _convert(value, hint if hint == tuple[str, ...] else kinds[0])
    except (ValueError, TypeError) as error:
        raise UsageError(f"{origin.where}: {error}", "see kvchat --help") from error
    choices = rules.get("choices")
    if choices and value not in choices:
        raise UsageError(f"{origin.where}: {value!r} is not one of {', '.join(choices)}")
    low, high = rules.get("min"), rules.get("max")
    if isinstance(value, int | float) and (
        (low is not None and value < low) or (high is not None and value > high)
    ):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UsageError(f"{origin.where}: {value} must be {bounds}")
    return value


def _convert(value: object, kind: Any) -> object:
    if kind == tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(str(item) for item in value)  # type: ignore[attr-defined]
    if kind is bool:
        if isinstance(value, bool):
            return value
        truth = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if str(value).lower() not in truth:
            raise ValueError(f"{value!r} is neither true nor false")
        return truth[str(value).lower()]
    if kind is ByteSize:
        return parse_bytes(str(value))
    if kind is Path:
        return Path(str(value)).expanduser()
    if isinstance(value, kind):
        return value
    try:
        return kind(str(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is not {'a whole number' if kind is int else 'a number'}") from error
