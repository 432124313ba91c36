"""`kvchat doctor`: what this machine, its folders and the model are like, and what has to be fixed. Uses the network only for
a model that a remote serves."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kvchat.backends.base import Answer, Backend, Done, Options, Role, Turn
from kvchat.cache.folder import default_disk_bytes, scan_folder
from kvchat.commands.config import given_flags
from kvchat.commands.flags import FLAG_NAMES
from kvchat.config import Config, config_file, load_config
from kvchat.errors import KvchatError, ModelUnavailableError, UsageError
from kvchat.ui.figures import size_text
from kvchat.ui.render import promise_text, reuse_text, template_text, weights_text

PACKAGES = ("kvchat", "torch", "transformers", "tokenizers", "safetensors", "prompt_toolkit", "rich")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
NEEDED_MEMORY_BYTES = 2**30
NEEDED_DISK_BYTES = 2**30
ANSWER_TOKENS = 24
ANSWER_LIMIT_S = 4.0
"""How long an answer may take before it is cut off."""
MIN_REUSED = 0.5
"""Of the second prompt's tokens, the part that has to come from the first turn."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `remedy` says what to do; without one there is nothing to fix."""

    name: str
    value: str
    remedy: str = ""


def report(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What was found, as it is found; with --json one object. Raises KvchatError if something has to be fixed."""
    found: list[Finding] = []
    for finding in findings(given_flags(args), _local):
        found.append(finding)
        if not args.json:
            yield _line(finding)
    to_fix = [finding for finding in found if finding.remedy]
    if args.json:
        yield json.dumps({"ok": not to_fix, "findings": [asdict(one) for one in found]}, ensure_ascii=False)
    if to_fix:
        raise KvchatError(
            f"{len(to_fix)} of {len(found)} checks found something to fix",
            "; ".join(f"{finding.name}: {finding.remedy}" for finding in to_fix),
        )


def _line(finding: Finding) -> str:
    mark = "!" if finding.remedy else " "
    line = f"{mark} {finding.name:<12} {finding.value}"
    return f"{line}\n{'':<15}-> {finding.remedy}" if finding.remedy else line


def findings(flags: dict[str, object], open_backend: Callable[[Config], Backend]) -> Iterator[Finding]:
    """All checks, the slowest last; `open_backend` makes what the self-test talks to."""
    yield from (versions(), processor(), memory())
    try:
        config = load_config(flags, flag_names=FLAG_NAMES)
    except UsageError as error:
        yield Finding("settings", error.message, error.remedy or "kvchat config edit")
        config = Config()
    else:
        yield Finding("settings", str(config_file()) if config_file().exists() else "defaults")
    yield from folders(config)
    yield disk(config)
    yield from engines(config)
    yield from model(config, open_backend)


def versions() -> Finding:
    """The versions of Python, this program and what it builds on."""
    found = {"Python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    missing = [name for name, number in found.items() if not number]
    shown = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    return Finding("versions", shown, f"install {', '.join(missing)}" if missing else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """The processor's cores, and the features that make models faster."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    flags = facts.get("flags", facts.get("Features", "")).split()
    features = " ".join(name for name in CPU_FEATURES if name in flags) or "no known features"
    name = facts.get("model name") or platform.processor() or platform.machine()
    return Finding("processor", f"{name}, {os.cpu_count()} cores, {features}")


def memory(meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """The machine's memory, and how much of it is free if the system says so."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        words = {
            line.split()[0]: line.split()[1] for line in meminfo.read_text(encoding="ascii").splitlines()
        }
        free = int(words["MemAvailable:"]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return Finding("memory", size_text(total))
    remedy = "close other programs" if free < NEEDED_MEMORY_BYTES else ""
    return Finding("memory", f"{size_text(free)} free of {size_text(total)}", remedy)


def folders(config: Config) -> Iterator[Finding]:
    """The program's folders, what they take, and whether they can be written."""
    paths = config.paths
    for name, path in {"models": paths.models, "cache": paths.cache, "data": paths.data}.items():
        yield _folder(name, path)
    yield _folder("config", config_file().parent)


def _folder(name: str, path: Path) -> Finding:
    if path.exists() and not path.is_dir():
        return Finding(name, f"{path} is not a folder", "remove it, or set another folder")
    if not path.exists():
        remedy = "" if _is_writable(_existing(path)) else f"make {_existing(path)} writable"
        return Finding(name, f"{path}, not created yet", remedy)
    value = f"{path}, {size_text(_num_bytes(path))}"
    if not _is_writable(path):
        return Finding(name, f"{value}, read-only", f"make it writable: chmod u+rwx {path}")
    return Finding(name, value)


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _num_bytes(folder: Path) -> int:
    """How large the files below a folder are. Links are not followed, and what can't be read counts as nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_size
            except OSError:
                continue
    return total


def disk(config: Config) -> Finding:
    """Free space where KV is stored, and the cache's budget there."""
    free = shutil.disk_usage(_existing(config.paths.cache)).free
    used = scan_folder(config.paths.cache).num_bytes
    budget = default_disk_bytes(config.paths.cache) if config.cache.disk is None else config.cache.disk
    value = f"{size_text(free)} free; the cache uses {size_text(used)} of {size_text(budget)}"
    return Finding(
        "disk", value, "free some space, or run kvchat cache prune" if free < NEEDED_DISK_BYTES else ""
    )


def engines(config: Config) -> Iterator[Finding]:
    """The engines that terminals share, if there are any; one that does not react has to be ended."""
    from kvchat.backends.resident.asking import residents
    from kvchat.commands.engine import described

    try:
        found = residents(config.paths.runtime)
    except OSError as error:
        yield Finding("engine", str(error), "set KVCHAT_RUNTIME to a folder of your own")
        return
    for engine in found:
        yield Finding("engine", described(engine), "" if engine.about else f"kvchat engine stop {engine.pid}")


def model(config: Config, open_backend: Callable[[Config], Backend]) -> Iterator[Finding]:
    """The configured model if it is here: two turns, the second of which has to reuse the first."""
    from kvchat.models.sources.catalog import Catalog
    from kvchat.remotes import target_of

    name = config.model.name
    try:
        target = target_of(name, config.remotes)
    except UsageError as error:
        yield Finding("model", error.message, error.remedy or "try another model with -m")
        return
    if target is not None:
        yield Finding("model", f"{name}, at {target.remote.url}")
        yield from _tested(open_backend(replace(config, chat=replace(config.chat, save=False, system=None))))
        return
    try:
        folder = Catalog(config.paths.models, offline=True).path(name)
    except ModelUnavailableError as error:
        yield Finding("model", error.message, error.remedy or "try another model with -m")
        return
    yield Finding("model", f"{name} in {folder}")
    nowhere = replace(config.chat, save=False, system=None)
    yield from _tested(open_backend(replace(config, model=replace(config.model, offline=True), chat=nowhere)))


def _tested(backend: Backend) -> Iterator[Finding]:
    """The self-test's findings; the backend is closed behind it."""
    try:
        yield from self_test(backend)
    except KvchatError as error:
        yield Finding("self-test", error.message, error.remedy or "try another model with -m")
    finally:
        backend.close()


def self_test(backend: Backend) -> Iterator[Finding]:
    """Answer two short messages. Raises KvchatError where the backend does."""
    info = backend.info()
    context = f"context {info.context or 'not reported'}"
    if info.reuse == "server":
        ids = "token ids are sent" if info.tokenizer else "text is sent"
        yield Finding("server", f"{info.name}, {info.device}, {context}; {ids}")
    else:
        yield Finding("loading", f"{info.load_ms / 1e3:.1f} s, {info.dtype} on {info.device}, {context}")
    if info.adapter:
        yield Finding("adapter", info.adapter)
    yield Finding("template", template_text(info.template))
    yield Finding("policy", reuse_text(info))
    yield Finding("promise", promise_text(info))
    yield Finding("weights", weights_text(info))
    first = Turn(Role.USER, "Count from one to twenty in words.")
    said = _answer(backend, [first])
    for _ in backend.prepare([first, said.turn()], Options()):
        pass  # as between two messages of a dialogue
    again = _answer(backend, [first, said.turn(), Turn(Role.USER, "Go on.")])
    speed = max(said.timings.decode_tokens_per_s, again.timings.decode_tokens_per_s)
    yield Finding("speed", f"{speed:.1f} tokens/s, first text after {again.timings.ttft_ms / 1e3:.2f} s")
    usage = again.usage
    value = f"the second answer reused {usage.cached_tokens} of {usage.prompt_tokens} tokens"
    if not again.cache.is_reported:
        yield Finding("reuse", again.cache.reason)
        return
    is_reused = usage.cached_tokens >= MIN_REUSED * usage.prompt_tokens
    remedy = (
        "" if is_reused or info.reuse == "none" else f"/cache why in a chat tells more: {again.cache.reason}"
    )
    yield Finding(
        "reuse",
        value if info.reuse != "none" else f"nothing that {info.architecture} models compute can be reused",
        remedy,
    )


def _answer(backend: Backend, history: list[Turn]) -> Answer:
    """The answer, cut off when it takes too long."""
    deadline = time.monotonic() + ANSWER_LIMIT_S
    for event in backend.answer(history, Options(max_tokens=ANSWER_TOKENS, temperature=0.0)):
        if isinstance(event, Done):
            return event.answer
        if time.monotonic() > deadline:
            backend.cancel()
    raise AssertionError("a backend ended an answer without Done")


def _local(config: Config) -> Backend:
    from kvchat.commands.starting import oneshot_backend

    return oneshot_backend(replace(config, engine=replace(config.engine, share=False)))
