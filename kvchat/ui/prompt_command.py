"""What `/prompt` does: saved system prompts listed, shown, and put in place. Knows no screen."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from kvchat.chat.tree import Preset
from kvchat.errors import UsageError
from kvchat.prompts.prompt import Prompt
from kvchat.prompts.shelves import Prompts
from kvchat.trust import Kind, owner_of
from kvchat.ui.cost import cost_line
from kvchat.ui.desk import Choice, Desk

_PREVIEW_LINES = 6


_TRUSTING = "--trust-prompts"


def prompt_names(desk: Desk) -> Iterable[str]:
    """What Tab offers."""
    return _prompts(desk).paths()


def run_prompt(desk: Desk, argument: str) -> str:
    """Offer all prompts, or make the named one the system prompt, with `NAME=VALUE` for its variables."""
    if argument.split(maxsplit=1)[:1] == [_TRUSTING]:
        argument = argument.strip().removeprefix(_TRUSTING)
        if folder := _prompts(desk).untrusted:
            desk.surroundings.trust.decide(Kind.PROMPTS, folder, True)
    prompts = _prompts(desk)
    name, values = _parsed(argument)
    if prompts.untrusted and name in prompts.waiting() and name not in prompts.paths():
        desk.offer(
            f"the prompt {name} is in a folder that you have not trusted yet:",
            [_trust_choice(prompts, argument)],
        )
        return ""
    if not name:
        choices = [_choice(prompts, each) for each in prompts.paths()]
        choices += [_trust_choice(prompts, "")] if prompts.waiting() else []
        if not choices:
            return "there is no saved prompt; kvchat prompts new NAME begins one"
        desk.offer("system prompts: (Enter takes it, Esc leaves)", choices)
        return ""
    prompt = prompts.prompt(name)
    text = _rendered(prompt, values)
    session = desk.session
    session.set_system(text, pinned=prompt.pin, preset=Preset(prompt.name, prompt.options))
    return "\n".join(line for line in (*_preview(prompt, text), *_advice(desk, prompt)) if line)


def _prompts(desk: Desk) -> Prompts:
    trust = desk.surroundings.trust
    return Prompts.around(Path.cwd(), is_trusted=lambda folder: trust.trusts(Kind.PROMPTS, folder))


def _trust_choice(prompts: Prompts, argument: str) -> Choice:
    folder, names = prompts.untrusted, ", ".join(prompts.waiting())
    assert folder is not None
    label = f"trust the prompts in {folder} (owned by {owner_of(folder)}) from now on: {names}"
    return Choice(label, f"/prompt {_TRUSTING} {argument}".strip())


def _parsed(argument: str) -> tuple[str, dict[str, str]]:
    try:
        name, *rest = shlex.split(argument) or [""]
    except ValueError as error:
        raise UsageError(f"can't read {argument!r}: {error}", "close the quotes") from None
    pairs = [word.partition("=") for word in rest]
    if any(not mark for _, mark, _ in pairs):
        raise UsageError(f"{argument!r} has a value without a name", "say /prompt NAME VARIABLE=VALUE")
    return name, {key: value for key, _, value in pairs}


def _choice(prompts: Prompts, name: str) -> Choice:
    try:
        about = prompts.prompt(name).description
    except UsageError as error:
        about = f"! {error.message}"
    return Choice(f"{name} · {prompts.paths()[name][0]} · {about}", f"/prompt {shlex.quote(name)}")


def _rendered(prompt: Prompt, values: dict[str, str]) -> str:
    missing = [name for name, default in prompt.vars.items() if default is None and name not in values]
    if missing:
        wanted = " ".join(f"{name}=VALUE" for name in missing)
        raise UsageError(f"{prompt.name} needs {', '.join(missing)}", f"say /prompt {prompt.name} {wanted}")
    return prompt.render(values, datetime.now())


def _preview(prompt: Prompt, text: str) -> list[str]:
    lines = text.strip().split("\n")
    shown = [f"  {line}" for line in lines[:_PREVIEW_LINES]]
    more = (
        [f"  ({len(lines) - _PREVIEW_LINES} more lines; /system shows all)"] if lines[_PREVIEW_LINES:] else []
    )
    return [f"{prompt.name}: {prompt.description}", f"from {prompt.path} ({prompt.shelf})", *shown, *more]


def _advice(desk: Desk, prompt: Prompt) -> list[str]:
    options = ", ".join(f"{name} {value}" for name, value in prompt.options.items())
    other = prompt.model if prompt.model and prompt.model != desk.session.model else ""
    return [
        f"while it is in use: {options}" if options else "",
        f"it is meant for another model: /model {other}" if other else "",
        "it is pinned: its KV is evicted last" if prompt.pin else "",
        f"it is used from the next message on; {cost_line(desk.session)}".rstrip("; "),
    ]
