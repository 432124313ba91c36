"""A tip that moves through a tree of exchanges and is kept in a store as it goes. Knows no backend that answers.

Moving the tip (undo, fork, switch, resume) destroys nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvchat.backends.base import Answer, Options, Role, Turn, well_formed
from kvchat.chat.export import exported
from kvchat.chat.journal import Journal, new_row
from kvchat.chat.messages import Messages
from kvchat.chat.store import LATEST, NameTakenError, Store
from kvchat.chat.telling import in_force, told
from kvchat.chat.tree import Branch, Exchange, Preset, Totals, Tree, new_id
from kvchat.chat.writes import fit_name
from kvchat.errors import UsageError

_MIN_PREFIX = 4


class Conversation:
    """What was said, where the next message goes, and the verbs that move that place.

    `options` and `model` (its name) are what the next message is asked with; a saved prompt in place, `preset`, may set
    some of the options differently as long as it stays. `tokenizer` is the one whose ids the
    history has where an answer has several; empty as long as nobody knows. Without a `store` all is in memory.
    """

    _tip: str | None
    _summary: str | None
    """Of the summary that was put in force last; None where all is told."""

    def __init__(self, options: Options, system: str | None, *, store: Store | None, model: str) -> None:
        self.options = options
        self.preset = Preset()
        self._begun_with = options
        self.model = model
        self.tokenizer = ""
        self.store = store or Store()
        self._is_pinned = False
        self._messages = Messages()
        self._begin(system)

    # What there is

    @property
    def id(self) -> str:
        """The session's id; a fork, a switch to another session and a new conversation change it."""
        return self._journal.row.id

    @property
    def name(self) -> str | None:
        """What the user called the session."""
        return self._journal.row.name

    @property
    def title(self) -> str:
        """What it is about: the beginning of its first message, or what the model called it."""
        return self._journal.row.title

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self._system

    @property
    def chosen(self) -> Options:
        """The options that the next message is asked with: the user's, and over them the saved prompt's."""
        return replace(self.options, **self.preset.options)

    @property
    def path(self) -> tuple[Exchange, ...]:
        """The exchanges from the root to the tip."""
        return self._tree.path(self._tip)

    @property
    def history(self) -> tuple[Turn, ...]:
        """All messages up to the tip, the system prompt first."""
        return self.history_of(self.path)

    def history_of(self, path: Sequence[Exchange], system: str | None = None) -> tuple[Turn, ...]:
        """What the model is told of any exchanges: the system prompt (or another one) first, and the summary that is in
        force instead of those that it stands for.

        For all of them it is still the time at which the tree's first message was sent, also in another branch and
        after years: a template that prints the date changes nothing of what was computed.
        """
        return self._headed(told(path, self._in_force(path)), system)

    def _headed(self, exchanges: Sequence[Exchange], system: str | None = None) -> tuple[Turn, ...]:
        """The messages of exchanges that are told, the system prompt first."""
        text = system or self._system
        head = (Turn(Role.SYSTEM, text, pinned=self._is_pinned),) if text else ()
        turns = head + self._messages.of(exchanges, self.tokenizer)
        began = self._tree.began
        return (replace(turns[0], time_s=began), *turns[1:]) if turns else ()

    @property
    def tip(self) -> Exchange | None:
        """The exchange that the next message follows."""
        return None if self._tip is None else self._tree[self._tip]

    @property
    def summary(self) -> Exchange | None:
        """The summary that the model is told instead of the oldest messages, if one is in force."""
        return self._in_force(self.path)

    @property
    def last(self) -> Answer | None:
        """The answer at the tip."""
        return self.tip.answer if self.tip else None

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All ways through the tree, the oldest first, and how much each shares with the current path."""
        self._learn_of_others()
        tips: dict[str, list[str]] = {}
        for row in self.store.sessions_of(self._journal.row.tree):
            if row.tip is not None and row.tip in self._tree:
                tips.setdefault(row.tip, []).append(row.name or row.id)
        return self._tree.branches(self._tip, tips)

    def export(self, kind: str) -> str:
        """The conversation as `md`, `json` or `html`. Raises UsageError for another kind."""
        tokens = self.last.usage.total_tokens if self.last else 0
        row = replace(self._journal.row, num_exchanges=len(self.path), num_tokens=tokens, system=self._system)
        return exported(row, self.path, kind)

    # Moving

    def undo(self, num_exchanges: int = 1) -> tuple[Exchange, ...]:
        """Move the tip back; the exchanges that are left, the oldest first. Raises UsageError."""
        path = self.path
        if not path:
            raise UsageError("there is nothing to undo", "say something first")
        if not 1 <= num_exchanges <= len(path):
            raise UsageError(f"can't undo {num_exchanges} messages", f"give a number from 1 to {len(path)}")
        self._move_to(path[-num_exchanges].parent)
        return path[-num_exchanges:]

    def fork(self, name: str | None = None) -> str:
        """Go on as another session from here, and leave this one where it is; the new id. Raises UsageError."""
        name = self._checked(name)
        self._journal.fork(name, self.path)
        return self.id

    def switch(self, key: str) -> None:
        """Move to another branch: the id of its tip, or the beginning of it, or a session. Raises UsageError."""
        tips = [branch.tip for branch in self.branches]
        found = [tip for tip in tips if len(key) >= _MIN_PREFIX and tip.startswith(key)]
        if len(found) > 1:
            raise UsageError(f"{key!r} is the beginning of {len(found)} branches' ids", "give more of it")
        if found:
            self._move_to(found[0])
        else:
            self.resume(key)

    def show_variant(self, step: int) -> tuple[int, int]:
        """Move to the next (1) or the previous (-1) answer to the last message: its number, and of how many.

        Behind the last comes the first. What followed an answer stays as a branch. Raises UsageError if there is one only.
        """
        if self._tip is None:
            raise UsageError("there is no answer yet", "say something first")
        self._learn_of_others()
        ids = [exchange.id for exchange in self._tree.variants(self._tip)]
        if len(ids) < 2:
            raise UsageError("there is one answer only", "/retry gives another")
        at = (ids.index(self._tip) + step) % len(ids)
        self._move_to(ids[at])
        return at + 1, len(ids)

    def resume(self, key: str = LATEST) -> None:
        """Go on with a session: its name, its id or the beginning of it, or the latest. Raises UsageError."""
        row = self.store.session(key, oneshots=False)
        self._tree, self._messages = self.store.tree(row), Messages()
        self._tip, self._system, self._is_pinned, self.preset = row.tip, row.system, False, Preset()
        self._summary = row.summary
        self._journal = Journal(self.store, row, is_stored=True)
        self.totals = Totals()

    def rename(self, name: str) -> None:
        """Name the session. Raises UsageError for no fit name, and if another one has it."""
        self._journal.rename(self._checked(name) or "")

    def mark(self, *, is_oneshot: bool) -> None:
        """Say whether the session is only asked without a dialogue; written with the next message."""
        self._journal.mark(is_oneshot=is_oneshot)

    def new(self, name: str | None = None) -> str:
        """Begin another conversation with the same system prompt; its id. Raises UsageError."""
        name = self._checked(name)
        self._begin(self._system)
        if name:
            self._journal.rename(name)
        return self.id

    def clear(self) -> None:
        """Begin another conversation; the one before and the system prompt stay."""
        self.new()

    def set_system(self, text: str | None, *, pinned: bool = False, preset: Preset | None = None) -> None:
        """Replace the system prompt from the next message on; what was said stays.

        The KV of one that is `pinned` is evicted last. The options of a saved prompt, `preset`, go when it is replaced.
        """
        self._system, self._is_pinned = well_formed(text) if text else None, pinned
        self.preset = preset or Preset()

    def is_set(self, name: str) -> bool:
        """Whether an option was changed since the conversation began."""
        return bool(getattr(self.options, name) != getattr(self._begun_with, name))

    def set_option(self, name: str, value: Any) -> None:
        """Change one option from the next message on, whatever a saved prompt says of it."""
        self.options = replace(self.options, **{name: value})
        kept = {key: other for key, other in self.preset.options.items() if key != name}
        self.preset = replace(self.preset, options=kept)

    # How it is done

    def _begin(self, system: str | None) -> None:
        self._system = well_formed(system) if system else None
        self._tree, self._messages = Tree(), Messages()
        self._tip = self._summary = None
        self._journal = Journal(self.store, new_row(self._system, self.model))
        self.totals = Totals()

    def _learn_of_others(self) -> None:
        """Add what other terminals said in this tree."""
        self._tree.learn(self.store.exchanges(self._journal.row.tree, self._tree))

    def _checked(self, name: str | None) -> str | None:
        """The name, as it can be written. Raises UsageError for one that can't be given."""
        if name is None:
            return None
        name = fit_name(name)
        if any(row.name == name and row.id != self.id for row in self.store.sessions()):
            raise NameTakenError(name)
        return name

    def _new_exchange(self, text: str, parent: str | None) -> Exchange:
        said = Turn(Role.USER, text)
        return Exchange(new_id(), parent, said, None, self.chosen, self.model, time.time())

    def _move_to(self, tip: str | None) -> None:
        self._tip = tip
        self._journal.change(system=self._system, model=self.model, summary=self._summary)
        self._journal.move(self.path)

    def _in_force(self, path: Sequence[Exchange]) -> Exchange | None:
        return in_force(self._tree, path, self._summary)
