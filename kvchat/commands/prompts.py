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

from kvchat.chat.tree import Preset
from kvchat.commands.terminal import for_terminal
from kvchat.commands.trusting import prompts_around, prompts_with
from kvchat.config import Config, editor, load_config
from kvchat.errors import KvchatError, UsageError
from kvchat.prompts.lint import Measure, lint
from kvchat.prompts.prompt import Prompt, Shelf, prompt_text
from kvchat.prompts.shelves import SUFFIX, Prompts, check_name, user_folder
from kvchat.trust import Kind, Trust, owner_of, trust_for_now
from kvchat.ui.asking import tell

_MAX_ABOUT = 400
_SKELETON = """\
---
description: What this prompt is for, in one line
# model: smollm2-135m
# options: {temperature: 0.2, max_tokens: 300}
# vars: {language: English}
# pin: true
---
You are …

Put first what is always the same. What changes from one use to the next ({{ language }}, today's date) belongs at
the end or in the message, because the cache holds a prompt only up to the first token that differs.
"""


def with_prompt(args: argparse.Namespace, given: Mapping[str, object]) -> dict[str, object]:
    """`given` over what `-t NAME --var k=v …` sets, as `load_config` takes it; says where that comes from. The prompt's
    sampling options, which go with it, are put into `args.preset`.

    Trust in the code of a model counts for the one that the user named, not for a prompt's. Raises UsageError.
    """
    trust = Trust.from_config(load_config({"chat.save": given.get("chat.save")}))
    if args.trust_prompts:
        trust_for_now(trust)
    prompts = prompts_with(args.template, trust)
    prompt = prompts.prompt(args.template)
    settings = prompt.settings(prompt.render(_values(args.var), datetime.now()))
    options = {name: value for name, value in prompt.options.items() if f"sampling.{name}" not in given}
    args.preset = Preset(prompt.name, options)
    if not (args.quiet or args.json):
        tell(_origin(prompt, prompts))
    if prompt.model and "model.name" not in given:
        given = {key: value for key, value in given.items() if key != "model.trust_remote_code"}
    return {key: value for key, value in settings.items() if not key.startswith("sampling.")} | dict(given)


def _origin(prompt: Prompt, prompts: Prompts) -> str:
    """Where a prompt comes from, what it sets beside the system prompt, and what bears its name and is not used."""
    sets = {"model": prompt.model, **prompt.options} if prompt.model else prompt.options
    parts = [f"the prompt {prompt.name} is {prompt.path} ({prompt.shelf})"]
    parts += [f"it sets {', '.join(f'{name} {value}' for name, value in sets.items())}"] if sets else []
    other = prompts.waiting().get(prompt.name)
    is_another = other is not None and not _is_same(other, prompt.path)
    parts += [f"{other} is not trusted and not used (--trust-prompts)"] if is_another else []
    return "; ".join(parts)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two names are those of one file; not if one leads nowhere."""
    try:
        return path.samefile(other)
    except OSError:
        return False


def listed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """All prompts by name; one that can't be read, or that lies where the user trusts nothing, shows why."""
    prompts = _prompts(args, config)
    waiting = {name: (Shelf.HERE, path) for name, path in prompts.waiting().items()}
    for name, (shelf, path) in sorted((waiting | prompts.paths()).items()):
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
            said = f"! {error}" if error else about[:_MAX_ABOUT]
            yield for_terminal(f"{name:<18} {shelf:<8} {said}".rstrip())


