"""Settings in frozen sections; defaults < config.toml < KVCHAT_* < flags. Reads, never acts; knows no torch.

Each field of a section is one setting: `cache.ram` in config.toml is `[cache] ram = "2GiB"`, in the environment
`KVCHAT_CACHE_RAM`, and whatever flag the command line maps onto it.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import platformdirs

from kvchat.errors import UsageError, reason_of
from kvchat.remotes import RemoteConfig, check_remote
from kvchat.setting import ByteSize as ByteSize
from kvchat.setting import Origin, checked
from kvchat.setting import parse_bytes as parse_bytes

DEFAULT_MODEL = "smollm2-135m"
CACHE_MODES = ("rw", "ro", "off")
CODECS = ("raw", "int8")
POLICIES = ("kvchat", "lru")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MARKDOWN = ("auto", "always", "never")
WEIGHTS = ("auto", "native", "int8", "int4")
THINK = ("auto", "on", "off")

_MAX_BYTES = 256 * 1024
"""Largest settings file."""
_MAX_PARTS = 100
_KEY_RUN = re.compile(r"[\w\-.\"' \t]+")


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
    codec: str = field(default="raw", metadata={"choices": CODECS})
    policy: str = field(default="kvchat", metadata={"choices": POLICIES})
    block_size: int = field(default=16, metadata={"min": 1, "max": 1024})
    prepare: bool = True


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """The conversation as it starts. `pin`: the KV of the system prompt is evicted last."""

    system: str | None = field(default=None, metadata={"env": "KVCHAT_SYSTEM"})
    pin: bool = False
    save: bool = field(default=True, metadata={"env": "KVCHAT_SAVE"})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine that terminals `share`. `keep_alive` is how many seconds it stays without a client; -1 is for good, and
    0 gives each an engine of its own."""

    share: bool = field(default=False, metadata={"env": "KVCHAT_SHARE"})
    keep_alive: int = field(default=600, metadata={"env": "KVCHAT_KEEP_ALIVE", "min": -1})


@dataclass(frozen=True, slots=True)
class UiConfig:
    """What the terminal looks like."""

    markdown: str = field(default="auto", metadata={"choices": MARKDOWN})
    vi: bool = False
    plain: bool = False
    reasoning: bool = True


def _own_folder(kind: Callable[[str], Path]) -> Path:
    """Where the platform keeps our files of a kind. Raises UsageError for a user without a home folder."""
    try:
        path = kind("kvchat")
    except RuntimeError:
        path = Path("~")
    if not path.is_absolute():
        names = "KVCHAT_CONFIG, KVCHAT_MODELS, KVCHAT_CACHE_DIR and KVCHAT_DATA"
        raise UsageError("there is no home folder", f"set HOME, or all of {names}")
    return path


def _runtime_folder(environ: Mapping[str, str]) -> Path:
    """Where sockets lie: the session's folder for them, or one of the user's own among the temporary files."""
    session = environ.get("XDG_RUNTIME_DIR")
    return Path(session) / "kvchat" if session else Path("/tmp") / f"kvchat-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class PathsConfig:
    """Folders. Models, KV and data are kept apart, so that each can be moved or deleted on its own."""

    models: Path = field(
        default_factory=lambda: _own_folder(platformdirs.user_cache_path) / "models",
        metadata={"env": "KVCHAT_MODELS"},
    )
    cache: Path = field(
        default_factory=lambda: _own_folder(platformdirs.user_cache_path) / "kv",
        metadata={"env": "KVCHAT_CACHE_DIR"},
    )
    data: Path = field(
        default_factory=lambda: _own_folder(platformdirs.user_data_path), metadata={"env": "KVCHAT_DATA"}
    )
    runtime: Path = field(
        default_factory=lambda: _runtime_folder(os.environ), metadata={"env": "KVCHAT_RUNTIME"}
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
REMOTE = "remote"
"""The section of config.toml whose tables are remotes, by name."""


def config_file(environ: Mapping[str, str] | None = None) -> Path:
    """Where config.toml is looked for: `KVCHAT_CONFIG`, or the platform's config folder."""
    environ = os.environ if environ is None else environ
    named = environ.get("KVCHAT_CONFIG")
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError:
            raise UsageError(
                f"KVCHAT_CONFIG: {named[:40]!r} begins with a user that does not exist", "give a path"
            ) from None
    return _own_folder(platformdirs.user_config_path) / "config.toml"


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
    layers = _read_toml(config_file(environ))
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


def _read_toml(path: Path) -> dict[str, Origin]:
    try:
        text = _settings_text(path)
        table = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except RecursionError:
        raise UsageError(f"can't read {path}: it is nested too deeply", "correct or remove it") from None
    except (OSError, ValueError) as error:  # a number of 5,000 digits is a bare ValueError
        raise UsageError(f"can't read {path}: {reason_of(error)}", "correct or remove it") from error
    layers: dict[str, Origin] = {}
    lines = _lines_of(text)
    remotes = table.pop(REMOTE, {})
    tables = list(table.items())
    if isinstance(remotes, dict):
        tables += [(f"{REMOTE}.{name}", values) for name, values in remotes.items()]
    else:
        tables.append((REMOTE, remotes))
    for section, values in tables:
        where = f"{path}:{_line_of(lines, '', section)}"
        kind = RemoteConfig if section.startswith(f"{REMOTE}.") else SECTIONS.get(section)
        if kind is None and section != REMOTE:
            raise _unknown(section, [*SECTIONS, REMOTE], where)
        if not isinstance(values, dict) or kind is None:
            remedy = f"write [{section}.NAME]" if section == REMOTE else f"write [{section}]"
            raise UsageError(f"{where}: {section!r} is a section, not a setting", remedy)
        known = [item.name for item in fields(kind)]
        for key, value in values.items():
            where = f"{path}:{_line_of(lines, section, key)}"
            if key not in known:
                raise _unknown(key, known, where)
            layers[f"{section}.{key}"] = Origin(value, where)
    return layers


def _settings_text(path: Path) -> str:
    """What a settings file says. Raises OSError and ValueError; a pipe or a device is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        is_nothing = os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) and not is_nothing:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            raise (
                IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if is_folder
                else OSError("it is not a file")
            )
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES // 1024} KiB")
    text = data.decode("utf-8-sig")
    for run in _KEY_RUN.finditer(text):  # a key of 30,000 parts takes tomllib a minute
        if run[0].count(".") > _MAX_PARTS and text[run.end() : run.end() + 1] in ("=", "]"):
            raise ValueError("a key in it has too many parts")
    return text


def _unknown(key: str, known: list[str], where: str) -> UsageError:
    nearest = difflib.get_close_matches(key[:60], known, n=1, cutoff=0.0)
    return UsageError(f"{where}: no setting is called {key[:60]!r}", f"did you mean {nearest[0]!r}?")


def _lines_of(text: str) -> dict[str, int]:
    """Where each section and setting of TOML stands first, counted from 1."""
    lines: dict[str, int] = {}
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        begun = line.strip()
        if begun.startswith("["):
            inside = begun.strip("[ \t").partition("]")[0].strip()
            lines.setdefault(inside, number)
        elif "=" in begun:
            name = re.sub(r"[\s\"']", "", begun.partition("=")[0])
            lines.setdefault(f"{inside}.{name}" if inside else name, number)
    return lines


def _line_of(lines: Mapping[str, int], section: str, key: str) -> int:
    """The line that gives `section.key`, or its inline table's; 1 when it can't be told."""
    return lines.get(f"{section}.{key}".lstrip("."), lines.get(section, 1))


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
