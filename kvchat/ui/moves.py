"""Commands that move through conversations and ask again: rows of the table of commands. Knows no screen."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from kvchat.backends.base import Role, Turn
from kvchat.chat.export import FORMATS
from kvchat.chat.session import Session
from kvchat.chat.store import LATEST
from kvchat.chat.warmth import Warmth, warmth
from kvchat.errors import UsageError
from kvchat.ui.branches import KEY_LENGTH, branch_label, branch_tree
from kvchat.ui.clean import one_line
from kvchat.ui.clipboard import write_new
from kvchat.ui.cost import cost_line
from kvchat.ui.desk import Asking, Attachment, Choice, Desk, SlashCommand, number
from kvchat.ui.figures import age_text
from kvchat.ui.files import file_part, with_files
from kvchat.ui.model_command import run_model
from kvchat.ui.recap import recap, shown
from kvchat.ui.tables import joined

_LISTED = 200
_RETRY_TEMPERATURE = 0.8
_SURE = "--yes"
_NO = Choice("no, keep it", "")


def _new(desk: Desk, argument: str) -> str:
    desk.session.new(argument or None)
    return "a new conversation begins" + ("; the system prompt stays" if desk.session.system else "")


def _sessions(desk: Desk, argument: str) -> str:
    session = desk.session
    rows = session.store.sessions(number(argument, _LISTED))
    if not rows:
        return "there are no sessions yet; your first message starts one"
    warm = warmth(session.store, rows, desk.surroundings.stored_tips())
    now, choices = time.time(), []
    for row in rows:
        held = warm.get(row.id, Warmth())
        parts = [
            _ago(now - row.updated),
            "1 turn" if row.num_exchanges == 1 else f"{row.num_exchanges} turns",
            f"{row.num_tokens} tokens",
            str(held),
            "asked once" if row.is_oneshot else "",
            one_line(row.label) + (" (this one)" if row.id == session.id else ""),
        ]
        choices.append(Choice(" · ".join(part for part in parts if part), f"/resume {row.id}"))
    desk.offer("sessions: (Enter continues it, Esc leaves)", choices, 0)
    return ""


def _ago(seconds: float) -> str:
    age = age_text(max(0.0, seconds))
    return "just now" if age == "now" else f"{age} ago"


def _resume(desk: Desk, argument: str) -> str:
    session = desk.session
    session.resume(argument or LATEST)
    row = session.store.session(session.id)
    other = f"it was held with {row.model}; /model {row.model} switches back"
    differs = bool(row.model and session.model and row.model != session.model)
    notes = _joined(other if differs else "", cost_line(session))
    return joined([shown(recap(session), desk.look), notes], desk.look.columns - 1)


def _delete(desk: Desk, argument: str) -> str:
    """Delete a session, once that was asked."""
    store = desk.session.store
    key, _, sure = argument.partition(" ")
    row = store.session(key or desk.session.id)
    if sure != _SURE:
        yes = Choice(f"yes, delete {row.label!r} for good", f"/delete {row.id} {_SURE}")
        desk.offer("delete this session? (Enter takes it, Esc leaves)", [_NO, yes], 0)
        return ""
    if row.id == desk.session.id:
        desk.session.new()
    gone = store.delete(row.id)
    desk.surroundings.forget(gone.kv_tips, store.kv_tips())
    store.database.scrub()
    return f"{row.label!r} is deleted"


def _rename(desk: Desk, argument: str) -> str:
    desk.session.rename(argument)
    return f"this session is now called {argument}"


def _undo(desk: Desk, argument: str) -> str:
    count = number(argument, 1)
    left = desk.session.undo(count)
    desk.put_back(left[0].user.text)
    what = "the last message is" if count == 1 else f"the last {count} messages are"
    return f"{what} taken back; what was said stays as a branch, and the message is in the input"


def _retry(desk: Desk, argument: str) -> Asking:
    """Another answer: drawn, where the likeliest tokens would give the same one again."""
    session = desk.session
    chosen, tip = session.chosen, session.tip
    draws = any(value is not None for value in (chosen.top_k, chosen.top_p, chosen.min_p))
    own = (
        chosen.temperature if chosen.temperature is not None else session.backend.info().defaults.temperature
    )
    if tip is None or tip.answer is None or own or (draws and chosen.temperature is None):
        return Asking(session.retry())
    note = (
        f"sampled at temperature {_RETRY_TEMPERATURE}, because the likeliest answer would be the same again"
    )
    return Asking(session.retry(temperature=_RETRY_TEMPERATURE), note)


def _variant(step: int, desk: Desk, argument: str) -> str:
    """Another answer to the last message, of those that there are; the message itself is on the screen already."""
    session = desk.session
    at, count = session.show_variant(step)
    answer = replace(recap(session), before="", message="")
    return joined([f"answer {at} of {count}", shown(answer, desk.look)], desk.look.columns - 1)


def _edit(desk: Desk, argument: str) -> str | Asking:
    session, path = desk.session, desk.session.path
    which, *rest = argument.split(maxsplit=1) or [""]
    at = number(which, -1)
    if not 1 <= abs(at) <= len(path):
        session.edit(at, "")  # says what is wrong
    at = at if at > 0 else len(path) + 1 + at
    text = with_files(rest[0].strip()) if rest else path[at - 1].user.text
    history = *session.history_of(path[: at - 1]), Turn(Role.USER, text)
    note = cost_line(session, history)
    if rest:
        return Asking(session.edit(at, text), note)
    desk.put_back(f"/edit {at} {text}")
    return _joined(f"Enter sends message {at} again as a new branch; all that was said stays", note)


def _fork(desk: Desk, argument: str) -> str:
    before = desk.session.name or desk.session.id
    key = desk.session.fork(argument or None)
    return f"you are now in session {argument or key}; /switch {before} goes back"


def _branches(desk: Desk, argument: str) -> str:
    branches = desk.session.branches
    return branch_tree(branches, desk.look.columns) if branches else "nothing has been said yet"


def _branch_keys(desk: Desk) -> Iterable[str]:
    for branch in desk.session.branches:
        yield branch.tip[:KEY_LENGTH]
        yield from branch.sessions


def _switch(desk: Desk, argument: str) -> str:
    session = desk.session
    if argument:
        session.switch(argument)
        return joined([shown(recap(session), desk.look), cost_line(session)], desk.look.columns - 1)
    branches = session.branches
    if len(branches) < 2:
        return "there is only one branch; /edit, /retry and /undo make others"
    at = next((i for i, branch in enumerate(branches) if branch.is_current), 0)
    choices = [Choice(branch_label(branch), f"/switch {branch.tip}") for branch in branches]
    desk.offer("branches: (Enter goes there, Esc leaves)", choices, at)
    return ""


def _continue(desk: Desk, argument: str) -> Asking:
    return Asking(desk.session.continue_answer())


def _export(desk: Desk, argument: str) -> str:
    kind, _, name = argument.partition(" ")
    if "." in kind and not name:
        kind, name = kind.rpartition(".")[2], kind
    kind = kind or "md"
    document = desk.session.export(kind)
    return f"written to {write_new(name.strip() or _file_name(desk.session, kind), document)}"


def _file_name(session: Session, kind: str) -> str:
    words = re.findall(r"\w+", session.name or session.title)
    return f"{'-'.join(words).lower()[:40].strip('-') or session.id}.{kind}"


def _read(desk: Desk, argument: str) -> str:
    if not argument:
        raise UsageError("/read needs a file", "say /read FILE")
    desk.attach(Attachment(argument, file_part(argument)))
    return f"{argument} will be sent with the next message"


def _prompt(desk: Desk, argument: str) -> str:
    from kvchat.ui.prompt_command import run_prompt  # YAML and Jinja, which the first key must not wait for

    return run_prompt(desk, argument)


def _prompt_names(desk: Desk) -> Iterable[str]:
    from kvchat.ui.prompt_command import prompt_names

    return prompt_names(desk)


def _joined(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


MOVES: tuple[SlashCommand, ...] = (
    SlashCommand("/new", "[NAME]", "begin a new conversation", _new),
    SlashCommand("/sessions", "", "choose a saved conversation to continue", _sessions),
    SlashCommand(
        "/resume",
        "[SESSION]",
        "continue a saved conversation, or the latest",
        _resume,
        choices=lambda desk: [row.name or row.id for row in desk.session.store.sessions(_LISTED)],
    ),
    SlashCommand(
        "/delete",
        "[SESSION]",
        "delete a saved conversation, or this one, after a question",
        _delete,
        choices=lambda desk: [row.name or row.id for row in desk.session.store.sessions(_LISTED)],
    ),
    SlashCommand("/rename", "NAME", "name this conversation", _rename),
    SlashCommand("/undo", "[N]", "take the last N messages back", _undo),
    SlashCommand(
        "/retry", "", "another answer to the last message; the earlier one stays as a branch", _retry
    ),
    SlashCommand("/next", "", "the next answer there is to the last message (Alt-N)", partial(_variant, 1)),
    SlashCommand("/previous", "", "the answer before it (Alt-P)", partial(_variant, -1)),
    SlashCommand("/edit", "[N [TEXT]]", "edit message N (or the last) and send it again", _edit),
    SlashCommand("/continue", "", "continue an answer that stopped", _continue),
    SlashCommand("/fork", "[NAME]", "continue in a copy of this conversation", _fork),
    SlashCommand("/branches", "", "show the tree of what was said", _branches),
    SlashCommand("/switch", "[BRANCH]", "go to another branch or session", _switch, choices=_branch_keys),
    SlashCommand(
        "/export",
        "[md|json|html] [FILE]",
        "write the conversation to a file",
        _export,
        choices=lambda desk: FORMATS,
    ),
    SlashCommand(
        "/read",
        "FILE",
        "send a file with the next message; @FILE inside it does the same",
        _read,
        takes_file=True,
    ),
    SlashCommand(
        "/prompt", "[NAME [VAR=VALUE]]", "choose a saved system prompt", _prompt, choices=_prompt_names
    ),
    SlashCommand(
        "/model",
        "[NAME]",
        "show the model and those on this disk, or change it",
        run_model,
        choices=lambda desk: [row.name for row in desk.surroundings.models()],
    ),
)
"""The rows of the table."""