def shown(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """One prompt: its file as it is, or with `--var` the text that it becomes."""
    prompt = _prompts(args, config).prompt(args.name)
    if args.json:
        yield json.dumps(_json(prompt), ensure_ascii=False)
    elif args.values:
        yield for_terminal(prompt.render(_values(args.values), datetime.now()))
    else:
        yield for_terminal(prompt_text(prompt.path).rstrip("\n"))


def placed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """The file of a prompt, or the user's folder."""
    yield str(_prompts(args, config).prompt(args.name).path if args.name else user_folder())


def created(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Begin a prompt in the user's folder, and open it in an editor if there is a terminal."""
    path = user_folder() / (check_name(args.name) + SUFFIX)
    if path.exists():
        raise UsageError(f"{path} already exists", f"kvchat prompts edit {args.name} opens it")
    _write(path, _SKELETON)
    _edit(path)
    yield str(path)


def edited(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Open a prompt in an editor; of a shipped one a copy in the user's folder, which wins from then on."""
    prompt = _prompts(args, config).prompt(args.name)
    path = prompt.path
    if prompt.shelf is Shelf.SHIPPED:
        path = user_folder() / path.name
        _write(path, prompt_text(prompt.path))
    _edit(path)
    yield str(path)


def removed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Delete one of the user's prompts."""
    path = user_folder() / (check_name(args.name) + SUFFIX)
    if not path.is_file():
        _prompts(args, config).prompt(args.name)  # an unknown one is named as such
        raise UsageError(
            f"{args.name} is not among your own prompts", f"only those in {path.parent} can be removed"
        )
    path.unlink()
    yield json.dumps({"name": args.name, "path": str(path)}) if args.json else f"removed {path}"


def linted(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """What defeats the cache in these prompts, or in all. Raises KvchatError if anything does."""
    prompts, measure = _prompts(args, config), _measure(config)
    num_findings = 0
    for name in args.names or prompts.paths():
        try:
            prompt = prompts.prompt(name)
        except UsageError as error:
            if args.names:
                raise
            num_findings += 1
            row = {"name": name, "path": str(prompts.paths()[name][1]), "line": 1, "finding": str(error)}
            yield json.dumps(row, ensure_ascii=False) if args.json else f"{name}: {error}"
            continue
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
        raise KvchatError(f"{num_findings} finding{plural}", "fix what was found, or live with it")


def warmed(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Compute and store a prompt's KV ahead of use."""
    from kvchat.backends.base import Prefilling, Role, Turn
    from kvchat.commands.starting import oneshot_backend

    prompt = _prompts(args, config).prompt(args.name)
    text = prompt.render(_values(args.values), datetime.now())
    model = {"model.name": prompt.model or config.model.name, "model.offline": config.model.offline}
    backend = oneshot_backend(load_config(model) if prompt.model else config)
    try:
        total = cached = 0
        for event in backend.warm((Turn(Role.SYSTEM, text, pinned=prompt.pin),)):
            if isinstance(event, Prefilling):
                total, cached = event.total, event.cached
    finally:
        backend.close()
    row = {"name": prompt.name, "computed_tokens": total, "cached_tokens": cached, "pinned": prompt.pin}
    yield json.dumps(row) if args.json else f"{prompt.name}: {total} tokens computed, {cached} were cached"


def trusted(args: argparse.Namespace, config: Config) -> Iterator[str]:
    """Record whether the user trusts the prompts beside their work. Raises UsageError where there are none."""
    folder = Path.cwd() / "prompts"
    if not folder.is_dir():
        raise UsageError("there is no folder called prompts here", "change to the folder that contains it")
    Trust.from_config(config).decide(Kind.PROMPTS, folder, not args.no)
    row = {"path": str(folder.resolve()), "owner": owner_of(folder), "trusted": not args.no}
    word = "will not be used" if args.no else "are trusted from now on"
    yield json.dumps(row) if args.json else f"the prompts in {row['path']} (of {row['owner']}) {word}"


def _prompts(args: argparse.Namespace, config: Config) -> Prompts:
    trust = Trust.from_config(config)
    if getattr(args, "trust_prompts", False):
        trust_for_now(trust)
    return prompts_around(trust)


def _values(pairs: Sequence[str] | None) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"--var {pair} has no name or no value", "write --var NAME=VALUE")
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
    from kvchat.models.sources.catalog import Catalog

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
