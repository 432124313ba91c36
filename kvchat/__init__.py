"""The public names of kvchat, resolved at first use: `import kvchat` loads neither torch nor a UI.

import kvchat

with kvchat.open("smollm2-135m", system="Be brief.") as chat:
    print(chat.ask("What is a prefix cache?"))
    for text in chat.stream("And what is it good for?"):
        print(text, end="", flush=True)
    print(chat.last.usage.cached_tokens, "tokens were not computed again")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvchat.backends.base import Answer as Answer
    from kvchat.backends.base import Options as Options
    from kvchat.backends.base import Role as Role
    from kvchat.backends.base import Turn as Turn
    from kvchat.backends.local import LocalBackend as LocalBackend
    from kvchat.chat.session import Session as Session
    from kvchat.config import Config as Config
    from kvchat.config import load_config as load_config
    from kvchat.errors import ContextOverflowError as ContextOverflowError
    from kvchat.errors import EngineDiedError as EngineDiedError
    from kvchat.errors import KvchatError as KvchatError
    from kvchat.errors import ModelUnavailableError as ModelUnavailableError
    from kvchat.errors import OutOfMemoryError as OutOfMemoryError
    from kvchat.errors import UsageError as UsageError

_HOMES = {
    "Answer": "kvchat.backends.base",
    "Options": "kvchat.backends.base",
    "Role": "kvchat.backends.base",
    "Turn": "kvchat.backends.base",
    "LocalBackend": "kvchat.backends.local",
    "Session": "kvchat.chat.session",
    "Config": "kvchat.config",
    "load_config": "kvchat.config",
    "ContextOverflowError": "kvchat.errors",
    "EngineDiedError": "kvchat.errors",
    "KvchatError": "kvchat.errors",
    "ModelUnavailableError": "kvchat.errors",
    "OutOfMemoryError": "kvchat.errors",
    "UsageError": "kvchat.errors",
}

__all__ = ["open", *_HOMES]


def open(model: str | None = None, *, system: str | None = None, **settings: object) -> Session:
    """A chat with a model in this process; close it, or use it in a `with`.

    `settings` are those of config.toml without their section, such as `temperature=0`, `max_tokens=100`,
    `dtype="float32"`. It is kept among the saved sessions, unless `save=False`. The model loads in the background, the first answer waits for it.
    Raises UsageError for an unknown setting.
    """
    from kvchat.backends.local import LocalBackend
    from kvchat.chat.session import Session
    from kvchat.config import load_config, setting_key

    flags = {setting_key(name): value for name, value in settings.items()}
    config = load_config(flags | {"model.name": model, "chat.system": system})
    backend = LocalBackend(config)
    backend.start()
    return Session.from_config(backend, config)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kvchat")
    if name not in _HOMES:
        raise AttributeError(f"module 'kvchat' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
