"""`kvchat cache ...`: the stored KV from outside, as lines of text or JSON. Loads torch only to compute again."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvchat.backends.inspection import CacheTotals, VerifySample
from kvchat.cache.folder import StoredFile, default_disk_bytes, scan_folder
from kvchat.cache.maintenance import BadFile, FolderInfo, VerifyReport, list_folders, verify_checksums
from kvchat.config import Config
from kvchat.errors import KvchatError
from kvchat.ui.clean import one_line
from kvchat.ui.figures import age_text, percent_text, seconds_text, size_text, tier_text

if TYPE_CHECKING:
    from kvchat.cache.removal import Freed

_DAY_S = 86400.0
_LINES_AT_ONCE = 1000
_PRIORITIES = {0: "", 1: "shared", 2: "pinned"}


def cache_path(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The folder that KV is stored in; nothing else lies below it."""
    path = str(config.paths.cache)
    yield json.dumps({"path": path}) if args.json else path


def cache_ls(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One line a stored run, the one used last first."""
    scan = scan_folder(config.paths.cache)
    folders = {info.path: info for info in list_folders(config.paths.cache, scan)}
    names = {path: one_line(_name(info)) for path, info in folders.items()}
    now_s = time.time()
    files = sorted(scan.files, key=lambda file: -file.mtime_ns)
    for at in range(
        0, len(files), _LINES_AT_ONCE
    ):  # there may be 100,000, and each that is printed is flushed
        some = files[at : at + _LINES_AT_ONCE]
        if args.json:
            rows = (_run_json(file, folders.get(file.folder)) for file in some)
            yield "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        else:
            yield "\n".join(_run_text(file, names.get(file.folder, "?"), now_s) for file in some)


def _run_json(file: StoredFile, info: FolderInfo | None) -> dict[str, Any]:
    meta = info.meta if info else None
    return {
        "path": str(file.path),
        "model": _name(info),
        "start": file.name.start,
        "end": file.name.end,
        "bytes": file.num_bytes,
        "codec": meta.codec if meta else "",
        "priority": file.name.priority,
        "used": file.mtime_ns / 1e9,
    }


def _run_text(file: StoredFile, model: str, now_s: float) -> str:
    name = file.name
    tokens = f"tokens {name.start}-{name.end}"
    age = age_text(max(0, int(now_s - file.mtime_ns / 1e9)))
    kept = _PRIORITIES.get(name.priority, f"priority {name.priority}")
    line = f"{model:<32} {tokens:<20} {size_text(file.num_bytes):>9}  {age:>6}  {kept}"
    return line.rstrip()


def cache_stat(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What is stored for each model, the budget, and what the cache did in the last seven days and over all time."""
    folders = list_folders(config.paths.cache)
    week, totals = totals_of(config, since_s=time.time() - 6 * _DAY_S), totals_of(config)
    num_bytes = sum(info.num_bytes for info in folders)
    budget = _disk_budget(config)
    if args.json:
        stored = [_folder_json(info) for info in folders]
        report = {"path": str(config.paths.cache), "bytes": num_bytes, "budget_bytes": budget}
        done = {"week": totals_json(week), "all_time": totals_json(totals)}
        yield json.dumps(report | {"models": stored} | done, ensure_ascii=False)
        return
    for info in folders:
        yield _folder_text(info)
    yield f"in total {size_text(num_bytes)} of {size_text(budget)} in {config.paths.cache}"
    yield from totals_lines("7 days", week)
    yield from totals_lines("all time", totals)


def _folder_json(info: FolderInfo) -> dict[str, Any]:
    """A folder without its KV layout, which is long and of no use here."""
    meta = {
        key: value for key, value in (info.meta.to_json() if info.meta else {}).items() if key != "layout"
    }
    return {"name": _name(info), **info.to_json(), "meta": meta or None}


def _folder_text(info: FolderInfo) -> str:
    codec = info.meta.codec if info.meta else "?"
    files = f"{info.num_files} file{'' if info.num_files == 1 else 's'}"
    counts = f"{files:>10}  {info.num_tokens:>9} tokens  {size_text(info.num_bytes):>9}"
    kind = " (lossy)" if codec == "int8" else f", packed to {info.share:.2f}" if info.share < 1 else ""
    return f"{one_line(_name(info)):<32} {counts}  {codec}{kind}"


def cache_trace(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The saved conversations as a trace: a line an answer, with lengths, times and numbers for blocks; no text."""
    from kvchat.chat.store import FILE_NAME, Store
    from kvchat.commands.history import trace_lines

    if not (config.paths.data / FILE_NAME).exists():
        return
    store = Store(config.paths.data / FILE_NAME)
    try:
        yield from trace_lines(store, config.cache.block_size)
    finally:
        store.close()


def totals_of(config: Config, *, since_s: float | None = None) -> CacheTotals:
    """What the cache did for all answers that were saved, or for those of the days since; nothing is created."""
    from kvchat.chat.store import FILE_NAME, Store

    if not (config.paths.data / FILE_NAME).exists():
        return CacheTotals()
    store = Store(config.paths.data / FILE_NAME)
    try:
        return store.totals(since_s)
    finally:
        store.close()


def totals_json(totals: CacheTotals) -> dict[str, Any]:
    """The totals with what follows from them."""
    return {**totals.counts(), "hit_tokens": totals.hit_tokens, "net_saved_s": totals.net_saved_s}


def totals_lines(span: str, totals: CacheTotals) -> Iterator[str]:
    """The totals of a span of time in two lines."""
    if not totals.asked_tokens:
        yield f"{span}: no prompt was computed yet"
        return
    share = percent_text(totals.hit_rate)
    yield f"{span}: asked {totals.asked_tokens} tokens, hit {totals.hit_tokens} ({share}): " + ", ".join(
        f"{tier_text(name)} {count}"
        for name, count in {"live": totals.live_tokens, **totals.tier_tokens}.items()
    )
    saved = f", saved {seconds_text(totals.net_saved_s)} net" if totals.saved_s else ""
    yield f"          stored {size_text(totals.stored_bytes)}{saved}"


def cache_prune(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Remove what is over the budget or too old, orphans and left-overs in any case."""
    from kvchat.cache.removal import prune  # numpy, for the order in which files go

    is_plain = args.to is None and args.older_than is None
    freed = prune(
        config.paths.cache,
        budget_bytes=_disk_budget(config) if is_plain else args.to,
        older_than_s=None if args.older_than is None else args.older_than * _DAY_S,
        policy=config.cache.policy,
        dry_run=args.dry_run,
    )
    yield _freed_line(freed, args.json)


def cache_clear(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Remove all stored KV of all models, also from the RAM of engines that are shared."""
    from kvchat.backends.resident.asking import forget
    from kvchat.cache.removal import clear

    if not args.dry_run:
        forget(config.paths.runtime)
    yield _freed_line(clear(config.paths.cache, dry_run=args.dry_run), args.json)


def _freed_line(freed: Freed, as_json: bool) -> str:
    if as_json:
        return json.dumps(freed.to_json())
    verb = "would free" if freed.is_dry_run else "freed"
    return (
        f"{verb} {size_text(freed.num_bytes)} in {freed.num_files} file{'' if freed.num_files == 1 else 's'}"
    )


def cache_verify(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Check every checksum, and a sample against a cold computation. Raises KvchatError when something is wrong."""
    from kvchat.cache.removal import remove_bad

    report = verify_checksums(config.paths.cache)
    sample, why_not = (None, "") if args.no_recompute else _sample(config, args.sample)
    wrong = [BadFile(path, "its KV does not belong to its tokens") for path in _wrong_paths(report, sample)]
    bad = replace(report, bad=(*report.bad, *wrong))
    freed = remove_bad(config.paths.cache, bad, dry_run=args.dry_run) if args.remove and bad.bad else None
    if args.json:
        extra = {"sample": asdict(sample) if sample else None, "freed": freed.to_json() if freed else None}
        yield json.dumps({**bad.to_json(), **extra}, ensure_ascii=False)
    else:
        yield from _verify_lines(bad, sample, why_not)
        if freed:
            yield _freed_line(freed, False)
    if bad.bad and (freed is None or freed.is_dry_run):
        raise KvchatError(
            f"{len(bad.bad)} of {report.num_files} files can't be used",
            "kvchat cache verify --remove deletes them",
        )


def _wrong_paths(report: VerifyReport, sample: VerifySample | None) -> list[Path]:
    known = {file.path for file in report.bad}
    return [Path(run.path) for run in (sample.wrong if sample else ()) if Path(run.path) not in known]


def _verify_lines(report: VerifyReport, sample: VerifySample | None, why_not: str) -> Iterator[str]:
    for file in report.bad:
        yield f"{file.path}: {file.reason}"
    bad = f"{len(report.bad)} bad" if report.bad else "all sound"
    yield f"{report.num_files} files, {report.num_blocks} blocks, {size_text(report.num_bytes)}: {bad}"
    if report.left_over:
        yield f"{len(report.left_over)} leftover files are of no use; kvchat cache prune removes them"
    if sample is None:
        yield from ([why_not] if why_not else [])
        return
    largest = max((run.difference for run in sample.runs), default=0.0)
    bound = "only the likeliest token counts" if sample.bound is None else f"at most {sample.bound:g}"
    bound = "it has to be zero" if sample.bound == 0 else bound
    yield (
        f"recomputed {len(sample.runs)} of them with {sample.model} in {sample.dtype} ({sample.codec}): "
        f"{len(sample.wrong)} wrong, largest difference {largest:.2g} ({bound})"
    )


def _sample(config: Config, num_runs: int) -> tuple[VerifySample | None, str]:
    """What computing a sample again showed, or why that was not done. Fetches nothing and writes no KV."""
    from kvchat.models.sources.catalog import Catalog

    name = config.model.name
    files = Catalog(config.paths.models, offline=True).find(name)
    if files is None:
        return None, f"nothing was recomputed: {name} is not on this disk (kvchat models pull {name})"
    described = [info.meta.described.get("model") for info in list_folders(config.paths.cache) if info.meta]
    if files.name not in described:
        return None, f"nothing was recomputed: nothing is stored for {files.name}"
    from kvchat.commands.starting import local_backend

    wanted = replace(
        config,
        model=replace(config.model, offline=True),
        cache=replace(config.cache, mode="ro"),
        chat=replace(config.chat, save=True),
    )
    backend = local_backend(wanted)
    try:
        return backend.verify(num_runs), ""
    finally:
        backend.close()


def _disk_budget(config: Config) -> int:
    given = config.cache.disk
    return default_disk_bytes(config.paths.cache) if given is None else given


def _name(info: FolderInfo | None) -> str:
    """The model and dtype that a folder belongs to, or the folder's own name."""
    if info is None:
        return "?"
    described = info.meta.described if info.meta else {}
    if "model" not in described:
        return info.path.name
    adapter = f"+{Path(described['adapter']).name}" if described.get("adapter") else ""
    return f"{described['model']}{adapter} {described.get('dtype', '')}".rstrip()
