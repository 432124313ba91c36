"""`kvchat engine ...`: the engines that terminals share, listed, ended and read about. Starts none and loads no torch."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict

from kvchat.backends.resident.asking import Resident, residents, stop
from kvchat.backends.resident.place import Place, places, runtime_folder
from kvchat.config import Config
from kvchat.errors import KvchatError, UsageError, reason_of
from kvchat.ui.figures import seconds_text, size_text


def listed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One line an engine. Raises UsageError where the runtime folder can't be used."""
    for engine in _residents(config):
        yield json.dumps(_row(engine), ensure_ascii=False) if args.json else described(engine)


def stopped(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """End one engine, or all; terminals that are attached start another one with their next message.

    Raises UsageError if it is not clear which, KvchatError if one had to be killed.
    """
    found = _residents(config)
    killed = []
    for engine in found if args.all else [_chosen(found, args.pid)]:
        if not stop(engine):
            killed.append(str(engine.pid))
        yield json.dumps({"pid": engine.pid}) if args.json else f"stopped {engine.pid}"
    if killed:
        raise KvchatError(
            f"{', '.join(killed)} did not end and was killed", "what was not written is computed again"
        )


def logged(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The log of one engine, or of the one that wrote last. Raises UsageError if there is none."""
    found = _residents(config)
    place = _chosen(found, args.pid).place if args.pid else _last_place(config)
    if place is None:
        raise UsageError("no engine has written a log", "start a chat first")
    text = place.log.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    yield json.dumps({"path": str(place.log), "text": text}, ensure_ascii=False) if args.json else text


def described(engine: Resident) -> str:
    """An engine in one line."""
    about = engine.about
    if about is None:
        return f"{engine.pid}  does not react"
    number = len(about.clients)
    clients = f"{number} client{'' if number == 1 else 's'}"
    memory = f"{size_text(about.memory_bytes)}, {size_text(about.live_bytes)} of it live KV"
    return f"{engine.pid}  {about.model}  {about.phase}  {clients}  {memory}  {_stay(engine)}"


def _stay(engine: Resident) -> str:
    about = engine.about
    assert about is not None
    age = f"runs for {seconds_text(max(0.0, time.time() - about.began_s))}"
    if about.clients or about.keep_alive < 0:
        return age
    return f"{age}, ends in {seconds_text(max(0.0, about.keep_alive - about.idle_s))}"


def _row(engine: Resident) -> dict[str, object]:
    row: dict[str, object] = {
        "pid": engine.pid,
        "log": str(engine.place.log),
        "reacts": engine.about is not None,
    }
    return row | (asdict(engine.about) if engine.about else {})


def _residents(config: Config) -> list[Resident]:
    try:
        return residents(config.paths.runtime)
    except OSError as error:
        raise UsageError(
            f"can't use {config.paths.runtime}: {reason_of(error)}",
            "set KVCHAT_RUNTIME to a folder of your own",
        ) from None


def _chosen(found: list[Resident], pid: int | None) -> Resident:
    """The engine that is meant. Raises UsageError."""
    meant = [engine for engine in found if pid in (None, engine.pid)]
    if len(meant) == 1:
        return meant[0]
    if not found:
        raise UsageError("no engine is running", "the next chat starts one")
    running = ", ".join(str(engine.pid) for engine in found)
    if not meant:
        raise UsageError(f"no engine has the process id {pid}", f"running: {running}")
    raise UsageError(f"{len(found)} engines are running", f"name one of {running}, or stop them with --all")


def _last_place(config: Config) -> Place | None:
    """The place whose log was written last."""
    logs = [place for place in places(runtime_folder(config.paths.runtime)) if place.log.exists()]
    return max(logs, key=lambda place: place.log.stat().st_mtime, default=None)
