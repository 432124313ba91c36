"""`kvchat serve`: the model for other programs, over HTTP. Loads no torch: the engine is a process of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from kvchat.config import Config
from kvchat.errors import UsageError, reason_of
from kvchat.remotes import target_of

_LONGEST_KEY = 4096
_NUM_SEATS = 8  # requests that are answered at once, and conversations that are live


def served(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Serve until a signal comes; says where, once it listens. Raises UsageError."""
    if target_of(config.model.name, config.remotes) is not None:
        raise UsageError("a remote's model has a server already", "name a model on this disk with -m")
    try:
        from kvchat.server.guard import Door
        from kvchat.server.serving import Server, listen
    except ImportError:
        raise UsageError(
            "the server needs packages that are not installed", "pip install 'kvchat[serve]'"
        ) from None
    from kvchat.backends.base import Options
    from kvchat.backends.child import EngineChild
    from kvchat.backends.process import ProcessBackend
    from kvchat.backends.seated import SeatedBackend

    door = Door(args.host, args.port, _key(args))
    listener = listen(door)
    wanted = replace(config, chat=replace(config.chat, save=args.save))
    backend = ProcessBackend(wanted, partial(EngineChild, has_seats=True))
    seats = [SeatedBackend(backend, number) for number in range(_NUM_SEATS)]
    server = Server(backend, Options(**asdict(config.sampling)), door, seats=seats)
    host = f"[{door.host}]" if ":" in door.host else door.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    try:
        backend.start()
        yield (
            json.dumps({"url": url}) if args.json else f"serving {config.model.name} at {url}; Ctrl-C ends it"
        )
        with suppress(KeyboardInterrupt, SystemExit):  # signals are how it ends
            server.run(sockets=[listener])
    finally:
        backend.close()


def _key(args: argparse.Namespace) -> str | None:
    """The key that clients have to give; None for none. Raises UsageError."""
    if args.api_key is not None and args.api_key_file is not None:
        raise UsageError("--api-key and --api-key-file are two keys", "give one of them")
    key: str | None = args.api_key
    if args.api_key_file is not None:
        try:
            with Path(args.api_key_file).open(encoding="utf-8") as file:
                key = file.read(_LONGEST_KEY + 1).strip()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"can't read the key in {args.api_key_file}: {reason_of(error)}", "check the path"
            ) from None
    if key is not None and not (8 <= len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise UsageError("this is no key", "a key is one line of at least 8 plain letters")
    return key
