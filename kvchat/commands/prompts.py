"""What `kvchat prompts VERB` does, and what `-t NAME` sets. Loads no torch, except to warm a prompt."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kvchat.chat.lint import Measure, lint
from kvchat.chat.prompts import SUFFIX, Prompt, Prompts, Shelf, check_name, user_folder
from kvchat.commands.terminal import for_terminal
from kvchat.config import Config, editor
from kvchat.errors import KvchatError, UsageError

_SKELETON = """\
---
description: What it makes of the model, in one line
# model: smollm2-135m
# options: {temperature: 0.2, max_tokens: 300}
# vars: {language: English}
# pin: true
---
You are …

Put what is always the same first. What changes from one use to the next ({{ language }}, today's date) belongs at
the end, or into the message: the cache holds a prompt up to the first token that differs.
"""


def settings_of(name: str, pairs: Sequence[str] | None) -> dict[str, object]:
    """What `-t NAME --var k=v …` sets, as `load_config` takes it. Raises UsageError."""
    prompt = _prompts().prompt(name)
    return prompt.settings(prompt.render(_values(pairs), datetime.now()))


def listed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """All prompts by name; one that can't be read shows why."""
    prompts = _prompts()
    for name, (shelf, path) in prompts.paths().items():
        try:
            about, error = prompts.prompt(name).description, ""
        except UsageError as failure:
            about, error = "", str(failure)
        if args.json:
            row = {
                "name": name,
                "shelf": str(shelf),
                "path": str(path),
                "description": about,
                "error": error or None,
            }
            yield json.dumps(row, ensure_ascii=False)
        else:
            yield for_terminal(f"{name:<18} {shelf:<8} {f'! {error}' if error else about}".rstrip())


def shown(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One prompt: its file as it is, or with `--var` the text that it becomes."""
    prompt = _prompts().prompt(args.name)
    if args.json:
        yield json.dumps(_json(prompt), ensure_ascii=False)
    elif args.values:
        yield for_terminal(prompt.render(_values(args.values), datetime.now()))
    else:
        yield for_terminal(prompt.path.read_text(encoding="utf-8").rstrip("\n"))


def placed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The file of a prompt, or the user's folder."""
    yield str(_prompts().prompt(args.name).path if args.name else user_folder())


def created(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Begin a prompt in the user's folder, and open it in an editor if there is a terminal."""
    path = user_folder() / (check_name(args.name) + SUFFIX)
    if path.exists():
        raise UsageError(f"there is {path} already", f"kvchat prompts edit {args.name} opens it")
    _write(path, _SKELETON)
    _edit(path)
    yield str(path)


def edited(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Open a prompt in an editor; of a shipped one a copy in the user's folder, which wins from then on."""
    prompt = _prompts().prompt(args.name)
    path = prompt.path
    if prompt.shelf is Shelf.SHIPPED:
        path = user_folder() / path.name
        _write(path, prompt.path.read_text(encoding="utf-8"))
    _edit(path)
    yield str(path)


def removed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Delete one of the user's prompts."""
    path = user_folder() / (check_name(args.name) + SUFFIX)
    if not path.is_file():
        _prompts().prompt(args.name)  # an unknown one is named as such
        raise UsageError(
            f"{args.name} is not among yours", f"only prompts in {path.parent} can be removed here"
        )
    path.unlink()
    yield json.dumps({"name": args.name, "path": str(path)}) if args.json else f"removed {path}"


def linted(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What defeats the cache in these prompts, or in all. Raises KvchatError if anything does."""
    prompts, measure = _prompts(), _measure(config)
    num_findings = 0
    for name in args.names or prompts.paths():
        prompt = prompts.prompt(name)
        findings = lint(prompt, measure)
        num_findings += len(findings)
        for finding in findings:
            row = {"name": name, "path": str(prompt.path), "line": finding.line, "finding": finding.text}
            yield (
                json.dumps(row, ensure_ascii=False)
                if args.json
                else f"{prompt.path}:{finding.line}: {finding.text}"
            )
        if not findings and not args.json:
            yield f"{name}: all of its {measure.count(prompt.body)} {measure.unit} can be reused"
    if num_findings:
        plural = "" if num_findings == 1 else "s"
        raise KvchatError(f"{num_findings} finding{plural}", "mend what was found, or live with it")


def warmed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Compute and store a prompt's KV ahead of use."""
    from kvchat.backends.base import Prefilling, Role, Turn
    from kvchat.commands.starting import local_backend
    from kvchat.config import load_config

    prompt = _prompts().prompt(args.name)
    text = prompt.render(_values(args.values), datetime.now())
    model = {"model.name": prompt.model or config.model.name, "model.offline": config.model.offline}
    backend = local_backend(load_config(model) if prompt.model else config)
    try:
        total = cached = 0
        for event in backend.warm((Turn(Role.SYSTEM, text, pinned=prompt.pin),)):
            if isinstance(event, Prefilling):
                total, cached = event.total, event.cached
    finally:
        backend.close()
    row = {"name": prompt.name, "computed_tokens": total, "cached_tokens": cached, "pinned": prompt.pin}
    yield json.dumps(row) if args.json else f"{prompt.name}: {total} tokens computed, {cached} were there"


def _prompts() -> Prompts:
    return Prompts.around(Path.cwd())


def _values(pairs: Sequence[str] | None) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"--var {pair} has no value", "write --var NAME=VALUE")
        values[name.strip()] = value
    return values


def _json(prompt: Prompt) -> dict[str, Any]:
    return {
        "name": prompt.name,
        "shelf": str(prompt.shelf),
        "path": str(prompt.path),
        "description": prompt.description,
        "model": prompt.model,
        "options": dict(prompt.options),
        "vars": dict(prompt.vars),
        "pin": prompt.pin,
        "body": prompt.body,
    }


def _measure(config: Config) -> Measure:
    """Tokens, if the model's tokenizer lies on this disk, else characters."""
    from kvchat.models.catalog import Catalog

    files = Catalog(config.paths.models, offline=True).find(config.model.name)
    path = files.folder / "tokenizer.json" if files else None
    if path is None or not path.is_file():
        return Measure()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return Measure(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), "tokens")


def _write(path: Path, text: str) -> None:
    """Write a prompt that only its owner can read. Raises UsageError."""
    from kvchat.chat.export import write_private

    try:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, text)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}", "check the folder") from None


def _edit(path: Path) -> None:
    """Open a file in the user's editor; nothing where nobody could see it. Raises UsageError."""
    command = editor()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    try:
        subprocess.run([*shlex.split(command), str(path)], check=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"can't run the editor {command!r}: {error}", "set VISUAL or EDITOR") from None
